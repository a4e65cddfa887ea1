//! OPT (arXiv 2205.01068): learned positions, LayerNorm, attention, LayerNorm, ReLU.

use sepal_core::ModelConfig;
use tch::Tensor;

use super::{EndNames, EndNorm, heads, layer_norm, plain_mlp};
use crate::exec::block::Block;
use crate::layers::linear::Layer;
use crate::weights::{LoadError, Reader};

pub(super) const ENDS: EndNames = EndNames {
    embedding: "decoder.embed_tokens",
    embedding_scale: 1.0,
    embedding_norm: None,
    final_norm: "decoder.final_layer_norm",
    kind: EndNorm::Layer,
};

/// The file has two more in front, which no position uses.
const UNUSED: usize = 2;

pub(super) fn positions(reader: &Reader<'_>, config: &ModelConfig, name: &str) -> Result<Tensor, LoadError> {
    let count = config.max_positions.unwrap_or(2048);
    let all = reader.tensor(name, &[count + UNUSED, config.hidden])?;
    Ok(all.f_narrow(0, UNUSED as i64, count as i64)?)
}

pub(super) fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    let &ModelConfig { hidden, ffn, .. } = config;
    let norm = reader.layer_norm("self_attn_layer_norm", hidden)?;
    let layer = |name: &str| reader.layer(name, hidden, hidden);
    let kv = Layer::stacked(&[layer("self_attn.k_proj")?, layer("self_attn.v_proj")?])?;
    let mlp_norm = reader.layer_norm("final_layer_norm", hidden)?;
    let up = reader.layer("fc1", ffn, hidden)?.after(&mlp_norm)?;
    Ok(Block {
        heads: heads(config, block_idx),
        norm: layer_norm(config),
        is_parallel: false,
        q: reader.frozen(layer("self_attn.q_proj")?.after(&norm)?)?,
        kv: reader.frozen(kv.after(&norm)?)?,
        head_norms: None,
        output: reader.frozen(layer("self_attn.out_proj")?)?,
        attention_norm: None,
        mlp: plain_mlp(reader, config, up, reader.layer("fc2", hidden, ffn)?)?,
        mlp_norm: None,
    })
}
