//! Phi-3 and Phi-4.

use sepal_core::{Activation, Family, ModelConfig, ScoreRule};

use super::{activation, eps, head_dim, n_kv_heads, rotary, usual, window};
use crate::error::OpenError;
use crate::keys::Keys;

pub(super) fn read(keys: Keys<'_>) -> Result<ModelConfig, OpenError> {
    let usual = usual(keys, Family::Phi3)?;
    let mut config = ModelConfig {
        n_kv_heads: n_kv_heads(keys, &usual)?,
        head_dim: head_dim(keys, &usual)?,
        norm_eps: eps(keys, "rms_norm_eps", Family::Phi3)?,
        activation: activation(keys, "hidden_act", &[Activation::Silu], Activation::Silu)?,
        ..usual
    };
    let (rope, max_positions) = rotary(keys, &config)?;
    (config.rope, config.max_positions) = (Some(rope), max_positions);
    if let Some(size) = keys.optional_count("sliding_window")? {
        let window = window(keys, &config, Some(size), vec![true; config.n_blocks])?;
        config.scores = ScoreRule { window, ..config.scores };
    }
    Ok(config)
}
