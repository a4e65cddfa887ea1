//! Phi-3.5-MoE (arXiv 2404.14219): as Mixtral, with LayerNorms, and experts weighted by a SparseMixer.

use sepal_core::{Family, ModelConfig};

use super::experts::routed;
use super::llama::{self, refuse_head_norms, with_attention};
use super::mixtral;
use super::parts::{heads, layer_norm};
use super::spec::{EndNames, EndNorm, FamilySpec};
use crate::exec::block::Block;
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Phimoe,
    block,
    ends: EndNames { kind: EndNorm::Layer, ..llama::SPEC.ends },
    ..llama::SPEC
};

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    refuse_head_norms(reader)?;
    let norm = reader.layer_norm("post_attention_layernorm", config.hidden)?;
    let mlp = routed(reader, config, &mixtral::NAMES, &norm)?;
    let norm = reader.layer_norm("input_layernorm", config.hidden)?;
    let block = with_attention(reader, config, heads(config, block_idx), Some(&norm), mlp)?;
    Ok(Block { norm: layer_norm(config), ..block })
}
