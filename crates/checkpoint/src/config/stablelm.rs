//! StableLM without norms of heads, which are all sizes but the 12b.

use sepal_core::{Activation, Family, ModelConfig};

use super::{activation, eps, n_kv_heads, only, rotary, share_of_hidden, usual};
use crate::error::OpenError;
use crate::keys::Keys;

pub(super) fn read(keys: Keys<'_>) -> Result<ModelConfig, OpenError> {
    only(keys, "qk_layernorm", false)?;
    let usual = usual(keys, Family::Stablelm)?;
    let mut config = ModelConfig {
        n_kv_heads: n_kv_heads(keys, &usual)?,
        head_dim: share_of_hidden(keys, &usual)?,
        norm_eps: eps(keys, "layer_norm_eps", Family::Stablelm)?,
        activation: activation(keys, "hidden_act", &[Activation::Silu], Activation::Silu)?,
        is_parallel: keys.flag("use_parallel_residual")?,
        ..usual
    };
    let (rope, max_positions) = rotary(keys, &config)?;
    (config.rope, config.max_positions) = (Some(rope), max_positions);
    Ok(config)
}
