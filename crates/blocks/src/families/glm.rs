//! GLM-4 as it was published first (arXiv 2406.12793): as Llama, with adjacent numbers of a head as rotated pairs, and gate and
//! up in one layer.

use sepal_core::{Family, ModelConfig};

use super::llama::{self, refuse_head_norms, with_attention};
use super::parts::heads;
use super::phi3::gate_up_mlp;
use super::spec::FamilySpec;
use crate::exec::block::Block;
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec { family: Family::Glm, block, has_adjacent_pairs: true, ..llama::SPEC };

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    // Those of GLM-4-0414.
    reader.refuse("post_self_attn_layernorm.weight")?;
    reader.refuse("post_mlp_layernorm.weight")?;
    block_without_output_norms(reader, config, block_idx)
}

/// Reads a block without norms of the outputs of attention and MLP.
pub(super) fn block_without_output_norms(
    reader: &Reader<'_>,
    config: &ModelConfig,
    block_idx: usize,
) -> Result<Block, LoadError> {
    refuse_head_norms(reader)?;
    let norm = |name: &str| reader.rms(name, config.hidden);
    let mlp = gate_up_mlp(reader, config, &norm("post_attention_layernorm")?)?;
    with_attention(reader, config, heads(config, block_idx), Some(&norm("input_layernorm")?), mlp)
}
