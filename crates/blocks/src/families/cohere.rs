//! Cohere's Command R and Aya: a LayerNorm without bias before attention and an MLP beside it, and adjacent numbers of a head
//! as rotated pairs. Command R+ has a LayerNorm without bias for each head.

use sepal_core::{Family, ModelConfig};

use super::llama::{self, gated, refuse_head_norms, with_attention};
use super::parts::{heads, layer_norm, layer_norms_by_head};
use super::spec::{EndNames, EndNorm, FamilySpec};
use crate::exec::block::Block;
use crate::layers::mlp::Mlp;
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Cohere,
    block,
    ends: EndNames { kind: EndNorm::LayerWithoutBias, ..llama::SPEC.ends },
    has_adjacent_pairs: true,
    ..llama::SPEC
};

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    let heads = heads(config, block_idx);
    let head_norms = match config.has_head_norms {
        true => {
            let weights =
                |name: &str, n: usize| reader.tensor(&format!("self_attn.{name}.weight"), &[n, config.head_dim]);
            let (q, k) = (weights("q_norm", config.n_heads)?, weights("k_norm", config.n_kv_heads)?);
            Some(layer_norms_by_head(config, heads, q, k)?)
        }
        false => {
            refuse_head_norms(reader)?;
            None
        }
    };
    reader.refuse("post_attention_layernorm.weight")?;
    // The weight of a LayerNorm without bias is read as that of an RMSNorm.
    let norm = reader.rms("input_layernorm", config.hidden)?;
    let mlp = gated(reader, config, "mlp", ["gate_proj", "up_proj", "down_proj"], Some(&norm))?;
    let block = with_attention(reader, config, heads, Some(&norm), Mlp::Dense(mlp))?;
    Ok(Block { norm: layer_norm(config), is_parallel: config.is_parallel, head_norms, ..block })
}
