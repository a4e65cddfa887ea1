//! Falcon: the 7b (one key head), the 40b (grouped heads, two norms), the 11b (grouped heads, one norm) and the rw
//! models (ALiBi).

use sepal_core::{Activation, Family, ModelConfig, ScoreRule};

use super::bloom;
use crate::config::{rotary, sizes};
use crate::error::OpenError;
use crate::family::{
    ClassDefaults, ConfigKeys, FamilySpec, GgufSpec, Parallel, PositionEncoding, RotaryKeys, RowOrder, WithoutBias,
};
use crate::keys::Keys;
use crate::linear_sites;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Falcon,
    classifier: Some("FalconForSequenceClassification"),
    tensors: bloom::SPEC.tensors,
    positions: PositionEncoding::Rotary,
    activations: &[Activation::Gelu, Activation::GeluTanh],
    keys: ConfigKeys { ffn: Some("ffn_hidden_size"), activation: Some("activation"), ..bloom::SPEC.keys },
    defaults: ClassDefaults { vocab_size: 65_024, hidden: 4544, n_heads: 71, ..ClassDefaults::LAYER_NORMS },
    rotary: RotaryKeys::USUAL,
    read_config,
    sites: linear_sites::BLOOM,
    has_rows_of_inputs: false,
    has_stacked_experts: false,
    without_bias: &[WithoutBias {
        layers: &[".query_key_value", ".self_attention.dense", ".dense_h_to_4h", ".dense_4h_to_h"],
        unless: Some(("bias", false)),
    }],
    gguf: Some(GgufSpec {
        architecture: "falcon",
        block: &[bloom::FUSED],
        with_second_norm: &[("attn_norm", "ln_mlp"), ("attn_norm_2", "ln_attn")],
        ends: bloom::ENDS,
        rows: RowOrder::ConcatenatedHeads,
        parallel: Parallel::Always,
        ..GgufSpec::LAYER_NORMS
    }),
};

fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    let config = sizes(keys, spec)?;
    let ModelConfig { hidden, n_heads, .. } = config;
    if !hidden.is_multiple_of(2 * n_heads) {
        return Err(keys.wrong("num_attention_heads", format!("heads of an even size in a hidden size of {hidden}")));
    }
    let is_new = keys.flag("new_decoder_architecture")?;
    let has_alibi = keys.flag("alibi")?;
    let n_kv_heads = n_kv_heads(keys, is_new, n_heads)?;
    // ALiBi has a slope for each query head, so that query heads cannot share keys.
    if has_alibi && n_kv_heads != n_heads {
        return Err(match is_new {
            true => keys.unsupported("num_kv_heads", format!("{n_heads} where `alibi` is true, one for each head")),
            false => keys.unsupported("multi_query", "false where `alibi` is true"),
        });
    }
    let is_parallel = is_new || keys.flag_unless_null("parallel_attn", true)?;
    let config = ModelConfig { n_kv_heads, is_parallel, ..config };
    let max_positions = keys.optional_count("max_position_embeddings")?.unwrap_or(spec.defaults.max_positions);
    if has_alibi {
        // ALiBi has no longest sequence.
        let scores = ScoreRule { alibi: true, ..config.scores };
        return Ok(ModelConfig { rope: None, scores, ..config });
    }
    rotary(keys, spec, ModelConfig { max_positions: Some(max_positions), ..config })
}

/// Number of key heads: any divisor in the new architecture, else one or all. `n_head_kv` is an older name.
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
