//! Cohere's Command R and Aya: a LayerNorm without bias before attention and an MLP beside it, and adjacent numbers of a head
//! as rotated pairs.

use sepal_core::{Family, ModelConfig};

use super::llama::{self, gated, refuse_head_norms, with_attention};
use super::parts::{heads, layer_norm};
use super::spec::{EndNames, EndNorm, FamilySpec};
use crate::exec::block::Block;
use crate::layers::mlp::Mlp;
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Cohere,
    block,
    ends: EndNames { kind: EndNorm::LayerWithoutBias, ..llama::SPEC.ends },
    has_adjacent_pairs: true,
    ..llama::SPEC
};

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    refuse_head_norms(reader)?;
    reader.refuse("post_attention_layernorm.weight")?;
    // The weight of a LayerNorm without bias is read as that of an RMSNorm.
    let norm = reader.rms("input_layernorm", config.hidden)?;
    let mlp = gated(reader, config, "mlp", ["gate_proj", "up_proj", "down_proj"], Some(&norm))?;
    let block = with_attention(reader, config, heads(config, block_idx), Some(&norm), Mlp::Dense(mlp))?;
    Ok(Block { norm: layer_norm(config), is_parallel: config.is_parallel, ..block })
}
