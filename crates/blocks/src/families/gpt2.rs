//! GPT-2: learned positions, LayerNorm, attention, LayerNorm, GELU. Its files have layers as `[in, out]`.

use sepal_core::{Family, ModelConfig};
use tch::Tensor;

use super::llama;
use super::parts::{heads, layer_norm, plain_block, plain_mlp};
use super::spec::{EndNames, EndNorm, FamilySpec};
use crate::exec::block::Block;
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Gpt2,
    block,
    ends: EndNames { embedding: "wte", final_norm: "ln_f", kind: EndNorm::Layer, ..llama::SPEC.ends },
    positions: Some(positions),
    has_equal_heads: true,
    ..llama::SPEC
};

fn positions(reader: &Reader<'_>, config: &ModelConfig, name: &str) -> Result<Tensor, LoadError> {
    reader.tensor(name, &[config.max_positions.unwrap_or(1024), config.hidden])
}

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    let &ModelConfig { hidden, ffn, .. } = config;
    let layer = |name: &str, out: usize, inner: usize| reader.layer_by_inputs(name, out, inner);
    let fused = layer("attn.c_attn", 3 * hidden, hidden)?.after(&reader.layer_norm("ln_1", hidden)?)?;
    let up = layer("mlp.c_fc", ffn, hidden)?.after(&reader.layer_norm("ln_2", hidden)?)?;
    let attention = [fused.part(0, hidden)?, fused.part(hidden, 2 * hidden)?, layer("attn.c_proj", hidden, hidden)?];
    let mlp = plain_mlp(reader, config, up, layer("mlp.c_proj", hidden, ffn)?)?;
    plain_block(reader, heads(config, block_idx), layer_norm(config), attention, mlp)
}
