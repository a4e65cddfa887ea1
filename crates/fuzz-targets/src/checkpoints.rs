//! Files of models.

use sepal_checkpoint::{Checkpoint, Part};
use sepal_core::Span;
use serde_json::{Value, json};

use crate::with_files;

/// Most tensors of a file that are read.
const MAX_TENSORS: usize = 64;

/// A GGUF file.
pub(crate) fn gguf(bytes: &[u8]) {
    with_files(&[("model.gguf", bytes)], |folder| {
        if let Ok(checkpoint) = Checkpoint::open(folder.join("model.gguf")) {
            read(&checkpoint);
        }
    });
}

/// A safetensors file. Of an input that begins with a brace, it is the header.
pub(crate) fn safetensors(bytes: &[u8]) {
    let file = if bytes.first() == Some(&b'{') { file_of_header(bytes) } else { bytes.to_vec() };
    open(&config(), &[("model.safetensors", &file[..])]);
}

/// An index of the tensors in several files.
pub(crate) fn shards(bytes: &[u8]) {
    let shard = file_of_header(&header());
    open(&config(), &[("model.safetensors.index.json", bytes), ("a.safetensors", &shard[..])]);
}

/// A configuration in the HF layout.
pub(crate) fn model_config(bytes: &[u8]) {
    open(bytes, &[("model.safetensors", &file_of_header(&header())[..])]);
}

fn open(config: &[u8], files: &[(&str, &[u8])]) {
    let files = [files, &[("config.json", config)]].concat();
    with_files(&files, |folder| {
        if let Ok(checkpoint) = Checkpoint::open(folder) {
            read(&checkpoint);
        }
    });
}

/// Reads a checkpoint as servers and clients do. Errors are answers.
fn read(checkpoint: &Checkpoint) {
    let _ = (checkpoint.describe().to_string(), checkpoint.parameter_count(), checkpoint.tokenizer().is_ok());
    let blocks = Span::new(0, checkpoint.config().n_blocks).map(Part::Blocks);
    for part in [Part::All, Part::Ends, Part::Output].into_iter().chain(blocks) {
        let sizes = checkpoint.part_sizes(part);
        let _ = (sizes.parameters(), checkpoint.missing_files(part));
    }
    for name in checkpoint.names().take(MAX_TENSORS) {
        let _ = (checkpoint.tensor(name).is_ok(), checkpoint.packed(name).is_ok());
        let _ = (checkpoint.rows(name, &[0, 1]).is_ok(), checkpoint.rows(name, &[]).is_ok());
    }
}

/// Configuration of a small Llama.
pub(crate) fn config() -> Vec<u8> {
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 3,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 16, "tie_word_embeddings": true,
    });
    config.to_string().into_bytes()
}

/// Header of some tensors of that Llama.
pub(crate) fn header() -> Vec<u8> {
    let tensor = |shape: [usize; 2], start: usize| json!({"dtype": "F32", "shape": shape, "data_offsets": [start, start + 4 * shape[0] * shape[1]]});
    let header = json!({
        "model.embed_tokens.weight": tensor([3, 4], 0),
        "model.layers.0.self_attn.q_proj.weight": tensor([4, 4], 48),
        "model.norm.weight": {"dtype": "F32", "shape": [4], "data_offsets": [112, 128]},
    });
    header.to_string().into_bytes()
}

/// A file with this header, and with zeros for its tensors.
pub(crate) fn file_of_header(header: &[u8]) -> Vec<u8> {
    const MAX_DATA: u64 = 1 << 16;
    let end = serde_json::from_slice::<Value>(header).ok().as_ref().and_then(Value::as_object).map(|tensors| {
        let ends = tensors.values().filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64());
        ends.max().unwrap_or(0)
    });
    let zeros = vec![0; end.unwrap_or(0).min(MAX_DATA) as usize];
    [&(header.len() as u64).to_le_bytes()[..], header, &zeros].concat()
}
