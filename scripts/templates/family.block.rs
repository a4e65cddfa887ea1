//! @TYPE@: RMSNorm, attention with rotary positions and grouped queries, RMSNorm, a gated MLP.
//!
//! Start here: this is a Llama's block, in pieces. Change those that differ, and take out the comments that are answered.

use sepal_core::ModelConfig;

use super::{EndNames, from_queries, heads, queries, rms_norm};
use crate::exec::block::Block;
use crate::layers::linear::Layer;
use crate::layers::dense::{Activate, Dense};
use crate::layers::mlp::Mlp;
use crate::weights::{LoadError, Reader};

// Ends: `EndNames` has the names of embeddings and final norm, their factor and their norm (gpt_neox.rs, gemma.rs,
// bloom.rs). Learned positions are a function beside `block` (opt.rs) and an arm of `positions` in mod.rs.
pub(super) const ENDS: EndNames = EndNames::USUAL;

pub(super) fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    let &ModelConfig { hidden, n_heads, n_kv_heads, head_dim, ffn, .. } = config;
    let heads = heads(config, block_idx);
    // What another family, or another form of this one, has and this block would leave out without a word.
    reader.refuse("self_attn.q_norm.weight")?;

    // Norms: `reader.rms`, `rms_from_one` (gemma.rs) or `layer_norm` (opt.rs); `norm` below says which. Norms of heads:
    // llama.rs. Norms on what attention and MLP add: gemma.rs.
    let norm = reader.rms("input_layernorm", hidden)?;
    let mlp_norm = reader.rms("post_attention_layernorm", hidden)?;

    // Layers: `after` takes in the weights of the norm in front. Biases are read where the file has them. Several layers
    // in one: `part` (phi3.rs), and `apart` where they lie head by head (gpt_neox.rs). Stored `[in, out]`: gpt2.rs.
    let q = reader.layer("self_attn.q_proj", n_heads * head_dim, hidden)?.after(&norm)?;
    let k = reader.layer("self_attn.k_proj", n_kv_heads * head_dim, hidden)?;
    let v = reader.layer("self_attn.v_proj", n_kv_heads * head_dim, hidden)?;
    let output = reader.layer("self_attn.o_proj", hidden, n_heads * head_dim)?;

    // MLP: without a gate `plain_mlp` (opt.rs); a mixture of experts `Mlp::Routed` (mixtral.rs).
    let gate = reader.layer("mlp.gate_proj", ffn, hidden)?;
    let up = Layer::stacked(&[gate, reader.layer("mlp.up_proj", ffn, hidden)?])?.after(&mlp_norm)?;
    let down = reader.layer("mlp.down_proj", hidden, ffn)?;
    let activation = Activate { function: config.activation, is_gated: true };
    Ok(Block {
        heads,
        norm: rms_norm(config),
        // Attention and MLP beside each other, if the family's configuration says so (falcon.rs).
        is_parallel: config.is_parallel,
        q: reader.frozen(q.map_rows(|rows| queries(heads, rows))?)?,
        kv: reader.frozen(Layer::stacked(&[k, v])?.after(&norm)?)?,
        head_norms: None,
        output: reader.frozen(from_queries(heads, output)?)?,
        attention_norm: None,
        mlp: Mlp::Dense(Dense { activation, up: reader.frozen(up)?, down: reader.frozen(down)? }),
        mlp_norm: None,
    })
}
