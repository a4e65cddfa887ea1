//! BLOOM (arXiv 2211.05100): LayerNorm, attention with linear biases, LayerNorm, GELU.

use sepal_core::ModelConfig;

use super::{EndNames, EndNorm, apart, heads, layer_norm, plain_mlp};
use crate::block::Block;
use crate::weights::{LoadError, Reader};

pub(super) const ENDS: EndNames = EndNames {
    embedding: "word_embeddings",
    embedding_scale: 1.0,
    embedding_norm: Some("word_embeddings_layernorm"),
    final_norm: "ln_f",
    kind: EndNorm::Layer,
};

pub(super) fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    let &ModelConfig { hidden, ffn, .. } = config;
    let heads = heads(config, block_idx);
    let norm = reader.layer_norm("input_layernorm", hidden)?;
    let fused = reader.layer("self_attention.query_key_value", 3 * hidden, hidden)?.after(&norm)?;
    let (q, kv) = apart(heads, &fused)?;
    let norm = reader.layer_norm("post_attention_layernorm", hidden)?;
    let up = reader.layer("mlp.dense_h_to_4h", ffn, hidden)?.after(&norm)?;
    Ok(Block {
        heads,
        norm: layer_norm(config),
        is_parallel: false,
        q: reader.frozen(q)?,
        kv: reader.frozen(kv)?,
        head_norms: None,
        output: reader.frozen(reader.layer("self_attention.dense", hidden, hidden)?)?,
        attention_norm: None,
        mlp: plain_mlp(reader, config, up, reader.layer("mlp.dense_4h_to_h", hidden, ffn)?)?,
        mlp_norm: None,
    })
}
