//! Qwen3-MoE (arXiv 2505.09388): as Qwen3, with a mixture of experts instead of the MLP.

use sepal_core::{Family, ModelConfig};

use super::llama::{self, head_norms};
use super::qwen2_moe::block_with_experts;
use super::spec::FamilySpec;
use crate::exec::block::Block;
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec { family: Family::Qwen3Moe, block, ..llama::SPEC };

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    reader.refuse("mlp.shared_expert_gate.weight")?;
    let head_norms = Some(head_norms(reader, config)?);
    Ok(Block { head_norms, ..block_with_experts(reader, config, block_idx)? })
}
