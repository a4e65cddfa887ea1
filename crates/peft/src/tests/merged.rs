//! Merged checkpoints compute the logits of the adapter.

use std::path::Path;

use sepal_blocks::Ends;
use sepal_checkpoint::{Checkpoint, classifier_class};
use sepal_nn::share_from_host;
use serde_json::{Value, json};

use super::{Random, difference, logits, logits_of, lora_factor, lora_options, named, tiny};
use crate::block_inputs::BlockInputs;
use crate::{MergeError, MergeOptions, UsedPlugin, merge};

fn rows() -> Vec<Vec<i64>> {
    vec![vec![3, 1, 4, 1, 5], vec![9, 2], vec![6]]
}

fn options() -> MergeOptions {
    MergeOptions { tuning: vec![lora_options(false)], ..MergeOptions::default() }
}

/// Logits of a merged folder, without an adapter.
fn merged_logits(folder: &Path) -> Vec<f64> {
    let checkpoint = Checkpoint::open(folder).expect("a checkpoint");
    let ends = Ends::load(&checkpoint).expect("loads");
    let score = share_from_host(&checkpoint.tensor("score.weight").expect("a head")).expect("a tensor");
    let hidden = checkpoint.config().hidden as i64;
    let prefix = tch::Tensor::zeros([0, hidden], (tch::Kind::Float, tch::Device::Cpu));
    logits_of(&checkpoint, &ends, &BlockInputs { prefix, tunables: Vec::new() }, &score, &rows())
}

#[test]
fn merged_model_computes_the_logits_of_the_adapter() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in sepal_testkit::tiny::models() {
        let (model, checkpoint) = tiny(&name);
        let n_blocks = checkpoint.config().n_blocks;
        if classifier_class(checkpoint.config().family).is_none() {
            let adapter = Random::lora(&checkpoint, 1, |_| true).write(folder.path());
            let error = merge(&options(), &model, &checkpoint, &adapter, &folder.path().join("out"));
            assert!(matches!(error, Err(MergeError::NoClass { .. })), "{name}: {error:?}");
            continue;
        }
        for random in [
            Random::lora(&checkpoint, n_blocks, |_| true),
            Random::lora(&checkpoint, 1, |_| true),
            Random::ia3(&checkpoint),
        ] {
            let home = tempfile::tempdir_in(folder.path()).expect("a folder");
            let (adapter, out) = (random.write(home.path()), home.path().join("out"));
            let merged = merge(&options(), &model, &checkpoint, &adapter, &out).expect("merged");
            assert!(merged.class.ends_with("ForSequenceClassification") && merged.changed >= 4, "{merged:?}");
            let expected = logits(&checkpoint, &adapter, lora_factor(false), &rows());
            let largest = expected.iter().fold(1.0, |largest: f64, logit| largest.max(logit.abs()));
            let difference = difference(&expected, &merged_logits(&out));
            assert!(difference <= 1e-4 * largest, "{name}: {difference:.1e} of {largest}, {merged:?}");
        }
    }
}

#[test]
fn merged_folder_is_complete() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, checkpoint) = tiny("llama-gqa");
    let with_tokenizer = folder.path().join("model");
    std::fs::create_dir(&with_tokenizer).expect("a folder");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(model.join(file), with_tokenizer.join(file)).expect("copied");
    }
    std::fs::write(with_tokenizer.join("tokenizer.json"), "{}").expect("written");
    let adapter = Random::lora(&checkpoint, 3, |_| true).write(folder.path());
    let out = folder.path().join("out");
    // Small files, so that there are several.
    let with = json!({ "multi_label": true }).as_object().expect("an object").clone();
    let task = Some(UsedPlugin { name: "sequence-classification".to_owned(), with });
    let options = MergeOptions { shard_bytes: 10_000, task, ..options() };
    let merged = merge(&options, &with_tokenizer, &checkpoint, &adapter, &out).expect("merged");
    assert_eq!((merged.labels.len(), merged.changed), (2, 21));
    let read =
        |file: &str| -> Value { serde_json::from_slice(&std::fs::read(out.join(file)).expect(file)).expect("JSON") };
    let config = read("config.json");
    assert_eq!(config["architectures"], json!(["LlamaForSequenceClassification"]));
    assert_eq!(config["id2label"], json!({ "0": "bad", "1": "\"good\"" }));
    assert_eq!(config["problem_type"], "multi_label_classification");
    let index = read("model.safetensors.index.json");
    let files: std::collections::BTreeSet<&str> =
        index["weight_map"].as_object().expect("names").values().filter_map(Value::as_str).collect();
    assert!(files.len() > 2 && index["weight_map"].get("lm_head.weight").is_none(), "{index}");
    for file in files {
        assert!(std::fs::metadata(out.join(file)).expect(file).len() < 16_000, "{file} is one of many");
    }
    assert!(out.join("tokenizer.json").is_file());
    let merged_checkpoint = Checkpoint::open(&out).expect("opens");
    let names: Vec<&str> = merged_checkpoint.names().collect();
    let expected: Vec<&str> =
        checkpoint.names().filter(|name| *name != "lm_head.weight").chain(["score.weight"]).collect();
    assert_eq!(names, expected);
    assert_eq!(merged_checkpoint.dtype("score.weight"), checkpoint.dtype("model.norm.weight"));
}

