use sepal_core::{Family, ModelConfig};

use super::class::Class;
use super::{eps, initializer_range, only};
use crate::error::OpenError;
use crate::keys::Keys;

/// BLOOM. Of the two names of a size, the one that is not of the configuration class counts for more.
pub(super) fn read(keys: Keys<'_>) -> Result<ModelConfig, OpenError> {
    only(keys, "apply_residual_connection_post_layernorm", false)?;
    // In slices, products are added up without their biases.
    if keys.optional_count("pretraining_tp")?.is_some_and(|slices| slices > 1) {
        only(keys, "slow_but_exact", false)?;
    }
    let class = Class::of(Family::Bloom);
    let hidden = keys.count_of(&["n_embed", "hidden_size"], class.hidden)?;
    let n_heads = keys.count_of(&["num_attention_heads", "n_head"], class.n_heads)?;
    if !hidden.is_multiple_of(n_heads) {
        return Err(keys.wrong("n_head", format!("a divisor of the hidden size {hidden}")));
    }
    let n_blocks = keys.count_of(&["num_hidden_layers", "n_layer"], class.n_blocks)?;
    let vocab_size = keys.count_of(&["vocab_size"], class.vocab_size)?;
    Ok(ModelConfig {
        norm_eps: eps(keys, "layer_norm_epsilon", Family::Bloom)?,
        initializer_range: initializer_range(keys)?,
        ..ModelConfig::plain(Family::Bloom, n_blocks, hidden, n_heads, 4 * hidden, vocab_size)
    })
}
