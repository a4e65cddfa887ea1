//! @TYPE@: RMSNorm, attention with rotary positions and grouped queries, RMSNorm, a gated MLP.
//!
//! Start here: this is the block of a Llama, in parts. Change the parts that differ, and take out the comments that are
//! answered.

use sepal_core::{Family, ModelConfig};

use super::llama::{self, refuse_head_norms};
use super::parts::{from_queries, heads, queries, rms_norm};
use super::spec::{EndNames, FamilySpec};
use crate::exec::block::Block;
use crate::layers::dense::{Activate, Dense};
use crate::layers::linear::Layer;
use crate::layers::mlp::Mlp;
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::@TYPE@,
    block,
    // Names of embeddings and final norm, factor and norm of embeddings: gpt_neox.rs, gemma.rs, bloom.rs.
    ends: EndNames { ..llama::SPEC.ends },
    // Learned positions: opt.rs.
    positions: None,
    ..llama::SPEC
};

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    let &ModelConfig { hidden, n_heads, n_kv_heads, head_dim, ffn, .. } = config;
    let heads = heads(config, block_idx);
    // Tensors of other families, or of other models of this one, that this block would leave out: `reader.refuse`.
    refuse_head_norms(reader)?;

    // Norms: `reader.rms`, `rms_from_one` (gemma.rs) or `layer_norm` (opt.rs); `norm` below has the same kind. Norms of
    // heads: qwen3.rs. Norms of the outputs of attention and MLP: gemma.rs.
    let norm = reader.rms("input_layernorm", hidden)?;
    let mlp_norm = reader.rms("post_attention_layernorm", hidden)?;

    // Layers: `after` merges the weights of the norm in front. Biases are read if the file has them. Fused layers: `part`
    // (phi3.rs), or `fused_block` if they are fused head by head (gpt_neox.rs). Stored as `[in, out]`: gpt2.rs.
    let q = reader.layer("self_attn.q_proj", n_heads * head_dim, hidden)?.after(&norm)?;
    let k = reader.layer("self_attn.k_proj", n_kv_heads * head_dim, hidden)?;
    let v = reader.layer("self_attn.v_proj", n_kv_heads * head_dim, hidden)?;
    let output = reader.layer("self_attn.o_proj", hidden, n_heads * head_dim)?;

    // MLP: `plain_mlp` without a gate (opt.rs), `Mlp::Routed` for a mixture of experts (mixtral.rs).
    let gate = reader.layer("mlp.gate_proj", ffn, hidden)?;
    let up = Layer::stacked(vec![gate, reader.layer("mlp.up_proj", ffn, hidden)?])?.after(&mlp_norm)?;
    let down = reader.layer("mlp.down_proj", hidden, ffn)?;
    let activation = Activate { function: config.activation, is_gated: true };
    Ok(Block {
        heads,
        norm: rms_norm(config),
        // True if attention and MLP are parallel (falcon.rs).
        is_parallel: config.is_parallel,
        // Factor of the outputs of attention and MLP (granite.rs in `checkpoint`).
        residual_factor: config.factors.residual,
        q: reader.frozen(q.map_rows(|rows| queries(heads, rows))?)?,
        kv: reader.frozen(Layer::stacked(vec![k, v])?.after(&norm)?)?,
        head_norms: None,
        // Logits of heads without a value (gpt_oss.rs).
        sinks: None,
        output: reader.frozen(from_queries(heads, output)?)?,
        attention_norm: None,
        mlp: Mlp::Dense(Dense { activation, up: reader.frozen(up)?, down: reader.frozen(down)? }),
        mlp_norm: None,
    })
}
