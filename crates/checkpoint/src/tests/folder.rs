use std::fs;

use sepal_core::{DType, Family};

use super::*;
use crate::{ReadError, TokenizerError};

fn single() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path(), &llama_config());
    let tensors = [("model.embed_tokens.weight", vec![5, 8], numbers(40)), ("model.norm.weight", vec![8], numbers(8))];
    write_shard(&folder.path().join("model.safetensors"), &tensors);
    folder
}

fn sharded() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path(), &llama_config());
    write_shard(&folder.path().join("first.safetensors"), &[("model.embed_tokens.weight", vec![5, 8], numbers(40))]);
    write_shard(&folder.path().join("second.safetensors"), &[("model.norm.weight", vec![8], numbers(8))]);
    let weight_map =
        json!({"model.embed_tokens.weight": "first.safetensors", "model.norm.weight": "second.safetensors"});
    write_index(folder.path(), &json!({"metadata": {}, "weight_map": weight_map}));
    folder
}

fn write_index(folder: &Path, index: &Value) {
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).expect("writes");
}

#[test]
fn one_file() {
    let folder = single();
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    let config = checkpoint.config();
    assert_eq!((config.family, config.hidden, config.head_dim, config.n_kv_heads), (Family::Llama, 8, 4, 1));
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["model.embed_tokens.weight", "model.norm.weight"]);
    for name in ["model.embed_tokens.weight", "embed_tokens.weight"] {
        let tensor = checkpoint.tensor(name).expect("is there");
        assert_eq!((tensor.dtype(), tensor.shape()), (DType::F32, [5, 8].as_slice()));
        assert_eq!(tensor.to_f32(), numbers(40));
    }
    assert!(checkpoint.has("norm.weight") && !checkpoint.has("lm_head.weight"));
    let error = checkpoint.tensor("lm_head.weight").expect_err("is not there");
    assert!(error.to_string().contains("`lm_head.weight`"), "{error}");
    assert_eq!(checkpoint.config().family.block_prefix(3), "model.layers.3.");
}

#[test]
fn threads_share_a_checkpoint() {
    let folder = single();
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert_eq!(checkpoint.tensor("embed_tokens.weight").expect("reads").to_f32(), numbers(40));
                    assert_eq!(checkpoint.tensor("norm.weight").expect("reads").to_f32(), numbers(8));
                }
            });
        }
    });
}

#[test]
fn the_prefix_may_be_missing_in_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let bloom = json!({"model_type": "bloom", "hidden_size": 8, "n_layer": 1, "n_head": 2, "vocab_size": 5});
    write_config(folder.path(), &bloom);
    write_shard(&folder.path().join("model.safetensors"), &[("h.0.input_layernorm.bias", vec![8], numbers(8))]);
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    let name = format!("{}input_layernorm.bias", checkpoint.config().family.block_prefix(0));
    assert_eq!(name, "transformer.h.0.input_layernorm.bias");
    assert_eq!(checkpoint.tensor(&name).expect("is there").to_f32(), numbers(8));
}

#[test]
fn shards_are_one_checkpoint() {
    let (single, sharded) = (single(), sharded());
    let (single, sharded) = (Checkpoint::open(single.path()), Checkpoint::open(sharded.path()));
    let (single, sharded) = (single.expect("opens"), sharded.expect("opens"));
    for name in single.names() {
        assert_eq!(single.tensor(name).expect("reads"), sharded.tensor(name).expect("reads"), "{name}");
    }
    assert_eq!(single.digest(), sharded.digest(), "how weights are dealt out to files does not matter");
    assert_eq!(single.digest().len(), "sha256:".len() + 64);
    assert_eq!(sharded.describe().dtypes, ["F32"]);
}

