//! Scaled dot-product attention of queries `[bins, heads, queries, dim]` on keys and values `[bins, heads, keys, dim]`,
//! possibly with a mask `[bins or 1, heads or 1, queries, keys]` added to the scores. libtorch's CPU kernel never holds
//! all scores at once. Capped scores and other devices use plain operations. Both compute in fp32: for 16 bits, the kernel
//! prepares each of its many small products anew, which takes several times as long as the products.

use tch::{Device, Kind, TchError, Tensor};

use crate::attention::heads::Heads;

/// Attention on some keys.
pub(crate) struct AttentionPart {
    /// Weighted means of the values, `[.., dim]`, of the kind of the queries.
    pub(crate) outputs: Tensor,
    /// Logarithms of the softmax sums, fp32.
    pub(crate) log_sums: Tensor,
}

/// True if libtorch has a kernel for these scores.
pub(crate) fn has_kernel(device: Device, heads: Heads) -> bool {
    heads.cap.is_none() && device == Device::Cpu
}

/// Returns the outputs, shaped as the queries, and the log-sums, `[bins, heads, queries]`.
pub(crate) fn forward(
    queries: &Tensor,
    keys_values: &[Tensor; 2],
    mask: Option<&Tensor>,
    heads: Heads,
) -> Result<AttentionPart, TchError> {
    match has_kernel(queries.device(), heads) {
        true => kernel_forward(queries, keys_values, false, mask, heads),
        false => plain_forward(queries, keys_values, mask, heads),
    }
}

/// As [`forward`] for as many keys as queries, each query on the keys up to its own. For scores that have a kernel.
pub(crate) fn causal_forward(
    queries: &Tensor,
    keys_values: &[Tensor; 2],
    heads: Heads,
) -> Result<AttentionPart, TchError> {
    debug_assert!(has_kernel(queries.device(), heads), "causal calls have no plain operations");
    kernel_forward(queries, keys_values, true, None, heads)
}

fn kernel_forward(
    queries: &Tensor,
    [keys, values]: &[Tensor; 2],
    is_causal: bool,
    mask: Option<&Tensor>,
    heads: Heads,
) -> Result<AttentionPart, TchError> {
    let [queries_fp32, keys, values] = to_fp32([queries, keys, values])?;
    let kernel = Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu;
    let (outputs, log_sums) = kernel(&queries_fp32, &keys, &values, 0.0, is_causal, mask, heads.scale)?;
    Ok(AttentionPart { outputs: outputs.f_to_kind(queries.kind())?, log_sums })
}

fn plain_forward(
    queries: &Tensor,
    keys_values: &[Tensor; 2],
    mask: Option<&Tensor>,
    heads: Heads,
) -> Result<AttentionPart, TchError> {
    let [queries_fp32, keys, values] = to_fp32([queries, &keys_values[0], &keys_values[1]])?;
    let mut scores = capped_scores(&queries_fp32, &keys, heads)?;
    if let Some(mask) = mask {
        scores = scores.f_add_(mask)?;
    }
    let sums = scores.f_logsumexp([-1], true)?;
    let outputs = scores.f_sub_(&sums)?.f_exp_()?.f_matmul(&values)?;
    Ok(AttentionPart { outputs: outputs.f_to_kind(queries.kind())?, log_sums: sums.f_squeeze_dim(-1)? })
}

/// Tensors of the forward pass and the gradient of its outputs. The outputs and log-sums may be those of attention on more
/// keys: the gradients are then exact for the keys of this call.
pub(crate) struct BackwardInput {
    pub(crate) grad: Tensor,
    pub(crate) queries: Tensor,
    pub(crate) outputs: Tensor,
    pub(crate) log_sums: Tensor,
}

impl BackwardInput {
    /// Changes the shape of all tensors; that of the log-sums loses its last dimension, which has the size 1.
    pub(crate) fn map(&self, view: impl Fn(&Tensor) -> Result<Tensor, TchError>) -> Result<Self, TchError> {
        Ok(Self {
            grad: view(&self.grad)?,
            queries: view(&self.queries)?,
            outputs: view(&self.outputs)?,
            log_sums: view(&self.log_sums)?.f_squeeze_dim(-1)?,
        })
    }
}

