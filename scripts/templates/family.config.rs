//! @TYPE@.
//!
//! Start here: these are a Llama's keys. Defaults are those of the configuration class of transformers (class.rs), and
//! linear layers that have no biases are in refused.rs; a key that asks for what the blocks do not do is refused. Take out
//! the comments that are answered.

use sepal_core::{Activation, Family, ModelConfig};

use super::{activation, eps, head_dim, n_kv_heads, rotary, usual};
use crate::error::OpenError;
use crate::keys::Keys;

pub(super) fn read(keys: Keys<'_>) -> Result<ModelConfig, OpenError> {
    // Sizes under other names: `ModelConfig::plain` (bloom.rs, opt.rs).
    let usual = usual(keys, Family::@TYPE@)?;
    let mut config = ModelConfig {
        n_kv_heads: n_kv_heads(keys, &usual)?,
        head_dim: head_dim(keys, &usual)?,
        norm_eps: eps(keys, "rms_norm_eps", Family::@TYPE@)?,
        activation: activation(keys, "hidden_act", &[Activation::Silu], Activation::Silu)?,
        // `is_parallel` (gpt_neox.rs), `experts` (llama.rs).
        ..usual
    };
    // Positions: `Rotary::share` (rope.rs) says whether a part of a head turns. Learned ones: opt.rs.
    let (rope, max_positions) = rotary(keys, &config)?;
    (config.rope, config.max_positions) = (Some(rope), max_positions);
    // `config.scores`: a window (phi3.rs), another scale, a cap (gemma.rs), ALiBi (falcon.rs).
    Ok(config)
}
