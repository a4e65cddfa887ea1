use sepal_core::{Family, ModelConfig};

use super::llama::{self, ATTENTION, GATED_MLP};
use crate::config::{layer_types, with_window};
use crate::error::OpenError;
use crate::family::{ClassDefaults, FamilySpec, WithoutBias};
use crate::keys::Keys;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Mistral,
    classifier: Some("MistralForSequenceClassification"),
    defaults: ClassDefaults { ffn: Some(14_336), n_kv_heads: Some(8), max_positions: 131_072, ..ClassDefaults::LLAMA },
    read_config,
    without_bias: &[WithoutBias { layers: ATTENTION, unless: None }, WithoutBias { layers: GATED_MLP, unless: None }],
    // llama.cpp writes a Mistral as a Llama.
    gguf: None,
    ..llama::SPEC
};

/// Has a window by default. A Mistral with `layer_types` is a Ministral in transformers.
fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    let config = llama::read_config(keys, spec)?;
    let size = keys.count_unless_null("sliding_window", 4096)?;
    let usual = || vec![true; if size.is_some() { config.n_blocks } else { 0 }];
    let blocks = layer_types(keys, config.n_blocks)?.unwrap_or_else(usual);
    with_window(keys, config, size, blocks)
}
