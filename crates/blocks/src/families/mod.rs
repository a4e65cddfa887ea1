//! The families: how each one's blocks and ends are made of a checkpoint's tensors, in one file for each way of doing it.

mod bloom;
mod falcon;
mod gemma;
mod gpt2;
mod gpt_neox;
mod llama;
mod mixtral;
mod opt;
mod phi3;
mod stablelm;

use sepal_core::{Family, ModelConfig};
use tch::{TchError, Tensor};

use crate::attention::heads::{AttentionRange, Heads};
use crate::exec::block::Block;
use crate::layers::dense::{Activate, Dense};
use crate::layers::linear::Layer;
use crate::layers::mlp::Mlp;
use crate::layers::norm::{Norm, NormWeights};
use crate::weights::{LoadError, Reader};

/// Block `block_idx`; `reader` reads its tensors.
pub(crate) fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    match config.family {
        Family::Bloom => bloom::block(reader, config, block_idx),
        Family::Falcon => falcon::block(reader, config, block_idx),
        Family::Gemma | Family::Gemma2 | Family::Gemma3 => gemma::block(reader, config, block_idx),
        Family::Gpt2 => gpt2::block(reader, config, block_idx),
        Family::GptNeox => gpt_neox::block(reader, config, block_idx),
        Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => llama::block(reader, config, block_idx),
        Family::Mixtral => mixtral::block(reader, config, block_idx),
        Family::Opt => opt::block(reader, config, block_idx),
        Family::Phi3 => phi3::block(reader, config, block_idx),
        Family::Stablelm => stablelm::block(reader, config, block_idx),
    }
}

/// What the ends of a model are called, and what is done with them.
pub(crate) struct EndNames {
    /// `[vocab_size, hidden]`
    pub(crate) embedding: &'static str,
    /// The factor of embeddings.
    pub(crate) embedding_scale: f64,
    /// The LayerNorm of embeddings.
    pub(crate) embedding_norm: Option<&'static str>,
    /// The norm behind the last block.
    pub(crate) final_norm: &'static str,
    pub(crate) kind: EndNorm,
}

/// What the norm behind the last block is.
pub(crate) enum EndNorm {
    Rms,
    /// With `1 + weight` for a weight.
    RmsFromOne,
    Layer,
}

impl EndNames {
    /// Of a Llama, which most are like.
    const USUAL: EndNames = EndNames {
        embedding: "embed_tokens",
        embedding_scale: 1.0,
        embedding_norm: None,
        final_norm: "norm",
        kind: EndNorm::Rms,
    };
}

pub(crate) fn ends(config: &ModelConfig) -> EndNames {
    match config.family {
        Family::Bloom => bloom::ENDS,
        Family::Falcon => falcon::ENDS,
        Family::Gemma | Family::Gemma2 | Family::Gemma3 => gemma::ends(config),
        Family::Gpt2 => gpt2::ENDS,
        Family::GptNeox => gpt_neox::ENDS,
        Family::Opt => opt::ENDS,
        Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 | Family::Mixtral | Family::Phi3 => {
            EndNames::USUAL
        }
        Family::Stablelm => stablelm::ENDS,
    }
}

/// The learned positions `[max_positions, hidden]`, if the family has such; `reader` reads the whole model's tensors.
///
/// They are added before the first block, so they belong to it and not to the embeddings: whoever runs the first block
/// knows where each position stands, and soft prompts get their positions there as well.
pub(crate) fn positions(reader: &Reader<'_>, config: &ModelConfig) -> Result<Option<Tensor>, LoadError> {
    match (config.family, config.family.positions()) {
        (Family::Gpt2, Some(name)) => gpt2::positions(reader, config, name).map(Some),
        (Family::Opt, Some(name)) => opt::positions(reader, config, name).map(Some),
        _ => Ok(None),
    }
}

/// The heads of block `block_idx`.
fn heads(config: &ModelConfig, block_idx: usize) -> Heads {
    let scores = &config.scores;
    let has_window = scores.window.as_ref().is_some_and(|window| window.blocks.get(block_idx) == Some(&true));
    let mut heads = Heads {
        kv: config.n_kv_heads as i64,
        repeat: (config.n_heads / config.n_kv_heads) as i64,
        dim: config.head_dim as i64,
        scale: scores.scale,
        cap: scores.cap,
        range: if has_window { AttentionRange::Windowed } else { AttentionRange::Full },
    };
    if scores.by_block {
        heads.scale = Some(heads.scale() / (block_idx + 1) as f64);
    }
    heads
}

