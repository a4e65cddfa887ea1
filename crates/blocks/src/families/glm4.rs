//! GLM-4-0414: as GLM, with norms of the outputs of attention and MLP as well.

use sepal_core::{Family, ModelConfig};

use super::glm;
use super::parts::output_norm;
use super::spec::FamilySpec;
use crate::exec::block::Block;
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec { family: Family::Glm4, block, ..glm::SPEC };

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    let norm = |name: &str| reader.rms(name, config.hidden);
    let attention_norm = Some(output_norm(config, norm("post_self_attn_layernorm")?));
    let mlp_norm = Some(output_norm(config, norm("post_mlp_layernorm")?));
    let block = glm::block_without_output_norms(reader, config, block_idx)?;
    Ok(Block { attention_norm, mlp_norm, ..block })
}
