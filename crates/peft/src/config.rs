//! `adapter_config.json`, of which we write what PEFT from 0.11 on knows, and read what we need.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// The file's name.
pub(crate) const CONFIG: &str = "adapter_config.json";
/// The file that holds the tensors.
pub(crate) const TENSORS: &str = "adapter_model.safetensors";
/// The prompts' name in it.
pub(crate) const PROMPT_EMBEDDINGS: &str = "prompt_embeddings";
/// The head's name in it: one `base_model.`, other than what LoRA writes.
pub(crate) const HEAD: &str = "base_model.score.weight";
/// The names that a head has in files of others: that of above, and those that are there where the state of the whole module
/// was saved.
pub(crate) const HEADS: [&str; 3] =
    [HEAD, "base_model.score.modules_to_save.weight", "base_model.score.modules_to_save.default.weight"];

pub(crate) const PREFIX_TUNING: &str = "PREFIX_TUNING";
pub(crate) const PROMPT_TUNING: &str = "PROMPT_TUNING";
pub(crate) const P_TUNING: &str = "P_TUNING";
pub(crate) const SEQ_CLS: &str = "SEQ_CLS";

/// As it is written, keys sorted.
#[derive(Debug, Serialize)]
pub(crate) struct Written<'a> {
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

/// What is read of it, whoever wrote it.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Found {
    pub(crate) peft_type: Option<String>,
    pub(crate) task_type: Option<String>,
    pub(crate) num_virtual_tokens: Option<usize>,
    pub(crate) base_model_name_or_path: Option<String>,
}

impl Found {
    pub(crate) fn read(folder: &Path) -> std::io::Result<Self> {
        let text = std::fs::read(folder.join(CONFIG))?;
        serde_json::from_slice(&text).map_err(std::io::Error::from)
    }
}
