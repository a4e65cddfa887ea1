//! StableLM (arXiv 2402.17834): as Llama, with LayerNorms and attention that turns a part of each head; some have the MLP
//! beside attention, behind the same norm.

use sepal_core::ModelConfig;

use super::llama::gated;
use super::{EndNames, EndNorm, from_queries, heads, layer_norm, queries};
use crate::exec::block::Block;
use crate::layers::linear::Layer;
use crate::layers::mlp::Mlp;
use crate::weights::{LoadError, Reader};

pub(super) const ENDS: EndNames = EndNames { kind: EndNorm::Layer, ..EndNames::USUAL };

pub(super) fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    let &ModelConfig { hidden, n_heads, n_kv_heads, head_dim, .. } = config;
    let heads = heads(config, block_idx);
    // A norm for each head, in a folder and in GGUF.
    reader.refuse("self_attn.q_layernorm.norms.0.weight")?;
    reader.refuse("self_attn.q_norm.weight")?;
    let norm = reader.layer_norm("input_layernorm", hidden)?;
    let q = reader.layer("self_attn.q_proj", n_heads * head_dim, hidden)?.after(&norm)?;
    let k = reader.layer("self_attn.k_proj", n_kv_heads * head_dim, hidden)?;
    let v = reader.layer("self_attn.v_proj", n_kv_heads * head_dim, hidden)?;
    let output = reader.layer("self_attn.o_proj", hidden, n_heads * head_dim)?;
    let mlp_norm = if config.is_parallel { "input_layernorm" } else { "post_attention_layernorm" };
    let mlp_norm = reader.layer_norm(mlp_norm, hidden)?;
    let mlp = gated(reader, config, "mlp", ["gate_proj", "up_proj", "down_proj"], &mlp_norm)?;
    Ok(Block {
        heads,
        norm: layer_norm(config),
        is_parallel: config.is_parallel,
        q: reader.frozen(q.map_rows(|rows| queries(heads, rows))?)?,
        kv: reader.frozen(Layer::stacked(&[k, v])?.after(&norm)?)?,
        head_norms: None,
        output: reader.frozen(from_queries(heads, output)?)?,
        attention_norm: None,
        mlp: Mlp::Dense(mlp),
        mlp_norm: None,
    })
}
