use sepal_core::{Activation, Family, ModelConfig};

use super::{activation, eps, rotary, share_of_hidden, usual};
use crate::error::OpenError;
use crate::keys::Keys;

/// GPT-NeoX and Pythia.
pub(super) fn read(keys: Keys<'_>) -> Result<ModelConfig, OpenError> {
    let usual = usual(keys, Family::GptNeox)?;
    let known = [Activation::Gelu, Activation::GeluTanh, Activation::Relu];
    let mut config = ModelConfig {
        head_dim: share_of_hidden(keys, &usual)?,
        norm_eps: eps(keys, "layer_norm_eps", Family::GptNeox)?,
        activation: activation(keys, "hidden_act", &known, Activation::Gelu)?,
        is_parallel: keys.optional_flag("use_parallel_residual")?.unwrap_or(true),
        ..usual
    };
    let (rope, limit) = rotary(keys, &config)?;
    (config.rope, config.max_positions) = (Some(rope), limit);
    Ok(config)
}
