use sepal_core::{Activation, Family, ModelConfig, ScoreRule};

use super::class::Class;
use super::{activation, eps, initializer_range, rotary};
use crate::error::OpenError;
use crate::keys::Keys;

/// Falcon as its 7b (one head of keys), its 40b (groups, two norms), its 11b (groups, one norm) and its rw (ALiBi).
pub(super) fn read(keys: Keys<'_>) -> Result<ModelConfig, OpenError> {
    let class = Class::of(Family::Falcon);
    let hidden = keys.count_of(&["n_embed", "hidden_size"], class.hidden)?;
    let n_heads = keys.count_of(&["num_attention_heads", "n_head"], class.n_heads)?;
    if !hidden.is_multiple_of(2 * n_heads) {
        return Err(keys.wrong("num_attention_heads", format!("heads of an even size in a hidden size of {hidden}")));
    }
    let ffn = keys.optional_count("ffn_hidden_size")?.unwrap_or(4 * hidden);
    let n_blocks = keys.count_of(&["num_hidden_layers", "n_layer"], class.n_blocks)?;
    let vocab_size = keys.count_of(&["vocab_size"], class.vocab_size)?;
    let plain = ModelConfig::plain(Family::Falcon, n_blocks, hidden, n_heads, ffn, vocab_size);
    let is_new = keys.flag("new_decoder_architecture")?;
    let has_alibi = keys.flag("alibi")?;
    let n_kv_heads = n_kv_heads(keys, is_new, n_heads)?;
    // Slopes are those of query heads, so that none may share its keys.
    if has_alibi && n_kv_heads != n_heads {
        return Err(match is_new {
            true => keys.unsupported("num_kv_heads", format!("{n_heads} where `alibi` is true, one for each head")),
            false => keys.unsupported("multi_query", "false where `alibi` is true"),
        });
    }
    let mut config = ModelConfig {
        n_kv_heads,
        norm_eps: eps(keys, "layer_norm_epsilon", Family::Falcon)?,
        initializer_range: initializer_range(keys)?,
        max_positions: keys.optional_count("max_position_embeddings")?.or(Some(class.max_positions)),
        activation: activation(keys, "activation", &[Activation::Gelu, Activation::GeluTanh], Activation::Gelu)?,
        is_parallel: is_new || keys.flag_unless_null("parallel_attn", true)?,
        scores: ScoreRule { alibi: has_alibi, ..plain.scores.clone() },
        ..plain
    };
    (config.rope, config.max_positions) = match has_alibi {
        // Scores that fall with distance have no longest one.
        true => (None, None),
        false => {
            let (rope, limit) = rotary(keys, &config)?;
            (Some(rope), limit)
        }
    };
    Ok(config)
}

/// Heads of keys: some in the new architecture, else one or all. `n_head_kv` is an older name.
fn n_kv_heads(keys: Keys<'_>, is_new: bool, n_heads: usize) -> Result<usize, OpenError> {
    let key = if keys.get("num_kv_heads").is_some() { "num_kv_heads" } else { "n_head_kv" };
    let stated = keys.optional_count(key)?.unwrap_or(n_heads);
    match (is_new, keys.flag_unless_null("multi_query", true)?) {
        (true, _) if n_heads.is_multiple_of(stated) => Ok(stated),
        (true, _) => Err(keys.wrong(key, format!("a divisor of num_attention_heads, {n_heads}"))),
        (false, true) => Ok(1),
        (false, false) if stated == n_heads => Ok(n_heads),
        (false, false) => Err(keys.unsupported(key, format!("{n_heads} where `multi_query` is false"))),
    }
}
