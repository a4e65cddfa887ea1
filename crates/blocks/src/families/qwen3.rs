//! Qwen3: as Llama, with norms of heads.

use sepal_core::{Family, ModelConfig};

use super::llama::{self, block_with_head_norms, head_norms};
use super::spec::FamilySpec;
use crate::exec::block::Block;
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec { family: Family::Qwen3, block, ..llama::SPEC };

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    block_with_head_norms(reader, config, block_idx, Some(head_norms(reader, config)?))
}
