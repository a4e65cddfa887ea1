use sepal_core::ModelConfig;
use tch::{TchError, Tensor};

use crate::attention::Heads;
use crate::block::{Activation, Block};
use crate::linear::Linear;
use crate::norm::Norm;
use crate::weights::{LoadError, Reader};

/// One block of BLOOM (arXiv 2211.05100): LayerNorm, attention with linear biases, LayerNorm, GELU.
pub(crate) fn load(reader: &Reader<'_>, config: &ModelConfig) -> Result<Block, LoadError> {
    let &ModelConfig { hidden, n_heads, head_dim, ffn, .. } = config;
    let heads = Heads { kv: n_heads as i64, repeat: 1, dim: head_dim as i64 };
    let norm = |name: &str| {
        let scale = reader.tensor(&format!("{name}.weight"), &[hidden])?;
        Ok::<_, LoadError>((scale, reader.tensor(&format!("{name}.bias"), &[hidden])?))
    };
    let layer = |name: &str, out: usize, inner: usize| {
        let weight = reader.tensor(&format!("{name}.weight"), &[out, inner])?;
        Ok::<_, LoadError>((weight, reader.optional(&format!("{name}.bias"), &[out])?))
    };
    let (scale, shift) = norm("input_layernorm")?;
    let (qkv, qkv_bias) = layer("self_attention.query_key_value", 3 * hidden, hidden)?;
    let (qkv, qkv_bias) = (apart(&qkv, heads)?, qkv_bias.map(|bias| apart(&bias, heads)).transpose()?);
    let size = hidden as i64;
    let part = |start: i64, len: i64| {
        let bias = qkv_bias.as_ref().map(|bias| bias.f_narrow(0, start, len)).transpose()?;
        Linear::after_norm(&qkv.f_narrow(0, start, len)?, bias, &scale, Some(&shift))
    };
    let (q, kv) = (part(0, size)?, part(size, 2 * size)?);
    let (output, output_bias) = layer("self_attention.dense", hidden, hidden)?;
    let (scale, shift) = norm("post_attention_layernorm")?;
    let (up, up_bias) = layer("mlp.dense_h_to_4h", ffn, hidden)?;
    let (down, down_bias) = layer("mlp.dense_4h_to_h", hidden, ffn)?;
    Ok(Block {
        heads,
        norm: Norm::Layer { eps: config.norm_eps },
        activation: Activation::GeluTanh,
        q,
        kv,
        output: Linear::new(&output, output_bias)?,
        up: Linear::after_norm(&up, up_bias, &scale, Some(&shift))?,
        down: Linear::new(&down, down_bias)?,
    })
}

/// How much each head's scores lose per position (arXiv 2108.12409). Where the number of heads is no power of two,
/// the heads beyond the last power take every other slope of the next.
pub(crate) fn alibi_slopes(n_heads: usize) -> Vec<f32> {
    let power = if n_heads.is_power_of_two() { n_heads } else { n_heads.next_power_of_two() / 2 };
    let slope = |heads: usize, i: usize| (-8.0 / heads as f64 * i as f64).exp2() as f32;
    let first = (1..=power).map(|i| slope(power, i));
    let rest = (0..n_heads - power).map(|i| slope(2 * power, 2 * i + 1));
    first.chain(rest).collect()
}

/// From the checkpoint's rows, query, key and value of one head after another, to all queries, all keys, all values.
fn apart(fused: &Tensor, heads: Heads) -> Result<Tensor, TchError> {
    let rest = &fused.size()[1..];
    let by_head = [&[heads.kv, 3, heads.dim], rest].concat();
    fused.f_view(by_head.as_slice())?.f_transpose(0, 1)?.f_reshape(fused.size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_of_powers_of_two_and_others() {
        assert_eq!(alibi_slopes(4), [0.25, 0.0625, 0.015625, 0.00390625]);
        assert_eq!(alibi_slopes(6), [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]);
        assert_eq!(alibi_slopes(1), [0.00390625]);
        assert_eq!(alibi_slopes(3).len(), 3);
    }

    #[test]
    fn the_heads_of_the_fused_layer_come_apart() {
        // Two heads of two: q q k k v v of head 0, then of head 1.
        let fused = Tensor::from_slice(&[0_i64, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        let heads = Heads { kv: 2, repeat: 1, dim: 2 };
        let order = Vec::<i64>::try_from(apart(&fused, heads).expect("apart")).expect("numbers");
        assert_eq!(order, [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
    }
}
