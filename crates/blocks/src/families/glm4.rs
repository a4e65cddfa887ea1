//! GLM-4 (arXiv 2406.12793): as Llama, with adjacent numbers of a head as rotated pairs, gate and up in one layer, and norms
//! of the outputs of attention and MLP as well.

use sepal_core::{Family, ModelConfig};

use super::llama::{self, refuse_head_norms, with_attention};
use super::parts::{heads, output_norm};
use super::phi3::gate_up_mlp;
use super::spec::FamilySpec;
use crate::exec::block::Block;
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec { family: Family::Glm4, block, has_adjacent_pairs: true, ..llama::SPEC };

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    refuse_head_norms(reader)?;
    let norm = |name: &str| reader.rms(name, config.hidden);
    let mlp = gate_up_mlp(reader, config, &norm("post_attention_layernorm")?)?;
    let attention_norm = Some(output_norm(config, norm("post_self_attn_layernorm")?));
    let mlp_norm = Some(output_norm(config, norm("post_mlp_layernorm")?));
    let block = with_attention(reader, config, heads(config, block_idx), Some(&norm("input_layernorm")?), mlp)?;
    Ok(Block { attention_norm, mlp_norm, ..block })
}
