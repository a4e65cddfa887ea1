use sepal_core::{Activation, Family, ModelConfig, ScoreRule};

use super::{activation, initializer_range, n_kv_heads, rotary};
use crate::error::OpenError;
use crate::keys::Keys;

/// Falcon as its 7b (one head of keys), its 40b (groups, two norms), its 11b (groups, one norm) and its rw (ALiBi).
pub(super) fn read(keys: Keys<'_>) -> Result<ModelConfig, OpenError> {
    let either = |new: &str, old: &str| keys.optional_count(new)?.map_or_else(|| keys.count(old), Ok);
    let hidden = keys.count("hidden_size")?;
    let n_heads = either("num_attention_heads", "n_head")?;
    if !hidden.is_multiple_of(2 * n_heads) {
        return Err(keys.wrong("num_attention_heads", format!("heads of an even size in a hidden size of {hidden}")));
    }
    let ffn = keys.optional_count("ffn_hidden_size")?.unwrap_or(4 * hidden);
    let n_blocks = either("num_hidden_layers", "n_layer")?;
    let plain = ModelConfig::plain(Family::Falcon, n_blocks, hidden, n_heads, ffn, keys.count("vocab_size")?);
    let is_new = keys.flag("new_decoder_architecture")?;
    let has_alibi = keys.optional_flag("alibi")?.unwrap_or(false);
    let kv_key = if keys.has("n_head_kv") { "n_head_kv" } else { "num_kv_heads" };
    let mut config = ModelConfig {
        n_kv_heads: match (is_new, keys.optional_flag("multi_query")?.unwrap_or(true)) {
            (true, _) => n_kv_heads(keys, kv_key, n_heads, Some(n_heads))?,
            (false, true) => 1,
            (false, false) => n_heads,
        },
        norm_eps: keys.optional_positive("layer_norm_epsilon")?.unwrap_or(1e-5),
        initializer_range: initializer_range(keys)?,
        max_positions: keys.optional_count("max_position_embeddings")?.or(Some(2048)),
        activation: activation(keys, "activation", &[Activation::Gelu, Activation::GeluTanh], Activation::Gelu)?,
        is_parallel: is_new || keys.optional_flag("parallel_attn")?.unwrap_or(true),
        scores: ScoreRule { alibi: has_alibi, ..plain.scores.clone() },
        ..plain
    };
    (config.rope, config.max_positions) = match has_alibi {
        // Scores that fall with distance have no longest one.
        true => (None, None),
        false => {
            let (rope, limit) = rotary(keys, &config, 1.0)?;
            (Some(rope), limit)
        }
    };
    Ok(config)
}
