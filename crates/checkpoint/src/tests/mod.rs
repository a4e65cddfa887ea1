//! Whole checkpoints, written and read.

mod block_types;
mod experts;
mod folder;
mod gguf;
mod headers;
mod multimodal;
mod partial;
mod quantized;

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::{Checkpoint, OpenError};

/// A Llama with 2 query heads, 1 key head, heads of 4, and as many rows of embeddings as ids.
fn llama_config() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 5, "rms_norm_eps": 1e-5,
    })
}

/// Distinct numbers that fp16 represents exactly.
fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|at| at as f32 * 0.25 - 2.0).collect()
}

fn write_config(folder: &Path, config: &Value) {
    std::fs::write(folder.join("config.json"), config.to_string()).expect("writes");
}

fn write_shard(path: &Path, tensors: &[(&str, Vec<usize>, Vec<f32>)]) {
    let bytes: Vec<&[u8]> = tensors.iter().map(|(_, _, values)| bytemuck::cast_slice(values)).collect();
    let views = tensors.iter().zip(bytes).map(|((name, shape, _), bytes)| {
        (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("bytes fit the shape"))
    });
    std::fs::write(path, safetensors::serialize(views, None).expect("serializes")).expect("writes");
}

fn open_error(path: &Path) -> (OpenError, String) {
    let error = Checkpoint::open(path).expect_err("is refused");
    let text = error.to_string();
    (error, text)
}

#[test]
fn only_checkpoints_are_opened() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = open_error(&folder.path().join("nowhere"));
    assert!(matches!(missing.0, OpenError::Io { .. }) && missing.1.contains("nowhere"), "{}", missing.1);
    let (_, empty) = open_error(folder.path());
    assert!(empty.contains("neither config.json"), "{empty}");
    let shard = folder.path().join("model.safetensors");
    write_shard(&shard, &[]);
    let (_, file) = open_error(&shard);
    assert!(file.contains("give the folder"), "{file}");
    let other = tempfile::tempdir().expect("a folder");
    write_config(other.path(), &llama_config());
    let (_, no_weights) = open_error(other.path());
    assert!(no_weights.contains("neither model.safetensors"), "{no_weights}");
    for name in ["a.gguf", "b.GGUF"] {
        std::fs::write(other.path().join(name), "").expect("writes");
    }
    let (_, two) = open_error(other.path());
    assert!(two.contains("2 .gguf files"), "{two}");
}
