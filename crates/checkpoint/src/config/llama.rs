//! Llama and those that write their configuration as it does.

use sepal_core::{Activation, Experts, Family, ModelConfig, ScoreRule};

use super::{activation, eps, head_dim, layer_types, n_kv_heads, rotary, usual, window};
use crate::error::OpenError;
use crate::keys::Keys;

pub(super) fn read(keys: Keys<'_>, family: Family) -> Result<ModelConfig, OpenError> {
    let usual = usual(keys, family)?;
    let mut config = ModelConfig {
        n_kv_heads: n_kv_heads(keys, &usual)?,
        head_dim: head_dim(keys, &usual)?,
        norm_eps: eps(keys, "rms_norm_eps", family)?,
        activation: activation(keys, "hidden_act", &[Activation::Silu], Activation::Silu)?,
        experts: (family == Family::Mixtral).then(|| experts(keys)).transpose()?,
        ..usual
    };
    let (rope, max_positions) = rotary(keys, &config)?;
    (config.rope, config.max_positions) = (Some(rope), max_positions);
    config.scores = ScoreRule { window: sliding(keys, &config)?, ..config.scores };
    Ok(config)
}

/// `num_experts` is another name, which counts for more.
fn experts(keys: Keys<'_>) -> Result<Experts, OpenError> {
    let count = keys.count_of(&["num_experts", "num_local_experts"], 8)?;
    let per_token = keys.optional_count("num_experts_per_tok")?.unwrap_or(2);
    if per_token > count {
        return Err(keys.wrong("num_experts_per_tok", format!("at most num_local_experts, {count}")));
    }
    Ok(Experts { count, per_token })
}

fn sliding(keys: Keys<'_>, config: &ModelConfig) -> Result<Option<sepal_core::Window>, OpenError> {
    let all = || vec![true; config.n_blocks];
    match config.family {
        // A Mistral that says nothing has a window; one with `layer_types` is what transformers calls a Ministral.
        Family::Mistral => {
            let size = keys.count_unless_null("sliding_window", 4096)?;
            let usual = || if size.is_some() { all() } else { Vec::new() };
            window(keys, config, size, layer_types(keys, config.n_blocks)?.unwrap_or_else(usual))
        }
        Family::Mixtral => match keys.optional_count("sliding_window")? {
            None => Ok(None),
            size => window(keys, config, size, all()),
        },
        Family::Qwen2 | Family::Qwen3 => {
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
            window(keys, config, size, blocks)
        }
        // What a Llama says of windows, transformers does not read.
        _ => Ok(None),
    }
}
