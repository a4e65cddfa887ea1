use sepal_core::{Activation, Family, ModelConfig};

use super::{activation, head_dim, rotary, usual};
use crate::error::OpenError;
use crate::keys::Keys;

/// GPT-NeoX and Pythia.
pub(super) fn read(keys: Keys<'_>) -> Result<ModelConfig, OpenError> {
    let usual = usual(keys, Family::GptNeox)?;
    let known = [Activation::Gelu, Activation::GeluTanh, Activation::Relu];
    let mut config = ModelConfig {
        head_dim: head_dim(keys, &usual, None)?,
        norm_eps: keys.optional_positive("layer_norm_eps")?.unwrap_or(1e-5),
        activation: activation(keys, "hidden_act", &known, Activation::Gelu)?,
        is_parallel: keys.optional_flag("use_parallel_residual")?.unwrap_or(true),
        ..usual
    };
    let share = keys.optional_positive("rotary_pct")?.unwrap_or(0.25);
    let (mut rope, limit) = rotary(keys, &config, share)?;
    if let Some(theta) = keys.optional_positive("rotary_emb_base")? {
        rope.theta = theta;
    }
    (config.rope, config.max_positions) = (Some(rope), limit);
    Ok(config)
}
