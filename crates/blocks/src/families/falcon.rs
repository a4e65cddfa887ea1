//! Falcon (arXiv 2311.16867): LayerNorm, attention with one or few heads of keys, and an MLP beside it; the rw models
//! have linear biases and one after the other.

use sepal_core::{Family, ModelConfig};

use super::llama;
use super::parts::{fused_block, heads};
use super::spec::{EndNames, EndNorm, FamilySpec};
use crate::exec::block::Block;
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Falcon,
    block,
    ends: EndNames { embedding: "word_embeddings", final_norm: "ln_f", kind: EndNorm::Layer, ..llama::SPEC.ends },
    rounds_alibi: true,
    ..llama::SPEC
};

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    let norm = |name: &str| reader.layer_norm(name, config.hidden);
    // The 40b has a norm for each of the two, the 7b and the 11b one for both.
    let (attention_norm, mlp_norm) = match (reader.has("ln_attn.weight"), config.is_parallel) {
        (true, _) => (norm("ln_attn")?, norm("ln_mlp")?),
        (false, true) => (norm("input_layernorm")?, norm("input_layernorm")?),
        (false, false) => (norm("input_layernorm")?, norm("post_attention_layernorm")?),
    };
    fused_block(reader, config, heads(config, block_idx), "self_attention", [&attention_norm, &mlp_norm])
}