#[test]
fn the_digest_knows_weights_apart() {
    let digest = |change: &dyn Fn(&Path)| {
        let folder = single();
        change(folder.path());
        Checkpoint::open(folder.path()).expect("opens").digest().to_owned()
    };
    let same = digest(&|_| ());
    assert_eq!(same, digest(&|_| ()));
    let mut other_values = numbers(40);
    other_values[39] += 1.0;
    let tensors = [("model.embed_tokens.weight", vec![5, 8], other_values), ("model.norm.weight", vec![8], numbers(8))];
    assert_ne!(same, digest(&|folder| write_shard(&folder.join("model.safetensors"), &tensors)));
    let mut other_config = llama_config();
    other_config["rms_norm_eps"] = json!(1e-6);
    assert_ne!(same, digest(&|folder| write_config(folder, &other_config)));
}

#[test]
fn halves_stay_halves_and_integers_are_refused() {
    let folder = single();
    let halves: Vec<half::bf16> = [1.5, -2.0].map(half::bf16::from_f32).to_vec();
    let bytes: &[u8] = bytemuck::cast_slice(&halves);
    let views = [
        ("half", TensorView::new(Dtype::BF16, vec![2], bytes).expect("fits")),
        ("ids", TensorView::new(Dtype::I32, vec![1], bytes).expect("fits")),
    ];
    fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None).expect("serializes"))
        .expect("writes");
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    let tensor = checkpoint.tensor("half").expect("reads");
    assert_eq!((tensor.dtype(), tensor.to_f32()), (DType::Bf16, vec![1.5, -2.0]));
    assert!(matches!(checkpoint.tensor("ids"), Err(ReadError::DType { dtype, .. }) if dtype == "I32"));
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let folder = single();
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).expect("reads");
    for length in [0, 7, 8, 20, whole.len() - 33, whole.len() - 1] {
        fs::write(&path, &whole[..length]).expect("writes");
        match complaint(folder.path()) {
            (OpenError::Length { expected, found, .. }, text) => {
                assert!(found == length as u64 && expected > found && expected <= whole.len() as u64, "{text}");
                assert!(text.contains("model.safetensors"), "{text}");
            }
            (other, _) => panic!("{other:?}"),
        }
    }
    fs::write(&path, [whole.as_slice(), &[0]].concat()).expect("writes");
    assert!(matches!(complaint(folder.path()).0, OpenError::Length { .. }), "a byte too many");
    let mut damaged = whole.clone();
    damaged[8..12].copy_from_slice(b"!!!!");
    fs::write(&path, &damaged).expect("writes");
    assert!(matches!(complaint(folder.path()).0, OpenError::Header { .. }));
    damaged[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&path, &damaged).expect("writes");
    assert!(matches!(complaint(folder.path()).0, OpenError::Header { .. }));
}

#[test]
fn a_wrong_index_is_refused() {
    let folder = sharded();
    let check = |index: Value, needle: &str| {
        write_index(folder.path(), &index);
        let (_, text) = complaint(folder.path());
        assert!(text.contains(needle), "{text}");
    };
    check(json!({"weight_map": {"model.norm.weight": "third.safetensors"}}), "third.safetensors");
    check(json!({"weight_map": {"model.norm.weight": "first.safetensors"}}), "`model.norm.weight`");
    check(json!({"weight_map": {"model.norm.weight": "../first.safetensors"}}), "`weight_map.model.norm.weight`");
    check(json!({"weight_map": 3}), "`weight_map` is 3");
    check(json!({}), "`weight_map` is missing");
    check(json!([1]), "model.safetensors.index.json");
}

#[test]
fn the_tokenizer_lies_beside_the_configuration() {
    let folder = single();
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    assert!(matches!(checkpoint.tokenizer(), Err(TokenizerError::File(_))));
    let definition = json!({"version": "1.0", "added_tokens": [],
        "model": {"type": "WordLevel", "unk_token": "x", "vocab": {"x": 0, "y": 1}}});
    fs::write(folder.path().join("tokenizer.json"), definition.to_string()).expect("writes");
    assert_eq!(checkpoint.tokenizer().expect("loads").encode("y", None, 4).expect("encodes").ids, [1]);
}
