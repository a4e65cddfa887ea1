//! GPT-NeoX and Pythia (arXiv 2204.06745): LayerNorms, attention that turns a part of each head, an MLP beside it.

use sepal_core::ModelConfig;

use super::{EndNames, EndNorm, apart, heads, layer_norm, plain_mlp};
use crate::block::Block;
use crate::weights::{LoadError, Reader};

pub(super) const ENDS: EndNames = EndNames {
    embedding: "embed_in",
    embedding_scale: 1.0,
    embedding_norm: None,
    final_norm: "final_layer_norm",
    kind: EndNorm::Layer,
};

pub(super) fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    let &ModelConfig { hidden, ffn, .. } = config;
    let heads = heads(config, block_idx);
    let norm = reader.layer_norm("input_layernorm", hidden)?;
    let (q, kv) = apart(heads, &reader.layer("attention.query_key_value", 3 * hidden, hidden)?.after(&norm)?)?;
    let norm = reader.layer_norm("post_attention_layernorm", hidden)?;
    let up = reader.layer("mlp.dense_h_to_4h", ffn, hidden)?.after(&norm)?;
    Ok(Block {
        heads,
        norm: layer_norm(config),
        is_parallel: config.is_parallel,
        q: reader.frozen(q)?,
        kv: reader.frozen(kv)?,
        head_norms: None,
        output: reader.frozen(reader.layer("attention.dense", hidden, hidden)?)?,
        attention_norm: None,
        mlp: plain_mlp(reader, config, up, reader.layer("mlp.dense_4h_to_h", hidden, ffn)?)?,
        mlp_norm: None,
    })
}
