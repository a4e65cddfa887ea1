//! Gemma 1, 2 and 3: as Llama, with `1 + weight` in norms and scaled embeddings; from 2 on with norms on what attention
//! and MLP add.

use sepal_core::{Family, ModelConfig};

use super::llama::{gated, with_attention};
use super::{EndNames, EndNorm, heads, rms_norm};
use crate::exec::block::Block;
use crate::layers::mlp::Mlp;
use crate::layers::norm::WeightedNorm;
use crate::weights::{LoadError, Reader};

pub(super) fn ends(config: &ModelConfig) -> EndNames {
    EndNames { embedding_scale: (config.hidden as f64).sqrt(), kind: EndNorm::RmsFromOne, ..EndNames::USUAL }
}

pub(super) fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    let is_first = config.family == Family::Gemma;
    let norm = |name: &str| reader.rms_from_one(name, config.hidden);
    let after = |name: &str| Ok::<_, LoadError>(WeightedNorm { norm: rms_norm(config), weight: norm(name)?.scale });
    let mlp_norm = norm(if is_first { "post_attention_layernorm" } else { "pre_feedforward_layernorm" })?;
    let mlp = Mlp::Dense(gated(reader, config, "mlp", ["gate_proj", "up_proj", "down_proj"], &mlp_norm)?);
    let mut block = with_attention(reader, config, heads(config, block_idx), &norm("input_layernorm")?, mlp)?;
    if let Some(norms) = &mut block.head_norms {
        norms.q.weight = norms.q.weight.f_add_scalar(1.0)?;
        norms.k.weight = norms.k.weight.f_add_scalar(1.0)?;
    }
    if !is_first {
        block.attention_norm = Some(after("post_attention_layernorm")?);
        block.mlp_norm = Some(after("post_feedforward_layernorm")?);
    }
    Ok(block)
}
