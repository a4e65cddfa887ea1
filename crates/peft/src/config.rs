//! `adapter_config.json`, written with the keys that PEFT knows since 0.11.

use std::path::Path;

use serde::{Deserialize, Serialize};

pub(crate) const CONFIG: &str = "adapter_config.json";
pub(crate) const TENSORS: &str = "adapter_model.safetensors";
pub(crate) const PROMPT_EMBEDDINGS: &str = "prompt_embeddings";
/// Name of the head in that file, with one `base_model.` where LoRA writes two.
pub(crate) const HEAD: &str = "base_model.score.weight";
/// Names of the head in files of PEFT: the one above, and those in a saved state of the module.
pub(crate) const HEADS: [&str; 3] =
    [HEAD, "base_model.score.modules_to_save.weight", "base_model.score.modules_to_save.default.weight"];

pub(crate) const PREFIX_TUNING: &str = "PREFIX_TUNING";
pub(crate) const PROMPT_TUNING: &str = "PROMPT_TUNING";
pub(crate) const P_TUNING: &str = "P_TUNING";
pub(crate) const SEQ_CLS: &str = "SEQ_CLS";

/// Content to write, with sorted keys.
#[derive(Debug, Serialize)]
pub(crate) struct AdapterConfigFile<'a> {
    pub(crate) base_model_name_or_path: &'a str,
    pub(crate) inference_mode: bool,
    pub(crate) num_attention_heads: usize,
    pub(crate) num_layers: usize,
    pub(crate) num_virtual_tokens: usize,
    pub(crate) peft_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prefix_projection: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) revision: Option<&'a str>,
    pub(crate) task_type: &'a str,
    pub(crate) token_dim: usize,
}

/// Content to read, from any version of PEFT.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct AdapterConfig {
    pub(crate) peft_type: Option<String>,
    pub(crate) task_type: Option<String>,
    pub(crate) num_virtual_tokens: Option<usize>,
    pub(crate) base_model_name_or_path: Option<String>,
}

impl AdapterConfig {
    pub(crate) fn read(folder: &Path) -> std::io::Result<Self> {
        let text = std::fs::read(folder.join(CONFIG))?;
        serde_json::from_slice(&text).map_err(std::io::Error::from)
    }
}
