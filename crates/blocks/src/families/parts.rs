//! Parts of blocks that several families share.

use sepal_core::ModelConfig;
use tch::{Kind, TchError, Tensor};

use crate::attention::heads::{AttentionRange, Heads};
use crate::exec::block::Block;
use crate::layers::dense::{Activate, Dense};
use crate::layers::linear::Layer;
use crate::layers::mlp::Mlp;
use crate::layers::norm::{HeadNorms, Norm, NormWeights, WeightedNorm};
use crate::weights::{LoadError, Reader};

pub(super) fn heads(config: &ModelConfig, block_idx: usize) -> Heads {
    let scores = &config.scores;
    let has_window = scores.window.as_ref().is_some_and(|window| window.blocks.get(block_idx) == Some(&true));
    let mut heads = Heads {
        kv: config.n_kv_heads as i64,
        repeat: (config.n_heads / config.n_kv_heads) as i64,
        dim: config.head_dim as i64,
        scale: scores.scale,
        cap: scores.cap,
        range: if has_window { AttentionRange::Windowed } else { AttentionRange::Full },
        is_rotated: config.unrotated_blocks.get(block_idx) != Some(&true),
        has_adjacent_pairs: super::spec(config.family).has_adjacent_pairs,
    };
    if scores.by_block {
        heads.scale = Some(heads.scale() / (block_idx + 1) as f64);
    }
    heads
}

/// Reorders queries `[kv * repeat * dim, ..]` to the order of [`Heads`].
pub(super) fn queries(heads: Heads, rows: &Tensor) -> Result<Tensor, TchError> {
    let shape = [&[heads.kv, heads.repeat, heads.dim], &rows.size()[1..]].concat();
    rows.f_view(shape.as_slice())?.f_transpose(0, 1)?.f_reshape(rows.size())
}

/// Reorders the inputs of the layer after attention to the order of [`Heads`].
pub(super) fn from_queries(heads: Heads, layer: Layer) -> Result<Layer, TchError> {
    if heads.repeat == 1 {
        return Ok(layer);
    }
    let order = queries(heads, &Tensor::f_arange(heads.q_size(), (Kind::Int64, tch::Device::Cpu))?)?;
    layer.with_inputs(order)
}

/// Splits a layer that has, for each key head, its queries, the key and the value into queries and keys with values.
fn split_heads(heads: Heads, fused: &Layer) -> Result<(Layer, Layer), TchError> {
    let part = |start: i64, len: i64| {
        fused.map_rows(|rows| {
            let shape = [&[heads.kv, heads.repeat + 2, heads.dim], &rows.size()[1..]].concat();
            let picked = rows.f_view(shape.as_slice())?.f_narrow(1, start, len)?.f_transpose(0, 1)?;
            picked.f_reshape([&[heads.kv * len * heads.dim], &rows.size()[1..]].concat().as_slice())
        })
    };
    Ok((part(0, heads.repeat)?, part(heads.repeat, 2)?))
}

/// A block without optional parts, of the layers of queries, of keys with values, and of attention's output.
pub(super) fn plain_block(
    reader: &Reader<'_>,
    heads: Heads,
    norm: Norm,
    [q, kv, output]: [Layer; 3],
    mlp: Mlp,
) -> Result<Block, LoadError> {
    let residual_factor = reader.config().factors.residual;
    let (q, kv, output) = (reader.frozen(q)?, reader.frozen(kv)?, reader.frozen(output)?);
    let (head_norms, sinks, attention_norm, mlp_norm) = (None, None, None, None);
    let is_parallel = false;
    Ok(Block {
        heads,
        norm,
        is_parallel,
        residual_factor,
        q,
        kv,
        head_norms,
        sinks,
        output,
        attention_norm,
        mlp,
        mlp_norm,
    })
}

/// A block of LayerNorms with a fused layer of queries, keys and values in `attention`, and an ungated MLP.
pub(super) fn fused_block(
    reader: &Reader<'_>,
    config: &ModelConfig,
    heads: Heads,
    attention: &str,
    [norm, mlp_norm]: [&NormWeights; 2],
) -> Result<Block, LoadError> {
    let &ModelConfig { hidden, n_heads, n_kv_heads, head_dim, ffn, .. } = config;
    let fused_rows = (n_heads + 2 * n_kv_heads) * head_dim;
    let fused = reader.layer(&format!("{attention}.query_key_value"), fused_rows, hidden)?.after(norm)?;
    let (q, kv) = split_heads(heads, &fused)?;
    let output = reader.layer(&format!("{attention}.dense"), hidden, n_heads * head_dim)?;
    let up = reader.layer("mlp.dense_h_to_4h", ffn, hidden)?.after(mlp_norm)?;
    let mlp = plain_mlp(reader, config, up, reader.layer("mlp.dense_4h_to_h", hidden, ffn)?)?;
    let block = plain_block(reader, heads, layer_norm(config), [q, kv, from_queries(heads, output)?], mlp)?;
    Ok(Block { is_parallel: config.is_parallel, ..block })
}

