//! StableLM without norms of heads, which are all sizes but the 12b.

use sepal_core::{Activation, Family, ModelConfig};

use super::{activation, head_dim, n_kv_heads, only, rotary, usual};
use crate::error::OpenError;
use crate::keys::Keys;

pub(super) fn read(keys: Keys<'_>) -> Result<ModelConfig, OpenError> {
    only(keys, "qk_layernorm", false)?;
    let usual = usual(keys, Family::Stablelm)?;
    let mut config = ModelConfig {
        n_kv_heads: n_kv_heads(keys, "num_key_value_heads", usual.n_heads, None)?,
        head_dim: head_dim(keys, &usual, None)?,
        norm_eps: keys.optional_positive("layer_norm_eps")?.unwrap_or(1e-5),
        activation: activation(keys, "hidden_act", &[Activation::Silu], Activation::Silu)?,
        is_parallel: keys.flag("use_parallel_residual")?,
        ..usual
    };
    let (rope, max_positions) = rotary(keys, &config, 0.25)?;
    (config.rope, config.max_positions) = (Some(rope), max_positions);
    Ok(config)
}
