//! Scaled dot-product attention of queries `[bins, heads, queries, dim]` on keys and values `[bins, heads, keys, dim]`,
//! with a mask `[bins or 1, heads or 1, queries, keys]` added to the scores. libtorch's CPU kernel never holds all scores
//! at once. Capped scores and other devices use plain operations.

use tch::{Device, Kind, TchError, Tensor};

use crate::attention::heads::Heads;

/// Returns the outputs, shaped as the queries, and the logarithms of the softmax sums, `[bins, heads, queries]`.
pub(crate) fn forward(
    queries: &Tensor,
    [keys, values]: &[Tensor; 2],
    mask: &Tensor,
    heads: Heads,
) -> Result<(Tensor, Tensor), TchError> {
    if has_kernel(queries, heads) {
        let kernel = Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu;
        return kernel(queries, keys, values, 0.0, false, Some(mask), heads.scale);
    }
    let (scores, _) = capped_scores(queries, keys, heads)?;
    let scores = scores.f_add(mask)?;
    let sums = scores.f_logsumexp([-1], true)?;
    let output = scores.f_sub(&sums)?.f_exp()?.f_matmul(values)?;
    Ok((output, sums.f_squeeze_dim(-1)?))
}

fn has_kernel(queries: &Tensor, heads: Heads) -> bool {
    heads.cap.is_none() && queries.device() == Device::Cpu
}

/// Gradient of the outputs, and the queries, outputs and log-sums of the forward pass.
pub(crate) struct BackwardInput<'a> {
    pub(crate) grad: &'a Tensor,
    pub(crate) queries: &'a Tensor,
    pub(crate) outputs: &'a Tensor,
    pub(crate) log_sums: &'a Tensor,
}

/// Returns the gradients of queries, keys and values.
pub(crate) fn backward(
    input: &BackwardInput<'_>,
    [keys, values]: &[Tensor; 2],
    mask: &Tensor,
    heads: Heads,
) -> Result<[Tensor; 3], TchError> {
    let &BackwardInput { grad, queries, outputs, log_sums } = input;
    if has_kernel(queries, heads) {
        let kernel = Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu_backward;
        let grads = kernel(grad, queries, keys, values, outputs, log_sums, 0.0, false, Some(mask), heads.scale);
        return grads.map(|(queries, keys, values)| [queries, keys, values]);
    }
    plain_backward(input, [keys, values], mask, heads)
}

fn plain_backward(
    input: &BackwardInput<'_>,
    [keys, values]: [&Tensor; 2],
    mask: &Tensor,
    heads: Heads,
) -> Result<[Tensor; 3], TchError> {
    let &BackwardInput { grad, queries, outputs, log_sums } = input;
    let (scores, slope) = capped_scores(queries, keys, heads)?;
    let weights = scores.f_add(mask)?.f_sub(&log_sums.f_unsqueeze(-1)?)?.f_exp()?;
    let grad_values = weights.f_transpose(-2, -1)?.f_matmul(grad)?;
    let mean = grad.f_mul(outputs)?.f_sum_dim_intlist(-1, true, Kind::Float)?;
    let grad_capped = grad.f_matmul(&values.f_transpose(-2, -1)?)?.f_sub_(&mean)?.f_mul_(&weights)?;
    let grad_scores = slope.map_or_else(|| Ok(grad_capped.shallow_clone()), |slope| grad_capped.f_mul(&slope))?;
    let grad_products = grad_scores.f_mul_scalar(heads.scale())?;
    let grad_keys = grad_products.f_transpose(-2, -1)?.f_matmul(queries)?;
    Ok([grad_products.f_matmul(keys)?, grad_keys, grad_values])
}

/// Returns the scores, and the slope of their cap if there is one.
fn capped_scores(queries: &Tensor, keys: &Tensor, heads: Heads) -> Result<(Tensor, Option<Tensor>), TchError> {
    let scores = queries.f_matmul(&keys.f_transpose(-2, -1)?)?.f_mul_scalar(heads.scale())?;
    let Some(cap) = heads.cap else { return Ok((scores, None)) };
    let curve = scores.f_div_scalar(cap)?.f_tanh()?;
    let slope = curve.f_square()?.f_neg()?.f_add_scalar(1.0)?;
    Ok((curve.f_mul_scalar(cap)?, Some(slope)))
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
            let (outputs, log_sums) = forward(&queries, &kv, &mask, heads).expect("attention");
            assert_close(&outputs, &expected.detach());
            let input = BackwardInput { grad: &grad, queries: &queries, outputs: &outputs, log_sums: &log_sums };
            assert_grads(backward(&input, &kv, &mask, heads).expect("gradients"));
            // Plain operations without a cap serve other devices.
            assert_grads(plain_backward(&input, [&kv[0], &kv[1]], &mask, heads).expect("gradients"));
            let scores = capped_scores(&queries, &kv[0], heads).expect("scores").0 + &mask;
            assert_close(&scores.softmax(-1, Kind::Float).matmul(&kv[1]), &expected.detach());
        }
    }
}