/// An ungated MLP.
pub(super) fn plain_mlp(reader: &Reader<'_>, config: &ModelConfig, up: Layer, down: Layer) -> Result<Mlp, LoadError> {
    let activation = Activate { function: config.activation, is_gated: false };
    Ok(Mlp::Dense(Dense { activation, up: reader.frozen(up)?, down: reader.frozen(down)? }))
}

pub(super) fn layer_norm(config: &ModelConfig) -> Norm {
    Norm::Layer { eps: config.norm_eps }
}

pub(super) fn rms_norm(config: &ModelConfig) -> Norm {
    Norm::Rms { eps: config.norm_eps }
}

/// LayerNorms without bias of queries and keys, with a weight for each head: `[n_heads, head_dim]`, `[n_kv_heads, head_dim]`.
pub(super) fn layer_norms_by_head(
    config: &ModelConfig,
    heads: Heads,
    q: Tensor,
    k: Tensor,
) -> Result<HeadNorms, TchError> {
    let q = queries(heads, &q.f_reshape([-1_i64])?)?.f_view(q.size().as_slice())?;
    let norm = |weight: Tensor| WeightedNorm { norm: layer_norm(config), weight };
    Ok(HeadNorms { q: norm(q), k: norm(k) })
}

/// A norm of the outputs of attention or MLP.
pub(super) fn output_norm(config: &ModelConfig, weights: NormWeights) -> WeightedNorm {
    WeightedNorm { norm: rms_norm(config), weight: weights.scale }
}

#[cfg(test)]
mod tests {
    use sepal_core::Family;

    use super::*;
    use crate::layers::packed::Weight;

    const HEADS: Heads = Heads {
        kv: 2,
        repeat: 2,
        dim: 2,
        scale: None,
        cap: None,
        range: AttentionRange::Full,
        is_rotated: true,
        has_adjacent_pairs: false,
    };

    fn numbers(tensor: &Tensor) -> Vec<i64> {
        Vec::<i64>::try_from(tensor).expect("numbers")
    }

    #[test]
    fn queries_of_the_same_rank_are_adjacent() {
        let rows = Tensor::from_slice(&[0_i64, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(numbers(&queries(HEADS, &rows).expect("queries")), [0, 1, 4, 5, 2, 3, 6, 7]);
    }

    #[test]
    fn weights_of_query_norms_are_in_the_order_of_queries() {
        let config = ModelConfig { n_kv_heads: 2, ..ModelConfig::plain(Family::Cohere, 1, 8, 4, 8, 8) };
        let weight = Tensor::from_slice(&[0_i64, 1, 2, 3, 4, 5, 6, 7]);
        let q = weight.view([4, 2]);
        let norms = layer_norms_by_head(&config, HEADS, q, weight.narrow(0, 0, 4).view([2, 2])).expect("norms");
        assert_eq!(norms.q.weight.size(), [4, 2]);
        assert_eq!(numbers(&norms.q.weight.view([-1])), numbers(&queries(HEADS, &weight).expect("queries")));
        assert_eq!(numbers(&norms.k.weight.view([-1])), [0, 1, 2, 3]);
        assert_eq!(norms.per_position(HEADS), [4, 2]);
    }

    #[test]
    fn split_heads_separates_a_fused_layer() {
        // Two heads of two: q q k k v v of head 0, then of head 1.
        let heads = Heads { repeat: 1, ..HEADS };
        let weight = Tensor::from_slice(&[0_i64, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        let (q, kv) =
            split_heads(heads, &Layer::new("layer", Weight::Plain(weight), None).expect("a layer")).expect("layers");
        assert_eq!(numbers(&q.weight.into_plain().expect("a weight")), [0, 1, 6, 7]);
        assert_eq!(numbers(&kv.weight.into_plain().expect("a weight")), [2, 3, 8, 9, 4, 5, 10, 11]);
    }
}
