//! OPT (arXiv 2205.01068): learned positions, LayerNorm, attention, LayerNorm, ReLU.

use sepal_core::{Family, ModelConfig};
use tch::Tensor;

use super::llama;
use super::parts::{heads, layer_norm, plain_block, plain_mlp};
use super::spec::{EndNames, EndNorm, FamilySpec};
use crate::exec::block::Block;
use crate::layers::linear::Layer;
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Opt,
    block,
    ends: EndNames {
        embedding: "decoder.embed_tokens",
        final_norm: "decoder.final_layer_norm",
        kind: EndNorm::Layer,
        ..llama::SPEC.ends
    },
    positions: Some(positions),
    has_equal_heads: true,
    ..llama::SPEC
};

/// Number of unused rows at the start of the table.
const UNUSED: usize = 2;

fn positions(reader: &Reader<'_>, config: &ModelConfig, name: &str) -> Result<Tensor, LoadError> {
    let count = config.max_positions.unwrap_or(2048);
    let all = reader.tensor(name, &[count + UNUSED, config.hidden])?;
    Ok(all.f_narrow(0, UNUSED as i64, count as i64)?)
}

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    let &ModelConfig { hidden, ffn, .. } = config;
    let norm = reader.layer_norm("self_attn_layer_norm", hidden)?;
    let layer = |name: &str| reader.layer(name, hidden, hidden);
    let kv = Layer::stacked(vec![layer("self_attn.k_proj")?, layer("self_attn.v_proj")?])?;
    let mlp_norm = reader.layer_norm("final_layer_norm", hidden)?;
    let up = reader.layer("fc1", ffn, hidden)?.after(&mlp_norm)?;
    let q = layer("self_attn.q_proj")?.after(&norm)?;
    let attention = [q, kv.after(&norm)?, layer("self_attn.out_proj")?];
    let mlp = plain_mlp(reader, config, up, reader.layer("fc2", hidden, ffn)?)?;
    plain_block(reader, heads(config, block_idx), layer_norm(config), attention, mlp)
}
