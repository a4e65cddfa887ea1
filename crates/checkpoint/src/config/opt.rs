use sepal_core::{Activation, Family, ModelConfig};

use super::class::Class;
use super::{activation, initializer_range, only};
use crate::error::OpenError;
use crate::keys::Keys;

/// OPT with norms before attention and MLP, which are all sizes but 350m.
pub(super) fn read(keys: Keys<'_>) -> Result<ModelConfig, OpenError> {
    only(keys, "do_layer_norm_before", true)?;
    only(keys, "_remove_final_layer_norm", false)?;
    only(keys, "layer_norm_elementwise_affine", true)?;
    let class = Class::of(Family::Opt);
    let hidden = keys.count_of(&["hidden_size"], class.hidden)?;
    let n_heads = keys.count_of(&["num_attention_heads"], class.n_heads)?;
    if keys.optional_count("word_embed_proj_dim")?.is_some_and(|dim| dim != hidden) {
        return Err(keys.unsupported("word_embed_proj_dim", format!("hidden_size, {hidden}")));
    }
    if !hidden.is_multiple_of(n_heads) {
        return Err(keys.wrong("num_attention_heads", format!("a divisor of hidden_size, {hidden}")));
    }
    let n_blocks = keys.count_of(&["num_hidden_layers"], class.n_blocks)?;
    let vocab_size = keys.count_of(&["vocab_size"], class.vocab_size)?;
    let ffn = keys.count_of(&["ffn_dim"], class.ffn.unwrap_or(4 * hidden))?;
    let plain = ModelConfig::plain(Family::Opt, n_blocks, hidden, n_heads, ffn, vocab_size);
    let known = [Activation::Relu, Activation::Gelu, Activation::GeluTanh];
    Ok(ModelConfig {
        initializer_range: keys.optional_positive("init_std")?.map_or_else(|| initializer_range(keys), Ok)?,
        max_positions: Some(keys.count_of(&["max_position_embeddings"], class.max_positions)?),
        activation: activation(keys, "activation_function", &known, Activation::Relu)?,
        ..plain
    })
}
