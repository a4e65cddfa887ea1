//! Mixtral (arXiv 2401.04088): as Llama, with a mixture of experts instead of the MLP.

use sepal_core::{Family, ModelConfig};

use super::experts::{ExpertNames, MLP, routed};
use super::llama::{self, refuse_head_norms, with_attention};
use super::parts::heads;
use super::spec::FamilySpec;
use crate::exec::block::Block;
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec { family: Family::Mixtral, block, ..llama::SPEC };

pub(super) const NAMES: ExpertNames = ExpertNames { folder: "block_sparse_moe", layers: ["w1", "w3", "w2"], ..MLP };

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    refuse_head_norms(reader)?;
    let norm = reader.rms("post_attention_layernorm", config.hidden)?;
    let mlp = routed(reader, config, &NAMES, &norm)?;
    let norm = reader.rms("input_layernorm", config.hidden)?;
    with_attention(reader, config, heads(config, block_idx), Some(&norm), mlp)
}
