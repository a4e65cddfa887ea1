use sepal_core::ModelConfig;
use tch::{TchError, Tensor};

use crate::attention::Heads;
use crate::block::{Activation, Block};
use crate::linear::Linear;
use crate::norm::Norm;
use crate::weights::{LoadError, Reader};

/// One block of the Llama family: RMSNorm, attention with rotary positions and grouped queries, RMSNorm, SwiGLU.
/// Biases wherever the checkpoint has them.
pub(crate) fn load(reader: &Reader<'_>, config: &ModelConfig) -> Result<Block, LoadError> {
    let &ModelConfig { hidden, n_heads, n_kv_heads, head_dim, ffn, .. } = config;
    for name in ["self_attn.q_norm.weight", "self_attn.k_norm.weight", "post_feedforward_layernorm.weight"] {
        reader.refuse(name)?;
    }
    let repeat = n_heads / n_kv_heads;
    let heads = Heads { kv: n_kv_heads as i64, repeat: repeat as i64, dim: head_dim as i64 };
    let layer = |name: &str, out: usize, inner: usize| {
        let weight = reader.tensor(&format!("{name}.weight"), &[out, inner])?;
        Ok::<_, LoadError>((weight, reader.optional(&format!("{name}.bias"), &[out])?))
    };
    let attention_norm = reader.tensor("input_layernorm.weight", &[hidden])?;
    let mlp_norm = reader.tensor("post_attention_layernorm.weight", &[hidden])?;
    let order = rows_of_heads(head_order(n_kv_heads, repeat), head_dim)?;
    let (q, q_bias) = reordered(layer("self_attn.q_proj", n_heads * head_dim, hidden)?, &order)?;
    let k = layer("self_attn.k_proj", n_kv_heads * head_dim, hidden)?;
    let v = layer("self_attn.v_proj", n_kv_heads * head_dim, hidden)?;
    let (kv, kv_bias) = stacked(&[k, v])?;
    let (output, output_bias) = layer("self_attn.o_proj", hidden, n_heads * head_dim)?;
    let output = output.f_index_select(1, &order)?;
    let (up, up_bias) = stacked(&[layer("mlp.gate_proj", ffn, hidden)?, layer("mlp.up_proj", ffn, hidden)?])?;
    let (down, down_bias) = layer("mlp.down_proj", hidden, ffn)?;
    Ok(Block {
        heads,
        norm: Norm::Rms { eps: config.norm_eps },
        activation: Activation::SwiGlu,
        q: Linear::after_norm(&q, q_bias, &attention_norm, None)?,
        kv: Linear::after_norm(&kv, kv_bias, &attention_norm, None)?,
        output: Linear::new(&output, output_bias)?,
        up: Linear::after_norm(&up, up_bias, &mlp_norm, None)?,
        down: Linear::new(&down, down_bias)?,
    })
}

type WeightAndBias = (Tensor, Option<Tensor>);

/// The checkpoint's head at each place of the order that [`Heads`] describes.
fn head_order(n_kv_heads: usize, repeat: usize) -> impl Iterator<Item = usize> {
    (0..repeat).flat_map(move |r| (0..n_kv_heads).map(move |kv| kv * repeat + r))
}

/// The checkpoint's rows of these heads, in order.
fn rows_of_heads(heads: impl Iterator<Item = usize>, head_dim: usize) -> Result<Tensor, TchError> {
    let rows = heads.flat_map(|head| head * head_dim..(head + 1) * head_dim);
    Tensor::f_from_slice(&rows.map(|row| row as i64).collect::<Vec<_>>())
}

fn reordered((weight, bias): WeightAndBias, rows: &Tensor) -> Result<WeightAndBias, TchError> {
    Ok((weight.f_index_select(0, rows)?, bias.map(|bias| bias.f_index_select(0, rows)).transpose()?))
}

/// The layers as one. A layer without a bias among some with one has a bias of zero.
fn stacked(layers: &[WeightAndBias]) -> Result<WeightAndBias, TchError> {
    let weights: Vec<&Tensor> = layers.iter().map(|(weight, _)| weight).collect();
    let bias = if layers.iter().any(|(_, bias)| bias.is_some()) {
        let biases = layers.iter().map(|(weight, bias)| match bias {
            Some(bias) => Ok(bias.shallow_clone()),
            None => weight.f_select(1, 0)?.f_zeros_like(),
        });
        Some(Tensor::f_cat(&biases.collect::<Result<Vec<_>, TchError>>()?, 0)?)
    } else {
        None
    };
    Ok((Tensor::f_cat(&weights, 0)?, bias))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_put_in_order() {
        assert_eq!(head_order(2, 3).collect::<Vec<_>>(), [0, 3, 1, 4, 2, 5]);
        let rows = Vec::<i64>::try_from(rows_of_heads(head_order(2, 2), 2).expect("rows")).expect("numbers");
        assert_eq!(rows, [0, 1, 4, 5, 2, 3, 6, 7]);
    }

    #[test]
    fn a_missing_bias_among_others_is_zero() {
        let weight = Tensor::ones([2, 3], (tch::Kind::Float, tch::Device::Cpu));
        let bias = Tensor::from_slice(&[5.0_f32, 6.0]);
        let (weights, biases) =
            stacked(&[(weight.shallow_clone(), Some(bias)), (weight.shallow_clone(), None)]).expect("stacked");
        assert_eq!(weights.size(), [4, 3]);
        assert_eq!(Vec::<f32>::try_from(biases.expect("a bias")).expect("numbers"), [5.0, 6.0, 0.0, 0.0]);
        assert!(stacked(&[(weight, None)]).expect("stacked").1.is_none());
    }
}
