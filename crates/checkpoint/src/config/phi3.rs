//! Phi-3 and Phi-4.

use sepal_core::{Activation, Family, ModelConfig, ScoreRule};

use super::{activation, head_dim, n_kv_heads, rotary, usual, window};
use crate::error::OpenError;
use crate::keys::Keys;

pub(super) fn read(keys: Keys<'_>) -> Result<ModelConfig, OpenError> {
    let usual = usual(keys, Family::Phi3)?;
    let n_heads = usual.n_heads;
    let mut config = ModelConfig {
        n_kv_heads: n_kv_heads(keys, "num_key_value_heads", n_heads, Some(n_heads))?,
        head_dim: head_dim(keys, &usual, None)?,
        norm_eps: keys.optional_positive("rms_norm_eps")?.unwrap_or(1e-5),
        activation: activation(keys, "hidden_act", &[Activation::Silu], Activation::Silu)?,
        ..usual
    };
    let (rope, max_positions) = rotary(keys, &config, 1.0)?;
    (config.rope, config.max_positions) = (Some(rope), max_positions);
    let window = window(keys, &config, keys.optional_count("sliding_window")?, |_| true)?;
    config.scores = ScoreRule { window, ..config.scores };
    Ok(config)
}
