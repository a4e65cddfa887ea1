use std::fs;

use super::*;
use crate::{Part, write_outline};

const SHARDS: [&str; 2] = ["image.safetensors", "text.safetensors"];

fn text_config() -> Value {
    let mut config = llama_config();
    config["model_type"] = json!("mistral");
    config
}

fn multimodal_config() -> Value {
    json!({"model_type": "mistral3", "text_config": text_config(), "vision_config": {"hidden_size": 4}})
}

/// The tensors of the text model, with names that begin with `prefix`.
fn write_text(path: &Path, prefix: &str) {
    let (embedding, norm) = (format!("{prefix}embed_tokens.weight"), format!("{prefix}norm.weight"));
    write_shard(path, &[(&embedding, vec![5, 8], numbers(40)), (&norm, vec![8], numbers(8))]);
}

/// A multimodal model in two shards, one of its image encoder and one of its text model.
fn multimodal(prefix: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path(), &multimodal_config());
    let [image, text] = SHARDS.map(|shard| folder.path().join(shard));
    write_shard(&image, &[("vision_tower.encoder.layers.0.mlp.fc1.weight", vec![4, 4], numbers(16))]);
    write_text(&text, prefix);
    let weight_map = json!({
        "vision_tower.encoder.layers.0.mlp.fc1.weight": SHARDS[0],
        format!("{prefix}embed_tokens.weight"): SHARDS[1],
        format!("{prefix}norm.weight"): SHARDS[1],
    });
    let index = json!({"metadata": {}, "weight_map": weight_map});
    fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).expect("writes");
    folder
}

#[test]
fn text_model_of_a_multimodal_model_equals_the_text_model_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path(), &text_config());
    write_text(&folder.path().join("model.safetensors"), "model.");
    let text_model = Checkpoint::open(folder.path()).expect("opens");
    assert_eq!(text_model.multimodal_type(), None);
    for prefix in ["language_model.model.", "model.language_model."] {
        let folder = multimodal(prefix);
        let checkpoint = Checkpoint::open(folder.path()).expect("opens");
        assert_eq!(checkpoint.multimodal_type(), Some("mistral3"));
        assert!(checkpoint.names().eq(text_model.names()), "{prefix}");
        assert_eq!((checkpoint.config(), checkpoint.digest()), (text_model.config(), text_model.digest()), "{prefix}");
        assert_eq!(checkpoint.parameter_count(), text_model.parameter_count(), "{prefix}");
        assert_eq!(checkpoint.tensor("norm.weight").expect("reads").to_f32(), numbers(8), "{prefix}");
    }
}

#[test]
fn shards_without_text_are_not_missing() {
    let folder = multimodal("language_model.model.");
    let complete = Checkpoint::open(folder.path()).expect("opens").digest().to_owned();
    write_outline(folder.path(), &mut |_| panic!("all shards are present")).expect("an outline");
    for shard in SHARDS {
        fs::remove_file(folder.path().join(shard)).expect("removed");
        let checkpoint = Checkpoint::open(folder.path()).expect("opens");
        let missing: &[&str] = if shard == SHARDS[0] { &[] } else { &SHARDS[1..] };
        assert_eq!(checkpoint.missing_files(Part::All), missing, "{shard}");
        assert_eq!(checkpoint.missing_files(Part::Ends), missing, "{shard}");
        assert_eq!(checkpoint.digest(), complete, "{shard}");
    }
}

#[test]
fn two_tensors_of_one_text_name_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path(), &multimodal_config());
    let names = ["language_model.model.norm.weight", "model.language_model.norm.weight"];
    let tensors = names.map(|name| (name, vec![8], numbers(8)));
    write_shard(&folder.path().join("model.safetensors"), &tensors);
    let (_, text) = open_error(folder.path());
    assert!(names.iter().all(|name| text.contains(name)), "{text}");
}

#[test]
fn only_text_tensors_are_checked_before_a_download() {
    let check = |quantized: &str| {
        let folder = tempfile::tempdir().expect("a folder");
        write_config(folder.path(), &multimodal_config());
        let tensor = json!({"dtype": "I8", "shape": [2], "data_offsets": [0, 2]});
        let header = json!({ quantized: tensor }).to_string();
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 2]].concat();
        crate::screen(folder.path(), &mut |wanted| {
            let part = |(_, range): &(String, std::ops::Range<u64>)| {
                file[file.len().min(range.start as usize)..file.len().min(range.end as usize)].to_vec()
            };
            Ok(wanted.iter().map(part).collect())
        })
    };
    check("vision_tower.fc1.weight").expect("the image encoder is not used");
    let error = check("language_model.model.layers.0.mlp.up_proj.weight").expect_err("8 bits").to_string();
    assert!(error.contains("`model.layers.0.mlp.up_proj.weight` is of I8"), "{error}");
}
