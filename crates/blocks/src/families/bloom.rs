//! BLOOM (arXiv 2211.05100): LayerNorm, attention with linear biases, LayerNorm, GELU.

use sepal_core::{Family, ModelConfig};

use super::llama;
use super::parts::{fused_block, heads};
use super::spec::{EndNames, EndNorm, FamilySpec};
use crate::exec::block::Block;
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Bloom,
    block,
    ends: EndNames {
        embedding: "word_embeddings",
        embedding_norm: Some("word_embeddings_layernorm"),
        final_norm: "ln_f",
        kind: EndNorm::Layer,
        ..llama::SPEC.ends
    },
    has_equal_heads: true,
    ..llama::SPEC
};

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    let norms = ["input_layernorm", "post_attention_layernorm"].map(|name| reader.layer_norm(name, config.hidden));
    let [norm, mlp_norm] = norms;
    fused_block(reader, config, heads(config, block_idx), "self_attention", [&norm?, &mlp_norm?])
}
