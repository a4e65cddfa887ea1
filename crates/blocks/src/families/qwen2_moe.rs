//! Qwen2-MoE (arXiv 2407.10671): as Qwen2, with a mixture of experts and an expert that all positions pass.

use sepal_core::{Family, ModelConfig};

use super::experts::{MLP, routed};
use super::llama::{self, refuse_head_norms, with_attention};
use super::parts::heads;
use super::spec::FamilySpec;
use crate::exec::block::Block;
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec { family: Family::Qwen2Moe, block, ..llama::SPEC };

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    refuse_head_norms(reader)?;
    block_with_experts(reader, config, block_idx)
}

/// A block with a mixture of experts, without norms of heads.
pub(super) fn block_with_experts(
    reader: &Reader<'_>,
    config: &ModelConfig,
    block_idx: usize,
) -> Result<Block, LoadError> {
    let mlp = routed(reader, config, &MLP, &reader.rms("post_attention_layernorm", config.hidden)?)?;
    let norm = reader.rms("input_layernorm", config.hidden)?;
    with_attention(reader, config, heads(config, block_idx), Some(&norm), mlp)
}
