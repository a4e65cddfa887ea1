//! StableLM (arXiv 2402.17834): as Llama, with LayerNorms and partially rotated heads. In some models attention and MLP
//! are parallel, after the same norm. StableLM 2 12b has a LayerNorm without bias for each head.

use sepal_core::{Family, ModelConfig};
use tch::Tensor;

use super::llama::{self, gated, refuse_head_norms, with_attention};
use super::parts::{heads, layer_norm, layer_norms_by_head};
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
    refuse_head_norms(reader)?;
    let heads = heads(config, block_idx);
    let head_norms = match config.has_head_norms {
        true => {
            let q = head_weights(reader, "q_layernorm", config.n_heads, config.head_dim)?;
            let k = head_weights(reader, "k_layernorm", config.n_kv_heads, config.head_dim)?;
            Some(layer_norms_by_head(config, heads, q, k)?)
        }
        false => {
            reader.refuse("self_attn.q_layernorm.norms.0.weight")?;
            None
        }
    };
    let norm = reader.layer_norm("input_layernorm", config.hidden)?;
    let mlp_norm = if config.is_parallel { "input_layernorm" } else { "post_attention_layernorm" };
    let mlp_norm = reader.layer_norm(mlp_norm, config.hidden)?;
    let mlp = gated(reader, config, "mlp", ["gate_proj", "up_proj", "down_proj"], Some(&mlp_norm))?;
    let block = with_attention(reader, config, heads, Some(&norm), Mlp::Dense(mlp))?;
    Ok(Block { norm: layer_norm(config), is_parallel: config.is_parallel, head_norms, ..block })
}

/// Weights of the norms of heads, `[n_heads, head_dim]`, of which each is a tensor.
fn head_weights(reader: &Reader<'_>, norms: &str, n_heads: usize, head_dim: usize) -> Result<Tensor, LoadError> {
    let weight = |head: usize| reader.tensor(&format!("self_attn.{norms}.norms.{head}.weight"), &[head_dim]);
    let weights = (0..n_heads).map(weight).collect::<Result<Vec<Tensor>, LoadError>>()?;
    reader.refuse(&format!("self_attn.{norms}.norms.0.bias"))?;
    Ok(Tensor::f_stack(&weights, 0)?)
}
