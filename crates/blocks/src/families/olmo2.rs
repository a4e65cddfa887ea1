//! OLMo-2 (arXiv 2501.00656): as Llama, with RMSNorms of the outputs of attention and MLP instead of their inputs, and of
//! all queries and all keys of a position.

use sepal_core::{Family, ModelConfig};

use super::llama::{self, gated, with_attention};
use super::parts::{heads, output_norm, queries, rms_norm};
use super::spec::FamilySpec;
use crate::exec::block::Block;
use crate::layers::mlp::Mlp;
use crate::layers::norm::{HeadNorms, Norm, WeightedNorm};
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec { family: Family::Olmo2, block, ..llama::SPEC };

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    for norm in ["input_layernorm", "pre_feedforward_layernorm"] {
        reader.refuse(&format!("{norm}.weight"))?;
    }
    let heads = heads(config, block_idx);
    let head_norm = |name: &str, width: usize| reader.tensor(&format!("self_attn.{name}.weight"), &[width]);
    let q_weight = head_norm("q_norm", config.n_heads * config.head_dim)?;
    let k_weight = head_norm("k_norm", config.kv_size())?;
    let head_norms = HeadNorms {
        q: WeightedNorm { norm: rms_norm(config), weight: queries(heads, &q_weight)? },
        k: WeightedNorm { norm: rms_norm(config), weight: k_weight },
    };
    let norm = |name: &str| Ok::<_, LoadError>(output_norm(config, reader.rms(name, config.hidden)?));
    let mlp = gated(reader, config, "mlp", ["gate_proj", "up_proj", "down_proj"], None)?;
    Ok(Block {
        norm: Norm::Identity,
        head_norms: Some(head_norms),
        attention_norm: Some(norm("post_attention_layernorm")?),
        mlp_norm: Some(norm("post_feedforward_layernorm")?),
        ..with_attention(reader, config, heads, None, Mlp::Dense(mlp))?
    })
}
