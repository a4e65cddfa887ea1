//! @TYPE@.
//!
//! Start here: these are a Llama's keys. Defaults are those of the configuration class of transformers; a key that asks
//! for what the blocks do not do is refused. Take out the comments that are answered.

use sepal_core::{Activation, Family, ModelConfig};

use super::{activation, head_dim, n_kv_heads, rotary, usual};
use crate::error::OpenError;
use crate::keys::Keys;

pub(super) fn read(keys: Keys<'_>) -> Result<ModelConfig, OpenError> {
    // Sizes under other names: `ModelConfig::plain` (bloom.rs, opt.rs).
    let usual = usual(keys, Family::@TYPE@)?;
    let n_heads = usual.n_heads;
    let mut config = ModelConfig {
        n_kv_heads: n_kv_heads(keys, "num_key_value_heads", n_heads, Some(n_heads))?,
        head_dim: head_dim(keys, &usual, None)?,
        norm_eps: keys.optional_positive("rms_norm_eps")?.unwrap_or(1e-6),
        activation: activation(keys, "hidden_act", &[Activation::Silu], Activation::Silu)?,
        // `is_parallel` (gpt_neox.rs), `experts` (llama.rs).
        ..usual
    };
    // Positions: the last number is the share of a head that turns if the file does not say. Learned ones: opt.rs.
    let (rope, max_positions) = rotary(keys, &config, 1.0)?;
    (config.rope, config.max_positions) = (Some(rope), max_positions);
    // `config.scores`: a window (phi3.rs), another scale, a cap (gemma.rs), ALiBi (falcon.rs).
    Ok(config)
}
