use sepal_core::{Family, ModelConfig};

use super::{initializer_range, only};
use crate::error::OpenError;
use crate::keys::Keys;

pub(super) fn read(keys: Keys<'_>) -> Result<ModelConfig, OpenError> {
    only(keys, "apply_residual_connection_post_layernorm", false)?;
    // The older name, where there is one, is what transformers takes.
    let either = |old: &str, new: &str| keys.optional_count(old)?.map_or_else(|| keys.count(new), Ok);
    let (hidden, n_heads) = (either("n_embed", "hidden_size")?, either("num_attention_heads", "n_head")?);
    if !hidden.is_multiple_of(n_heads) {
        return Err(keys.wrong("n_head", format!("a divisor of the hidden size {hidden}")));
    }
    let n_blocks = either("num_hidden_layers", "n_layer")?;
    let plain = ModelConfig::plain(Family::Bloom, n_blocks, hidden, n_heads, 4 * hidden, keys.count("vocab_size")?);
    Ok(ModelConfig {
        norm_eps: keys.optional_positive("layer_norm_epsilon")?.unwrap_or(1e-5),
        initializer_range: initializer_range(keys)?,
        ..plain
    })
}