/// Returns the gradients of queries, keys and values in fp32.
pub(crate) fn backward(
    input: &BackwardInput,
    keys_values: &[Tensor; 2],
    mask: Option<&Tensor>,
    heads: Heads,
) -> Result<[Tensor; 3], TchError> {
    match has_kernel(input.queries.device(), heads) {
        true => kernel_backward(input, keys_values, false, mask, heads),
        false => plain_backward(input, keys_values, mask, heads),
    }
}

/// Backward pass of [`causal_forward`].
pub(crate) fn causal_backward(
    input: &BackwardInput,
    keys_values: &[Tensor; 2],
    heads: Heads,
) -> Result<[Tensor; 3], TchError> {
    kernel_backward(input, keys_values, true, None, heads)
}

fn kernel_backward(
    input: &BackwardInput,
    [keys, values]: &[Tensor; 2],
    is_causal: bool,
    mask: Option<&Tensor>,
    heads: Heads,
) -> Result<[Tensor; 3], TchError> {
    let [queries, keys, values] = to_fp32([&input.queries, keys, values])?;
    let [grad, outputs] = to_fp32([&input.grad, &input.outputs])?;
    let kernel = Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu_backward;
    let grads = kernel(&grad, &queries, &keys, &values, &outputs, &input.log_sums, 0.0, is_causal, mask, heads.scale);
    grads.map(|(queries, keys, values)| [queries, keys, values])
}

fn plain_backward(
    input: &BackwardInput,
    [keys, values]: &[Tensor; 2],
    mask: Option<&Tensor>,
    heads: Heads,
) -> Result<[Tensor; 3], TchError> {
    let [queries, keys, values] = to_fp32([&input.queries, keys, values])?;
    let [grad, outputs] = to_fp32([&input.grad, &input.outputs])?;
    let mut scores = capped_scores(&queries, &keys, heads)?;
    let slope = heads.cap.map(|cap| slope_of_cap(&scores, cap)).transpose()?;
    if let Some(mask) = mask {
        scores = scores.f_add_(mask)?;
    }
    let weights = scores.f_sub_(&input.log_sums.f_unsqueeze(-1)?)?.f_exp_()?;
    let grad_values = weights.f_transpose(-2, -1)?.f_matmul(&grad)?;
    let mean = grad.f_mul(&outputs)?.f_sum_dim_intlist(-1, true, Kind::Float)?;
    let mut grad_scores = grad.f_matmul(&values.f_transpose(-2, -1)?)?.f_sub_(&mean)?.f_mul_(&weights)?;
    if let Some(slope) = slope {
        grad_scores = grad_scores.f_mul_(&slope)?;
    }
    let grad_products = grad_scores.f_mul_scalar_(heads.scale())?;
    let grad_keys = grad_products.f_transpose(-2, -1)?.f_matmul(&queries)?;
    Ok([grad_products.f_matmul(&keys)?, grad_keys, grad_values])
}

fn to_fp32<const N: usize>(tensors: [&Tensor; N]) -> Result<[Tensor; N], TchError> {
    let mut converted = tensors.map(Tensor::shallow_clone);
    for tensor in &mut converted {
        *tensor = tensor.f_to_kind(Kind::Float)?;
    }
    Ok(converted)
}

/// Returns the scores, with their cap if there is one.
fn capped_scores(queries: &Tensor, keys: &Tensor, heads: Heads) -> Result<Tensor, TchError> {
    let mut scores = queries.f_matmul(&keys.f_transpose(-2, -1)?)?.f_mul_scalar_(heads.scale())?;
    match heads.cap {
        Some(cap) => scores.f_div_scalar_(cap)?.f_tanh_()?.f_mul_scalar_(cap),
        None => Ok(scores),
    }
}

