//! GPT-NeoX and Pythia (arXiv 2204.06745): LayerNorms, attention that turns a part of each head, an MLP beside it.

use sepal_core::{Family, ModelConfig};

use super::llama;
use super::parts::{fused_block, heads};
use super::spec::{EndNames, EndNorm, FamilySpec};
use crate::exec::block::Block;
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::GptNeox,
    block,
    ends: EndNames { embedding: "embed_in", final_norm: "final_layer_norm", kind: EndNorm::Layer, ..llama::SPEC.ends },
    has_equal_heads: true,
    ..llama::SPEC
};

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    let norms = ["input_layernorm", "post_attention_layernorm"].map(|name| reader.layer_norm(name, config.hidden));
    let [norm, mlp_norm] = norms;
    fused_block(reader, config, heads(config, block_idx), "attention", [&norm?, &mlp_norm?])
}
