//! Phi-3 and Phi-4: as Llama, with queries, keys and values in one layer, and gate and up in another.

use sepal_core::{Family, ModelConfig};

use super::llama;
use super::parts::{from_queries, heads, plain_block, queries, rms_norm};
use super::spec::FamilySpec;
use crate::exec::block::Block;
use crate::layers::dense::{Activate, Dense};
use crate::layers::mlp::Mlp;
use crate::layers::norm::NormWeights;
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec { family: Family::Phi3, block, ..llama::SPEC };

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    let &ModelConfig { hidden, n_heads, n_kv_heads, head_dim, .. } = config;
    let heads = heads(config, block_idx);
    let (q_size, kv_size) = (n_heads * head_dim, n_kv_heads * head_dim);
    let norm = reader.rms("input_layernorm", hidden)?;
    let fused = reader.layer("self_attn.qkv_proj", q_size + 2 * kv_size, hidden)?.after(&norm)?;
    let output = reader.layer("self_attn.o_proj", hidden, q_size)?;
    let mlp_norm = reader.rms("post_attention_layernorm", hidden)?;
    let q = fused.part(0, q_size)?.map_rows(|rows| queries(heads, rows))?;
    let attention = [q, fused.part(q_size, 2 * kv_size)?, from_queries(heads, output)?];
    plain_block(reader, heads, rms_norm(config), attention, gate_up_mlp(reader, config, &mlp_norm)?)
}

/// A gated MLP after `norm`, with gate and up in one layer.
pub(super) fn gate_up_mlp(reader: &Reader<'_>, config: &ModelConfig, norm: &NormWeights) -> Result<Mlp, LoadError> {
    let &ModelConfig { hidden, ffn, .. } = config;
    let up = reader.layer("mlp.gate_up_proj", 2 * ffn, hidden)?.after(norm)?;
    let down = reader.layer("mlp.down_proj", hidden, ffn)?;
    let activation = Activate { function: config.activation, is_gated: true };
    Ok(Mlp::Dense(Dense { activation, up: reader.frozen(up)?, down: reader.frozen(down)? }))
}
