//! `adapter_config.json`, written with the keys that PEFT knows since 0.11.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::site_names::WRAPPED;

pub(crate) use sepal_track::export::{CONFIG, TENSORS};

pub(crate) const PROMPT_EMBEDDINGS: &str = "prompt_embeddings";

pub(crate) const PREFIX_TUNING: &str = "PREFIX_TUNING";
pub(crate) const PROMPT_TUNING: &str = "PROMPT_TUNING";
pub(crate) const P_TUNING: &str = "P_TUNING";
pub(crate) const LORA: &str = "LORA";
pub(crate) const IA3: &str = "IA3";
pub(crate) const SEQ_CLS: &str = "SEQ_CLS";

/// Name of the head's module in transformers.
pub(crate) const HEAD_MODULE: &str = "score";

/// Name of the model that PEFT wraps for prompts; LORA and IA3 wrap it twice.
const WRAPPED_FOR_PROMPTS: &str = "base_model.";

/// Names of the head in files of one method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeadNames(&'static str);

impl HeadNames {
    pub(crate) const FOR_PROMPTS: Self = Self(WRAPPED_FOR_PROMPTS);
    pub(crate) const FOR_LAYERS: Self = Self(WRAPPED);

    /// Name that PEFT writes.
    pub(crate) fn written(self) -> String {
        format!("{}{HEAD_MODULE}.weight", self.0)
    }

    /// True for the written name, and for those in a saved state of the module.
    pub(crate) fn is_head(self, name: &str) -> bool {
        let ends = [".weight", ".modules_to_save.weight", ".modules_to_save.default.weight"];
        self.end(name).is_some_and(|end| ends.contains(&end))
    }

    /// True for the original head, which PEFT replaced by the trained one.
    pub(crate) fn is_replaced_head(self, name: &str) -> bool {
        self.end(name) == Some(".original_module.weight")
    }

    fn end(self, name: &str) -> Option<&str> {
        name.strip_prefix(self.0)?.strip_prefix(HEAD_MODULE)
    }
}

/// Content to write for methods with a prefix, with sorted keys.
#[derive(Debug, Serialize)]
pub(crate) struct PromptConfigFile<'a> {
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

/// Content to write for LORA, with sorted keys. vLLM requires `r`, `lora_alpha` and `target_modules`.
#[derive(Debug, Serialize)]
pub(crate) struct LoraConfigFile<'a> {
    pub(crate) base_model_name_or_path: &'a str,
    pub(crate) bias: &'a str,
    pub(crate) fan_in_fan_out: bool,
    pub(crate) inference_mode: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) layers_to_transform: Option<Vec<usize>>,
    pub(crate) lora_alpha: Value,
    pub(crate) lora_dropout: f64,
    pub(crate) modules_to_save: [&'a str; 1],
    pub(crate) peft_type: &'a str,
    pub(crate) r: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) revision: Option<&'a str>,
    pub(crate) target_modules: Vec<String>,
    pub(crate) task_type: &'a str,
    pub(crate) use_rslora: bool,
}

/// Content to write for IA3, with sorted keys.
#[derive(Debug, Serialize)]
pub(crate) struct Ia3ConfigFile<'a> {
    pub(crate) base_model_name_or_path: &'a str,
    pub(crate) fan_in_fan_out: bool,
    pub(crate) feedforward_modules: Vec<&'a str>,
    pub(crate) inference_mode: bool,
    pub(crate) modules_to_save: [&'a str; 1],
    pub(crate) peft_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) revision: Option<&'a str>,
    /// Names within the block: PEFT compares the ends of `feedforward_modules` without a dot.
    pub(crate) target_modules: Vec<&'a str>,
    pub(crate) task_type: &'a str,
}

/// Content to read, from any version of PEFT.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct AdapterConfig {
    pub(crate) peft_type: Option<String>,
    pub(crate) task_type: Option<String>,
    pub(crate) num_virtual_tokens: Option<usize>,
    pub(crate) base_model_name_or_path: Option<String>,
    pub(crate) lora_alpha: Option<f64>,
    pub(crate) use_rslora: Option<bool>,
    /// Alpha of layers with another one, by the ends of their names.
    pub(crate) alpha_pattern: Option<Map<String, Value>>,
    /// All other keys.
    #[serde(flatten)]
    pub(crate) others: Map<String, Value>,
}

impl AdapterConfig {
    pub(crate) fn read(folder: &Path) -> std::io::Result<Self> {
        let text = sepal_machine::regular::read(&folder.join(CONFIG))?;
        serde_json::from_slice(&text).map_err(std::io::Error::from)
    }

    pub(crate) fn method(&self) -> &str {
        self.peft_type.as_deref().unwrap_or("no method")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_found_by_their_names() {
        let (prompts, layers) = (HeadNames::FOR_PROMPTS, HeadNames::FOR_LAYERS);
        assert_eq!(prompts.written(), "base_model.score.weight");
        assert_eq!(layers.written(), "base_model.model.score.weight");
        assert!(layers.is_head("base_model.model.score.modules_to_save.default.weight"));
        assert!(prompts.is_head("base_model.score.modules_to_save.weight"));
        assert!(!prompts.is_head("base_model.model.score.weight"), "of another method");
        assert!(!layers.is_head("base_model.model.score.bias"));
        assert!(layers.is_replaced_head("base_model.model.score.original_module.weight"));
    }
}
