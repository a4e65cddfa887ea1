//! GPT-OSS (arXiv 2508.10925): as Llama, with a sink in the softmax of each head, a window in every other block, and a
//! mixture of experts with biases and a clamped activation.

use sepal_core::{Family, ModelConfig};

use super::experts::{ExpertNames, MLP, routed};
use super::llama::{self, refuse_head_norms, with_attention};
use super::parts::{heads, queries};
use super::spec::FamilySpec;
use crate::attention::heads::Heads;
use crate::exec::block::Block;
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec { family: Family::GptOss, block, ..llama::SPEC };

const NAMES: ExpertNames = ExpertNames { router: "router", has_biases: true, ..MLP };

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    refuse_head_norms(reader)?;
    let mlp = routed(reader, config, &NAMES, &reader.rms("post_attention_layernorm", config.hidden)?)?;
    let norm = reader.rms("input_layernorm", config.hidden)?;
    let heads = heads(config, block_idx);
    let sinks = reader.tensor("self_attn.sinks", &[config.n_heads])?;
    // One number for each query head.
    let sinks = queries(Heads { dim: 1, ..heads }, &sinks)?;
    Ok(Block { sinks: Some(sinks), ..with_attention(reader, config, heads, Some(&norm), mlp)? })
}
