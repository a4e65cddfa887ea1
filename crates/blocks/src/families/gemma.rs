//! Gemma 1, 2 and 3: as Llama, with `1 + weight` in norms and scaled embeddings. Gemma 2 and 3 have norms of the outputs of
//! attention and MLP, Gemma 3 has norms of heads.

use sepal_core::{Family, ModelConfig};

use super::llama::{self, gated, head_norms, refuse_head_norms, with_attention};
use super::parts::{heads, output_norm};
use super::spec::{EndNames, EndNorm, FamilySpec};
use crate::exec::block::Block;
use crate::layers::mlp::Mlp;
use crate::weights::{LoadError, Reader};

pub(super) const GEMMA: FamilySpec = FamilySpec {
    family: Family::Gemma,
    block: gemma_block,
    ends: EndNames { scales_embedding: true, kind: EndNorm::RmsFromOne, ..llama::SPEC.ends },
    ..llama::SPEC
};

pub(super) const GEMMA2: FamilySpec = FamilySpec { family: Family::Gemma2, block: gemma2_block, ..GEMMA };

pub(super) const GEMMA3: FamilySpec = FamilySpec { family: Family::Gemma3, block: gemma3_block, ..GEMMA };

fn gemma_block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    refuse_head_norms(reader)?;
    with_mlp_norm(reader, config, block_idx, "post_attention_layernorm")
}

fn gemma2_block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    refuse_head_norms(reader)?;
    with_output_norms(reader, config, block_idx)
}

fn gemma3_block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    let mut norms = head_norms(reader, config)?;
    norms.q.weight = norms.q.weight.f_add_scalar(1.0)?;
    norms.k.weight = norms.k.weight.f_add_scalar(1.0)?;
    Ok(Block { head_norms: Some(norms), ..with_output_norms(reader, config, block_idx)? })
}

/// A block with norms of the outputs of attention and MLP.
fn with_output_norms(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    let norm = |name: &str| Ok::<_, LoadError>(output_norm(config, reader.rms_from_one(name, config.hidden)?));
    Ok(Block {
        attention_norm: Some(norm("post_attention_layernorm")?),
        mlp_norm: Some(norm("post_feedforward_layernorm")?),
        ..with_mlp_norm(reader, config, block_idx, "pre_feedforward_layernorm")?
    })
}

/// A block whose MLP reads the norm `mlp_norm`.
fn with_mlp_norm(
    reader: &Reader<'_>,
    config: &ModelConfig,
    block_idx: usize,
    mlp_norm: &str,
) -> Result<Block, LoadError> {
    let norm = |name: &str| reader.rms_from_one(name, config.hidden);
    let mlp = gated(reader, config, "mlp", ["gate_proj", "up_proj", "down_proj"], Some(&norm(mlp_norm)?))?;
    with_attention(reader, config, heads(config, block_idx), Some(&norm("input_layernorm")?), Mlp::Dense(mlp))
}
