use std::path::Path;

use sepal_core::ModelConfig;
use serde_json::Value;

use crate::error::OpenError;
use crate::families::{read_config, spec};
use crate::layout::{CONFIG, INDEX, read_object, shards};
use crate::multimodal::{multimodal_type, text_name};

/// A model by its configuration and the index of its shards, without weights.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSummary {
    /// Shape of the model.
    pub config: ModelConfig,
    /// Number of shards; `None` without an index.
    pub n_shards: Option<usize>,
    /// Size of all weights in bytes, as the index states it.
    pub size_bytes: Option<u64>,
}

impl ModelSummary {
    /// Reads `config.json` and, if there is one, the index in a folder. Neither shards nor an outline are needed.
    ///
    /// # Errors
    /// [`OpenError`] if a file cannot be read, the model is not supported, or the index has other blocks than the
    /// configuration.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self, OpenError> {
        let folder = folder.as_ref();
        let path = folder.join(CONFIG);
        let json = read_object(&path)?;
        let config = read_config(&path, &json)?;
        let is_multimodal = multimodal_type(&json).is_some();
        if !folder.join(INDEX).is_file() {
            return Ok(Self { config, n_shards: None, size_bytes: None });
        }
        let shards = shards(folder)?;
        let names = shards.values().flatten();
        let names: Vec<String> =
            names.filter_map(|name| if is_multimodal { text_name(name) } else { Some(name.clone()) }).collect();
        check_blocks(folder, &config, &names)?;
        let index = read_object(&folder.join(INDEX))?;
        // Some files state the size as a number with a fraction.
        let size = index.get("metadata").and_then(|metadata| metadata.get("total_size")).and_then(Value::as_f64);
        Ok(Self { config, n_shards: Some(shards.len()), size_bytes: size.map(|bytes| bytes as u64) })
    }
}

/// Refuses an index whose last block is not the configuration's.
fn check_blocks(folder: &Path, config: &ModelConfig, names: &[String]) -> Result<(), OpenError> {
    let tensors = &spec(config.family).tensors;
    let has_block = |block_idx: usize| {
        let name = tensors.block_prefix(block_idx);
        let bare = name.strip_prefix(tensors.prefix).unwrap_or(&name);
        names.iter().any(|tensor| tensor.starts_with(&name) || tensor.starts_with(bare))
    };
    let n_blocks = config.n_blocks;
    if n_blocks > 0 && has_block(n_blocks - 1) && !has_block(n_blocks) {
        return Ok(());
    }
    let problem = format!("{CONFIG} describes {n_blocks} blocks, and {INDEX} has another last block");
    Err(OpenError::Layout { path: folder.to_owned(), problem })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Folder with the configuration of a model of 2 blocks, and an index of `n_blocks` blocks.
    fn folder(n_blocks: usize) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let config = json!({
            "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 5, "rms_norm_eps": 1e-5,
        });
        std::fs::write(folder.path().join(CONFIG), config.to_string()).expect("written");
        let entry = |block_idx: usize| {
            let name = format!("model.layers.{block_idx}.mlp.down_proj.weight");
            (name, json!(format!("model-{}-of-{n_blocks}.safetensors", block_idx + 1)))
        };
        let weight_map: serde_json::Map<String, Value> = (0..n_blocks).map(entry).collect();
        let index = json!({ "metadata": { "total_size": 4096.0 }, "weight_map": weight_map });
        std::fs::write(folder.path().join(INDEX), index.to_string()).expect("written");
        folder
    }

    #[test]
    fn summary_is_read_without_shards() {
        let folder = folder(2);
        let summary = ModelSummary::read(folder.path()).expect("read");
        assert_eq!((summary.config.n_blocks, summary.n_shards, summary.size_bytes), (2, Some(2), Some(4096)));
        std::fs::remove_file(folder.path().join(INDEX)).expect("removed");
        let summary = ModelSummary::read(folder.path()).expect("read");
        assert_eq!((summary.n_shards, summary.size_bytes), (None, None));
    }

    #[test]
    fn summary_of_a_multimodal_model_is_that_of_its_text_model() {
        let folder = tempfile::tempdir().expect("a folder");
        let text = json!({"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 4,
            "num_key_value_heads": 1});
        let config = json!({"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 4}});
        std::fs::write(folder.path().join(CONFIG), config.to_string()).expect("written");
        let index = |n_blocks: usize| {
            let text = |block_idx: usize| format!("language_model.model.layers.{block_idx}.mlp.up_proj.weight");
            let image = (0..9).map(|layer| format!("vision_tower.vision_model.encoder.layers.{layer}.mlp.fc1.weight"));
            let names = (0..n_blocks).map(text).chain(image).map(|name| (name, json!("model-1-of-1.safetensors")));
            let weight_map: serde_json::Map<String, Value> = names.collect();
            let index = json!({ "metadata": {}, "weight_map": weight_map });
            std::fs::write(folder.path().join(INDEX), index.to_string()).expect("written");
            ModelSummary::read(folder.path())
        };
        let ModelConfig { family, n_blocks, ffn, vocab_size, .. } = index(2).expect("read").config;
        // Sizes that the file leaves out are those of the class of the text model.
        assert_eq!((family.name(), n_blocks, ffn, vocab_size), ("gemma3_text", 2, 9216, 262_208));
        let error = index(3).expect_err("refused").to_string();
        assert!(error.contains("describes 2 blocks"), "{error}");
    }

    #[test]
    fn index_with_other_blocks_than_the_configuration_is_refused() {
        for n_blocks in [1, 3] {
            let error = ModelSummary::read(folder(n_blocks).path()).expect_err("refused").to_string();
            assert!(error.contains("describes 2 blocks"), "{error}");
        }
    }
}
