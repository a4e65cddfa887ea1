use sepal_core::{Activation, Family, ModelConfig, ScoreRule};

use super::class::Class;
use super::{activation, eps, initializer_range, only};
use crate::error::OpenError;
use crate::keys::Keys;

/// GPT-2. Of the two names of a size, the common one counts for more.
pub(super) fn read(keys: Keys<'_>) -> Result<ModelConfig, OpenError> {
    only(keys, "add_cross_attention", false)?;
    let class = Class::of(Family::Gpt2);
    let hidden = keys.count_of(&["hidden_size", "n_embd"], class.hidden)?;
    let n_heads = keys.count_of(&["num_attention_heads", "n_head"], class.n_heads)?;
    if !hidden.is_multiple_of(n_heads) {
        return Err(keys.wrong("n_head", format!("a divisor of n_embd, {hidden}")));
    }
    let ffn = keys.optional_count("n_inner")?.unwrap_or(4 * hidden);
    let n_blocks = keys.count_of(&["num_hidden_layers", "n_layer"], class.n_blocks)?;
    let vocab_size = keys.count_of(&["vocab_size"], class.vocab_size)?;
    let plain = ModelConfig::plain(Family::Gpt2, n_blocks, hidden, n_heads, ffn, vocab_size);
    let known = [Activation::GeluTanh, Activation::Gelu, Activation::Relu];
    Ok(ModelConfig {
        norm_eps: eps(keys, "layer_norm_epsilon", Family::Gpt2)?,
        initializer_range: initializer_range(keys)?,
        max_positions: Some(keys.count_of(&["max_position_embeddings", "n_positions"], class.max_positions)?),
        activation: activation(keys, "activation_function", &known, Activation::GeluTanh)?,
        scores: ScoreRule {
            scale: (keys.optional_flag("scale_attn_weights")? == Some(false)).then_some(1.0),
            by_block: keys.flag("scale_attn_by_inverse_layer_idx")?,
            ..plain.scores.clone()
        },
        ..plain
    })
}