/// Queries `[kv * repeat * dim, ..]` head by head, in the order of [`Heads`].
fn queries(heads: Heads, rows: &Tensor) -> Result<Tensor, TchError> {
    let shape = [&[heads.kv, heads.repeat, heads.dim], &rows.size()[1..]].concat();
    rows.f_view(shape.as_slice())?.f_transpose(0, 1)?.f_reshape(rows.size())
}

/// The layer behind attention, whose inputs are in the order of [`Heads`].
fn from_queries(heads: Heads, layer: Layer) -> Result<Layer, TchError> {
    let by_inputs = queries(heads, &layer.weight.f_transpose(0, 1)?.f_contiguous()?)?;
    Ok(Layer { weight: by_inputs.f_transpose(0, 1)?, ..layer })
}

/// Queries, and keys with values, out of a layer that has, for each head of keys, its queries, the key and the value.
fn apart(heads: Heads, fused: &Layer) -> Result<(Layer, Layer), TchError> {
    let part = |start: i64, len: i64| {
        fused.map_rows(|rows| {
            let shape = [&[heads.kv, heads.repeat + 2, heads.dim], &rows.size()[1..]].concat();
            let picked = rows.f_view(shape.as_slice())?.f_narrow(1, start, len)?.f_transpose(0, 1)?;
            picked.f_reshape([&[heads.kv * len * heads.dim], &rows.size()[1..]].concat().as_slice())
        })
    };
    Ok((part(0, heads.repeat)?, part(heads.repeat, 2)?))
}

/// A block of LayerNorms with a fused layer for queries, keys and values in `attention`, and an MLP without a gate.
fn fused_block(
    reader: &Reader<'_>,
    config: &ModelConfig,
    heads: Heads,
    attention: &str,
    [norm, mlp_norm]: [&NormWeights; 2],
) -> Result<Block, LoadError> {
    let &ModelConfig { hidden, n_heads, n_kv_heads, head_dim, ffn, .. } = config;
    let fused_rows = (n_heads + 2 * n_kv_heads) * head_dim;
    let fused = reader.layer(&format!("{attention}.query_key_value"), fused_rows, hidden)?.after(norm)?;
    let (q, kv) = apart(heads, &fused)?;
    let output = reader.layer(&format!("{attention}.dense"), hidden, n_heads * head_dim)?;
    let up = reader.layer("mlp.dense_h_to_4h", ffn, hidden)?.after(mlp_norm)?;
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

/// An MLP without a gate.
fn plain_mlp(reader: &Reader<'_>, config: &ModelConfig, up: Layer, down: Layer) -> Result<Mlp, LoadError> {
    let activation = Activate { function: config.activation, is_gated: false };
    Ok(Mlp::Dense(Dense { activation, up: reader.frozen(up)?, down: reader.frozen(down)? }))
}

fn layer_norm(config: &ModelConfig) -> Norm {
    Norm::Layer { eps: config.norm_eps }
}

fn rms_norm(config: &ModelConfig) -> Norm {
    Norm::Rms { eps: config.norm_eps }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads { kv: 2, repeat: 2, dim: 2, scale: None, cap: None, range: AttentionRange::Full };

    fn numbers(tensor: &Tensor) -> Vec<i64> {
        Vec::<i64>::try_from(tensor).expect("numbers")
    }

    #[test]
    fn queries_of_one_rank_lie_together() {
        let rows = Tensor::from_slice(&[0_i64, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(numbers(&queries(HEADS, &rows).expect("queries")), [0, 1, 4, 5, 2, 3, 6, 7]);
    }

    #[test]
    fn the_heads_of_a_fused_layer_come_apart() {
        // Two heads of two: q q k k v v of head 0, then of head 1.
        let heads = Heads { repeat: 1, ..HEADS };
        let weight = Tensor::from_slice(&[0_i64, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        let (q, kv) = apart(heads, &Layer { weight, bias: None, inputs: None }).expect("apart");
        assert_eq!(numbers(&q.weight), [0, 1, 6, 7]);
        assert_eq!(numbers(&kv.weight), [2, 3, 8, 9, 4, 5, 10, 11]);
    }
}
