//! Llama and those that write their configuration as it does.

use sepal_core::{Activation, Experts, Family, ModelConfig, ScoreRule};

use super::{activation, head_dim, n_kv_heads, rotary, usual, window};
use crate::error::OpenError;
use crate::keys::Keys;

pub(super) fn read(keys: Keys<'_>, family: Family) -> Result<ModelConfig, OpenError> {
    let usual = usual(keys, family)?;
    // Only Llama's default is the number of query heads; the others' is a number of one checkpoint.
    let is_stated = keys.has("num_key_value_heads") || family == Family::Llama;
    let n_heads = usual.n_heads;
    let mut config = ModelConfig {
        n_kv_heads: n_kv_heads(keys, "num_key_value_heads", n_heads, is_stated.then_some(n_heads))?,
        head_dim: head_dim(keys, &usual, (family == Family::Qwen3).then_some(128))?,
        norm_eps: keys.optional_positive("rms_norm_eps")?.unwrap_or(default_eps(family)),
        activation: activation(keys, "hidden_act", &[Activation::Silu], Activation::Silu)?,
        experts: (family == Family::Mixtral).then(|| experts(keys)).transpose()?,
        ..usual
    };
    let (rope, max_positions) = rotary(keys, &config, 1.0)?;
    if rope.dim != config.head_dim {
        return Err(keys.unsupported("partial_rotary_factor", "1"));
    }
    (config.rope, config.max_positions) = (Some(rope), max_positions);
    config.scores = ScoreRule { window: sliding(keys, &config)?, ..config.scores };
    Ok(config)
}

fn default_eps(family: Family) -> f64 {
    if family == Family::Mixtral { 1e-5 } else { 1e-6 }
}

fn experts(keys: Keys<'_>) -> Result<Experts, OpenError> {
    let count = keys.optional_count("num_local_experts")?.unwrap_or(8);
    let per_token = keys.optional_count("num_experts_per_tok")?.unwrap_or(2);
    if per_token > count {
        return Err(keys.wrong("num_experts_per_tok", format!("at most num_local_experts, {count}")));
    }
    Ok(Experts { count, per_token })
}

fn sliding(keys: Keys<'_>, config: &ModelConfig) -> Result<Option<sepal_core::Window>, OpenError> {
    let stated = keys.optional_count("sliding_window")?;
    match config.family {
        // A Mistral that says nothing has transformers' default window.
        Family::Mistral => {
            let size = if keys.has("sliding_window") { stated } else { Some(4096) };
            window(keys, config, size, |_| true)
        }
        Family::Mixtral => window(keys, config, stated, |_| true),
        Family::Qwen2 | Family::Qwen3 => {
            let is_used = keys.flag("use_sliding_window")?;
            let size = is_used.then(|| stated.unwrap_or(4096));
            let first = keys.optional_index("max_window_layers")?.unwrap_or(28);
            window(keys, config, size, |block_idx| is_used && block_idx >= first)
        }
        // What a Llama says of windows, transformers does not read.
        _ => Ok(None),
    }
}
