//! StableLM (arXiv 2402.17834): as Llama, with LayerNorms and partially rotated heads. In some models attention and MLP
//! are parallel, after the same norm.

use sepal_core::{Family, ModelConfig};

use super::llama::{self, gated, refuse_head_norms, with_attention};
use super::parts::{heads, layer_norm};
use super::spec::{EndNames, EndNorm, FamilySpec};
use crate::exec::block::Block;
use crate::layers::mlp::Mlp;
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Stablelm,
    block,
    ends: EndNames { kind: EndNorm::Layer, ..llama::SPEC.ends },
    ..llama::SPEC
};

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    // A norm for each head, in a folder and in GGUF.
    reader.refuse("self_attn.q_layernorm.norms.0.weight")?;
    refuse_head_norms(reader)?;
    let norm = reader.layer_norm("input_layernorm", config.hidden)?;
    let mlp_norm = if config.is_parallel { "input_layernorm" } else { "post_attention_layernorm" };
    let mlp_norm = reader.layer_norm(mlp_norm, config.hidden)?;
    let mlp = gated(reader, config, "mlp", ["gate_proj", "up_proj", "down_proj"], Some(&mlp_norm))?;
    let block = with_attention(reader, config, heads(config, block_idx), Some(&norm), Mlp::Dense(mlp))?;
    Ok(Block { norm: layer_norm(config), is_parallel: config.is_parallel, ..block })
}
