//! Llama: RMSNorm, attention with rotary positions and grouped queries, RMSNorm, a gated MLP. Biases are read if the
//! checkpoint has them.

use sepal_core::{Family, ModelConfig};

use super::parts::{from_queries, heads, plain_block, queries, rms_norm};
use super::spec::{EndNames, EndNorm, FamilySpec};
use crate::attention::heads::Heads;
use crate::exec::block::Block;
use crate::layers::dense::{Activate, Dense};
use crate::layers::linear::{Layer, Linear};
use crate::layers::mlp::Mlp;
use crate::layers::norm::{HeadNorms, NormWeights, WeightedNorm};
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Llama,
    block,
    ends: EndNames {
        embedding: "embed_tokens",
        scales_embedding: false,
        embedding_norm: None,
        final_norm: "norm",
        kind: EndNorm::Rms,
    },
    positions: None,
    has_equal_heads: false,
    has_adjacent_pairs: false,
    rounds_alibi: false,
};

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    refuse_head_norms(reader)?;
    block_with_head_norms(reader, config, block_idx, None)
}

pub(super) fn block_with_head_norms(
    reader: &Reader<'_>,
    config: &ModelConfig,
    block_idx: usize,
    head_norms: Option<HeadNorms>,
) -> Result<Block, LoadError> {
    reader.refuse("post_feedforward_layernorm.weight")?;
    let mlp_norm = reader.rms("post_attention_layernorm", config.hidden)?;
    let mlp = Mlp::Dense(gated(reader, config, "mlp", ["gate_proj", "up_proj", "down_proj"], Some(&mlp_norm))?);
    let attention_norm = reader.rms("input_layernorm", config.hidden)?;
    let block = with_attention(reader, config, heads(config, block_idx), Some(&attention_norm), mlp)?;
    Ok(Block { head_norms, ..block })
}

/// Refuses norms of heads, which the block would leave out.
pub(super) fn refuse_head_norms(reader: &Reader<'_>) -> Result<(), LoadError> {
    reader.refuse("self_attn.q_norm.weight")
}

/// A block with the attention of a Llama after `norm`, without norms of heads.
pub(super) fn with_attention(
    reader: &Reader<'_>,
    config: &ModelConfig,
    heads: Heads,
    norm: Option<&NormWeights>,
    mlp: Mlp,
) -> Result<Block, LoadError> {
    let &ModelConfig { hidden, n_heads, n_kv_heads, head_dim, .. } = config;
    let q = reader.layer("self_attn.q_proj", n_heads * head_dim, hidden)?;
    let k = reader.layer("self_attn.k_proj", n_kv_heads * head_dim, hidden)?;
    let v = reader.layer("self_attn.v_proj", n_kv_heads * head_dim, hidden)?;
    let output = reader.layer("self_attn.o_proj", hidden, n_heads * head_dim)?;
    let q = q.map_rows(|rows| queries(heads, rows))?.after_optional(norm)?;
    let kv = Layer::stacked(vec![k, v])?.after_optional(norm)?;
    plain_block(reader, heads, rms_norm(config), [q, kv, from_queries(heads, output)?], mlp)
}

pub(super) fn head_norms(reader: &Reader<'_>, config: &ModelConfig) -> Result<HeadNorms, LoadError> {
    let norm = |name: &str| {
        let weight = reader.tensor(&format!("self_attn.{name}.weight"), &[config.head_dim])?;
        Ok::<_, LoadError>(WeightedNorm { norm: rms_norm(config), weight })
    };
    Ok(HeadNorms { q: norm("q_norm")?, k: norm("k_norm")? })
}

/// A gated MLP after `norm`, whose layers are `names` in `folder`: gate, up and down.
pub(super) fn gated(
    reader: &Reader<'_>,
    config: &ModelConfig,
    folder: &str,
    names: [&str; 3],
    norm: Option<&NormWeights>,
) -> Result<Dense, LoadError> {
    let &ModelConfig { hidden, ffn, .. } = config;
    let [gate, up, down] = names.map(|name| format!("{folder}.{name}"));
    let up = Layer::stacked(vec![reader.layer(&gate, ffn, hidden)?, reader.layer(&up, ffn, hidden)?])?;
    let up = up.after_optional(norm)?;
    let down: Linear = reader.frozen(reader.layer(&down, hidden, ffn)?)?;
    let activation = Activate { function: config.activation, is_gated: true };
    Ok(Dense { activation, up: reader.frozen(up)?, down })
}
