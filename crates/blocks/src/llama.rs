use sepal_core::ModelConfig;
use tch::{TchError, Tensor};

use crate::attention::{Heads, attend, attend_pooled};
use crate::layout::{Layout, Pooled};
use crate::linear::Linear;
use crate::rope::{pair_order, rotate};
use crate::stack::Block;
use crate::weights::{LoadError, Reader};

/// One block of the Llama family: RMSNorm, attention with rotary positions and grouped queries, RMSNorm, SwiGLU.
/// Biases wherever the checkpoint has them.
#[derive(Debug)]
pub(crate) struct LlamaBlock {
    heads: Heads,
    hidden: i64,
    norm_eps: f64,
    /// `[hidden, q_size + 2 kv_size]`, query heads in the order of [`Heads`], pairs of queries and keys side by side.
    qkv: Linear,
    output: Linear,
    /// Not one layer with `up`: cutting its output in two costs more than the larger product gains.
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl LlamaBlock {
    pub(crate) fn load(reader: &Reader<'_>, config: &ModelConfig) -> Result<Self, LoadError> {
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

        let query_heads: Vec<usize> = head_order(n_kv_heads, repeat).collect();
        let q = reordered(layer("self_attn.q_proj", n_heads * head_dim, hidden)?, &pairs(&query_heads, head_dim)?)?;
        let key_heads: Vec<usize> = (0..n_kv_heads).collect();
        let k = reordered(layer("self_attn.k_proj", n_kv_heads * head_dim, hidden)?, &pairs(&key_heads, head_dim)?)?;
        let v = layer("self_attn.v_proj", n_kv_heads * head_dim, hidden)?;
        let (qkv, qkv_bias) = stacked(&[q, k, v])?;
        let (output, output_bias) = layer("self_attn.o_proj", hidden, n_heads * head_dim)?;
        let output = output.f_index_select(1, &whole(&query_heads, head_dim)?)?;
        let (gate, gate_bias) = layer("mlp.gate_proj", ffn, hidden)?;
        let (up, up_bias) = layer("mlp.up_proj", ffn, hidden)?;
        let (down, down_bias) = layer("mlp.down_proj", hidden, ffn)?;
        Ok(Self {
            heads,
            hidden: hidden as i64,
            norm_eps: config.norm_eps,
            qkv: Linear::after_norm(&qkv, qkv_bias, &attention_norm, None)?,
            output: Linear::new(&output, output_bias)?,
            gate: Linear::after_norm(&gate, gate_bias, &mlp_norm, None)?,
            up: Linear::after_norm(&up, up_bias, &mlp_norm, None)?,
            down: Linear::new(&down, down_bias)?,
        })
    }

    /// RMSNorm without its weight, which the next layer has taken in.
    fn norm(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_rms_norm(self.hidden, None::<Tensor>, self.norm_eps)
    }

    fn mlp(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        let x = self.norm(hidden)?;
        let inner = self.gate.forward(&x)?.f_silu()?.f_mul(&self.up.forward(&x)?)?;
        self.down.add_to(hidden, &inner)
    }
}

impl Block for LlamaBlock {
    /// The rotations of the slots.
    type Context = Tensor;

    fn forward(&self, hidden: &Tensor, layout: &Layout, rotations: &Tensor) -> Result<Tensor, TchError> {
        let Heads { kv, repeat, dim } = self.heads;
        let (q_size, kv_size) = (self.heads.q_size(), self.heads.kv_size());
        let qkv = self.qkv.forward(&self.norm(hidden)?)?.f_split_with_sizes([q_size, kv_size, kv_size], 1)?;
        let q = rotate(&qkv[0], rotations, kv * repeat, dim)?;
        let k = rotate(&qkv[1], rotations, kv, dim)?;
        let attention = attend(&q, &k, &qkv[2], self.heads, layout)?;
        self.mlp(&self.output.add_to(hidden, &attention)?)
    }

    fn forward_pooled(
        &self,
        hidden: &Tensor,
        layout: &Layout,
        pooled: &Pooled,
        rotations: &Tensor,
    ) -> Result<Tensor, TchError> {
        let Heads { kv, repeat, dim } = self.heads;
        let (q_size, kv_size) = (self.heads.q_size(), self.heads.kv_size());
        let x = self.norm(hidden)?;
        let k_and_v = self.qkv.forward_part(&x, q_size, 2 * kv_size)?.f_split_with_sizes([kv_size, kv_size], 1)?;
        let k = rotate(&k_and_v[0], rotations, kv, dim)?;
        let q = self.qkv.forward_part(&x.f_index_select(0, &pooled.slots)?, 0, q_size)?;
        let q = rotate(&q, &rotations.f_index_select(0, &pooled.slots)?, kv * repeat, dim)?;
        let attention = attend_pooled(&q, &k, &k_and_v[1], self.heads, layout, pooled)?;
        let hidden = hidden.f_index_select(0, &pooled.slots)?; // [rows, hidden]
        self.mlp(&self.output.add_to(&hidden, &attention)?)
    }
}

type WeightAndBias = (Tensor, Option<Tensor>);

/// The checkpoint's head at each place of the order that [`Heads`] describes.
fn head_order(n_kv_heads: usize, repeat: usize) -> impl Iterator<Item = usize> {
    (0..repeat).flat_map(move |r| (0..n_kv_heads).map(move |kv| kv * repeat + r))
}

/// The checkpoint's rows of these heads, in order.
fn whole(heads: &[usize], head_dim: usize) -> Result<Tensor, TchError> {
    let rows = heads.iter().flat_map(|head| head * head_dim..(head + 1) * head_dim);
    Tensor::f_from_slice(&rows.map(|row| row as i64).collect::<Vec<_>>())
}

/// The checkpoint's rows of these heads, in order, those that rotate together side by side.
fn pairs(heads: &[usize], head_dim: usize) -> Result<Tensor, TchError> {
    let rows = heads.iter().flat_map(|head| pair_order(head_dim).map(move |i| head * head_dim + i));
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
    fn heads_and_pairs_are_put_in_order() {
        let heads: Vec<usize> = head_order(2, 3).collect();
        assert_eq!(heads, [0, 3, 1, 4, 2, 5]);
        let rows = Vec::<i64>::try_from(pairs(&heads[..2], 4).expect("rows")).expect("numbers");
        assert_eq!(rows, [0, 2, 1, 3, 12, 14, 13, 15]);
        let rows = Vec::<i64>::try_from(whole(&heads[..2], 2).expect("rows")).expect("numbers");
        assert_eq!(rows, [0, 1, 6, 7]);
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
