use sepal_core::{Activation, Family, ModelConfig, ScoreRule};

use super::{activation, initializer_range, only};
use crate::error::OpenError;
use crate::keys::Keys;

pub(super) fn read(keys: Keys<'_>) -> Result<ModelConfig, OpenError> {
    only(keys, "add_cross_attention", false)?;
    let (hidden, n_heads) = (keys.count("n_embd")?, keys.count("n_head")?);
    if !hidden.is_multiple_of(n_heads) {
        return Err(keys.wrong("n_head", format!("a divisor of n_embd, {hidden}")));
    }
    let ffn = keys.optional_count("n_inner")?.unwrap_or(4 * hidden);
    let plain =
        ModelConfig::plain(Family::Gpt2, keys.count("n_layer")?, hidden, n_heads, ffn, keys.count("vocab_size")?);
    let known = [Activation::GeluTanh, Activation::Gelu, Activation::Relu];
    Ok(ModelConfig {
        norm_eps: keys.optional_positive("layer_norm_epsilon")?.unwrap_or(1e-5),
        initializer_range: initializer_range(keys)?,
        max_positions: Some(keys.optional_count("n_positions")?.unwrap_or(1024)),
        activation: activation(keys, "activation_function", &known, Activation::GeluTanh)?,
        scores: ScoreRule {
            scale: (keys.optional_flag("scale_attn_weights")? == Some(false)).then_some(1.0),
            by_block: keys.flag("scale_attn_by_inverse_layer_idx")?,
            ..plain.scores.clone()
        },
        ..plain
    })
}
