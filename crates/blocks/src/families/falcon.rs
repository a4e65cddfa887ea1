//! Falcon (arXiv 2311.16867): LayerNorm, attention with one or few heads of keys, and an MLP beside it; the rw models
//! have linear biases and one after the other.

use sepal_core::ModelConfig;

use super::{EndNames, EndNorm, apart, from_queries, heads, layer_norm, plain_mlp};
use crate::block::Block;
use crate::weights::{LoadError, Reader};

pub(super) const ENDS: EndNames = EndNames {
    embedding: "word_embeddings",
    embedding_scale: 1.0,
    embedding_norm: None,
    final_norm: "ln_f",
    kind: EndNorm::Layer,
};

pub(super) fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    let &ModelConfig { hidden, n_heads, n_kv_heads, head_dim, ffn, .. } = config;
    let heads = heads(config, block_idx);
    let norm = |name: &str| reader.layer_norm(name, hidden);
    // The 40b has a norm for each of the two, the 7b and the 11b one for both.
    let (attention_norm, mlp_norm) = match (reader.has("ln_attn.weight"), config.is_parallel) {
        (true, _) => (norm("ln_attn")?, norm("ln_mlp")?),
        (false, true) => (norm("input_layernorm")?, norm("input_layernorm")?),
        (false, false) => (norm("input_layernorm")?, norm("post_attention_layernorm")?),
    };
    let fused_rows = (n_heads + 2 * n_kv_heads) * head_dim;
    let fused = reader.layer("self_attention.query_key_value", fused_rows, hidden)?.after(&attention_norm)?;
    let (q, kv) = apart(heads, &fused)?;
    let output = reader.layer("self_attention.dense", hidden, n_heads * head_dim)?;
    let up = reader.layer("mlp.dense_h_to_4h", ffn, hidden)?.after(&mlp_norm)?;
    Ok(Block {
        heads,
        norm: layer_norm(config),
        is_parallel: config.is_parallel,
        q: reader.frozen(q)?,
        kv: reader.frozen(kv)?,
        head_norms: None,
        output: reader.frozen(from_queries(heads, output)?)?,
        attention_norm: None,
        mlp: plain_mlp(reader, config, up, reader.layer("mlp.dense_4h_to_h", hidden, ffn)?)?,
        mlp_norm: None,
    })
}