/// Slope of the cap at capped scores `s`: `1 - (s / cap)^2`.
fn slope_of_cap(scores: &Tensor, cap: f64) -> Result<Tensor, TchError> {
    scores.f_div_scalar(cap)?.f_square_()?.f_neg_()?.f_add_scalar_(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::heads::AttentionRange;

    fn random(shape: [i64; 4]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn assert_close(found: &Tensor, expected: &Tensor) {
        let off = f64::try_from((found - expected).abs().max() / expected.abs().max()).expect("a number");
        assert!(off < 1e-5, "off by {off}");
    }

    /// The window is narrower than the kernel's blocks, so that some blocks are hidden from some queries.
    #[test]
    fn kernel_and_plain_operations_equal_reference_attention() {
        let (n_queries, n_keys, window) = (700, 1300, 20);
        let positions = Tensor::arange(n_keys, (Kind::Int64, Device::Cpu));
        let distance = positions.narrow(0, n_keys - n_queries, n_queries).unsqueeze(1) - &positions;
        let hidden = distance.lt(0).logical_or(&distance.ge(window));
        let zeros = Tensor::zeros([1, 1, n_queries, n_keys], (Kind::Float, Device::Cpu));
        let mask = zeros.masked_fill(&hidden, f64::NEG_INFINITY);
        for (scale, cap) in [(None, None), (Some(0.5), None), (Some(0.5), Some(1.5))] {
            let range = AttentionRange::Full;
            let heads =
                Heads { kv: 2, repeat: 1, dim: 8, scale, cap, range, is_rotated: true, has_adjacent_pairs: false };
            let [q, k, v] = [n_queries, n_keys, n_keys].map(|n| random([1, 2, n, 8]).set_requires_grad(true));
            let grad = random([1, 2, n_queries, 8]);
            let scores = q.matmul(&k.transpose(-2, -1)) * scale.unwrap_or(8_f64.powf(-0.5));
            let scores = cap.map_or(scores.shallow_clone(), |cap| (&scores / cap).tanh() * cap);
            let expected = (scores + &mask).softmax(-1, Kind::Float).matmul(&v);
            (&expected * &grad).sum(Kind::Float).backward();
            let assert_grads = |found: [Tensor; 3]| {
                found.iter().zip([&q, &k, &v]).for_each(|(found, input)| assert_close(found, &input.grad()));
            };
            let (queries, kv) = (q.detach(), [k.detach(), v.detach()]);
            let AttentionPart { outputs, log_sums } = forward(&queries, &kv, Some(&mask), heads).expect("attention");
            assert_close(&outputs, &expected.detach());
            let input = BackwardInput { grad, queries, outputs, log_sums };
            assert_grads(backward(&input, &kv, Some(&mask), heads).expect("gradients"));
            // Plain operations without a cap serve other devices.
            assert_grads(plain_backward(&input, &kv, Some(&mask), heads).expect("gradients"));
            let plain = plain_forward(&input.queries, &kv, Some(&mask), heads).expect("attention");
            assert_close(&plain.outputs, &expected.detach());
            assert_close(&plain.log_sums, &input.log_sums);
        }
    }

    /// Outputs are rounded once; gradients are not.
    #[test]
    fn attention_of_16_bits_is_computed_in_fp32() {
        let range = AttentionRange::Full;
        let heads = Heads {
            kv: 2,
            repeat: 1,
            dim: 8,
            scale: None,
            cap: None,
            range,
            is_rotated: true,
            has_adjacent_pairs: false,
        };
        let rounded = [30, 50, 50, 30].map(|n| random([1, 2, n, 8]).to_kind(Kind::BFloat16));
        let [queries, keys, values, grad] = &rounded;
        let [wide_queries, wide_keys, wide_values, wide_grad] = rounded.each_ref().map(|x| x.to_kind(Kind::Float));
        let (kv, wide_kv) = ([keys, values].map(Tensor::shallow_clone), [wide_keys, wide_values]);
        let found = forward(queries, &kv, None, heads).expect("attention");
        let wide = forward(&wide_queries, &wide_kv, None, heads).expect("attention");
        assert_eq!(found.outputs, wide.outputs.to_kind(Kind::BFloat16));
        assert_eq!(found.log_sums, wide.log_sums);
        let outputs = found.outputs.to_kind(Kind::Float);
        let AttentionPart { outputs: rounded_outputs, log_sums } = found;
        let input = BackwardInput {
            grad: grad.shallow_clone(),
            queries: queries.shallow_clone(),
            outputs: rounded_outputs,
            log_sums: log_sums.shallow_clone(),
        };
        let wide_input = BackwardInput { grad: wide_grad, queries: wide_queries, outputs, log_sums };
        let grads = backward(&input, &kv, None, heads).expect("gradients");
        assert_eq!(grads, backward(&wide_input, &wide_kv, None, heads).expect("gradients"));
        assert!(grads.iter().all(|grad| grad.kind() == Kind::Float));
    }
}
