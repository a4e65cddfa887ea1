use sepal_core::{Family, ModelConfig};

use super::llama::{self, GATED_MLP};
use crate::config::{layer_types, with_window};
use crate::error::OpenError;
use crate::family::{ClassDefaults, FamilySpec, GgufSpec, WithoutBias};
use crate::keys::Keys;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Qwen2,
    classifier: Some("Qwen2ForSequenceClassification"),
    defaults: ClassDefaults {
        vocab_size: 151_936,
        ffn: Some(22_016),
        n_kv_heads: Some(32),
        max_positions: 32_768,
        ..ClassDefaults::LLAMA
    },
    read_config,
    without_bias: &[
        WithoutBias { layers: &[".o_proj"], unless: None },
        WithoutBias { layers: GATED_MLP, unless: None },
    ],
    gguf: Some(GgufSpec { architecture: "qwen2", ..GgufSpec::LLAMA }),
    ..llama::SPEC
};

pub(super) fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    let config = llama::read_config(keys, spec)?;
    let size = match keys.flag("use_sliding_window")? {
        true => keys.count_unless_null("sliding_window", 4096)?,
        false => None,
    };
    let first = keys.optional_index("max_window_layers")?.unwrap_or(28);
    let usual = || (0..config.n_blocks).map(|block_idx| size.is_some() && block_idx >= first).collect();
    let blocks = layer_types(keys, config.n_blocks)?.unwrap_or_else(usual);
    if size.is_none() && blocks.contains(&true) {
        return Err(keys.wrong("layer_types", "full_attention alone where use_sliding_window is not true"));
    }
    with_window(keys, config, size, blocks)
}