#[test]
fn merge_into_a_multimodal_model_writes_its_text_model() {
    for (name, class, model_type) in [
        ("gemma3-vision", "Gemma3TextForSequenceClassification", "gemma3_text"),
        ("mistral-vision", "MistralForSequenceClassification", "mistral"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let (model, checkpoint) = tiny(name);
        let (adapter, out) = (Random::ia3(&checkpoint).write(folder.path()), folder.path().join("out"));
        let merged = merge(&options(), &model, &checkpoint, &adapter, &out).expect("merged");
        assert!(
            merged.class == class && merged.notices.iter().any(|notice| notice.contains("text model")),
            "{merged:?}"
        );
        let config: Value =
            serde_json::from_slice(&std::fs::read(out.join("config.json")).expect("a file")).expect("JSON");
        assert_eq!((&config["model_type"], &config["architectures"]), (&json!(model_type), &json!([class])));
        assert!(config.get("text_config").is_none() && config.get("vision_config").is_none(), "{config}");
        let text = Checkpoint::open(&out).expect("opens");
        assert_eq!((text.config(), text.multimodal_type()), (checkpoint.config(), None));
        assert!(text.names().all(|name| name.starts_with("model.") || name == "score.weight"));
        assert!(!text.names().any(|name| name.contains("vision") || name.contains("language_model")));
    }
}

#[test]
fn merge_without_changed_weights_is_refused() {
    let (model, checkpoint) = tiny("gpt2");
    let hidden = checkpoint.config().hidden as i64;
    let n_blocks = checkpoint.config().n_blocks;
    let lora = || Random::lora(&checkpoint, n_blocks, |_| true).tensors;
    let outputs = lora()[1].tensor.shape()[1] as i64;
    let with = json!({ "pooling": "mean" }).as_object().expect("an object").clone();
    let mean =
        MergeOptions { task: Some(UsedPlugin { name: "sequence-classification".to_owned(), with }), ..options() };
    let cases = [
        (options(), vec![named("prompts", &[4, hidden])], "merge ptune: it puts trained positions before each row"),
        (
            options(),
            [lora(), vec![named("scale_output:attn.c_attn", &[n_blocks as i64, outputs])]].concat(),
            "both `lora` and `ia3` change `attn.c_attn`",
        ),
        (MergeOptions::default(), lora(), "have no `alpha`"),
        (mean, lora(), "pooling `mean`"),
    ];
    for (options, mut tensors, expected) in cases {
        tensors.retain(|named| named.name != "score.weight");
        let folder = tempfile::tempdir().expect("a folder");
        let adapter = Random::with_head(&checkpoint, "lora", tensors).write(folder.path());
        let out = folder.path().join("out");
        let error = merge(&options, &model, &checkpoint, &adapter, &out).expect_err(expected);
        let text = sepal_core::in_one_line(&error);
        assert!(text.contains(expected), "{text}");
        assert!(!out.exists());
    }
}

#[test]
fn merge_replaces_no_other_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, checkpoint) = tiny("gpt2");
    let adapter = Random::ia3(&checkpoint).write(folder.path());
    let out = folder.path().join("out");
    std::fs::create_dir(&out).expect("a folder");
    std::fs::write(out.join("config.json"), "{}").expect("written");
    let overwriting = MergeOptions { overwrite: true, ..options() };
    let error = merge(&overwriting, &model, &checkpoint, &adapter, &out).expect_err("another model");
    assert!(matches!(error, MergeError::Folder(_)), "{error:?}");
    std::fs::remove_dir_all(&out).expect("removed");
    merge(&options(), &model, &checkpoint, &adapter, &out).expect("merged");
    merge(&options(), &model, &checkpoint, &adapter, &out).expect_err("it exists");
    merge(&overwriting, &model, &checkpoint, &adapter, &out).expect("merged again");
}

#[test]
fn merge_that_exceeds_the_number_format_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, checkpoint) = tiny("gpt2");
    let mut random = Random::lora(&checkpoint, 1, |_| true);
    for named in &mut random.tensors[..2] {
        let shape = named.tensor.shape().to_vec();
        let numbers = vec![1e30; shape.iter().product()];
        named.tensor = sepal_core::HostTensor::from_f32(shape, &numbers).expect("fits");
    }
    let (adapter, out) = (random.write(folder.path()), folder.path().join("out"));
    let error = merge(&options(), &model, &checkpoint, &adapter, &out).expect_err("too large");
    let text = sepal_core::in_one_line(&error);
    assert!(text.contains("h.2.attn.c_attn.weight`: it holds numbers that are not finite in f32"), "{text}");
    assert!(!out.exists());
}
