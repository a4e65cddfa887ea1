use sepal_core::{Family, ModelConfig};
use serde_json::Value;

use super::llama;
use crate::config::{layer_types, with_window};
use crate::error::OpenError;
use crate::family::{ClassDefaults, FamilySpec, GgufSpec, RowOrder};
use crate::keys::Keys;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Smollm3,
    classifier: Some("SmolLM3ForSequenceClassification"),
    defaults: ClassDefaults {
        vocab_size: 128_256,
        hidden: 2048,
        n_blocks: 36,
        n_heads: 16,
        n_kv_heads: Some(4),
        max_positions: 32_768,
        theta: 2_000_000.0,
        ..ClassDefaults::LLAMA
    },
    read_config,
    gguf: Some(GgufSpec {
        architecture: "smollm3",
        rows: RowOrder::InterleavedHeads,
        // llama.cpp has no key for the period.
        unrotated_period: Some(4),
        ..GgufSpec::LLAMA
    }),
    ..llama::SPEC
};

/// Has a window, if it is used, in the blocks without positions.
fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    let config = llama::read_config(keys, spec)?;
    let unrotated_blocks = unrotated_blocks(keys, config.n_blocks)?;
    let is_used = keys.flag("use_sliding_window")?;
    let size = if is_used { keys.optional_count("sliding_window")? } else { None };
    let usual = || unrotated_blocks.iter().map(|is_unrotated| size.is_some() && *is_unrotated).collect();
    let blocks = layer_types(keys, config.n_blocks)?.unwrap_or_else(usual);
    if !is_used && blocks.contains(&true) {
        return Err(keys.wrong("layer_types", "full_attention alone where use_sliding_window is not true"));
    }
    with_window(keys, ModelConfig { unrotated_blocks, ..config }, size, blocks)
}

/// For each block, true if it has no positions: 0 in `no_rope_layers`, by default the last of every
/// `no_rope_layer_interval` blocks. Empty if all blocks have positions.
fn unrotated_blocks(keys: Keys<'_>, n_blocks: usize) -> Result<Vec<bool>, OpenError> {
    let key = "no_rope_layers";
    let blocks: Vec<bool> = match keys.get(key) {
        None => {
            let interval = keys.optional_count("no_rope_layer_interval")?.unwrap_or(4);
            (1..=n_blocks).map(|number| number.is_multiple_of(interval)).collect()
        }
        Some(stated) => {
            let numbers = stated.as_array().filter(|numbers| numbers.len() >= n_blocks);
            let is_unrotated = |number: &Value| number.as_i64().map(|number| number == 0);
            let blocks: Option<Vec<bool>> =
                numbers.and_then(|numbers| numbers[..n_blocks].iter().map(is_unrotated).collect());
            blocks.ok_or_else(|| keys.wrong(key, format!("0 or 1 for each of {n_blocks} blocks")))?
        }
    };
    Ok(if blocks.contains(&true) { blocks } else { Vec::new() })
}
