//! Attention of queries `[bins, heads, queries, dim]` on keys and values `[bins, heads, keys, dim]`, with a mask
//! `[bins or 1, heads or 1, queries, keys]` added to the scores. libtorch's kernel for the CPU does it without ever having
//! all scores; where scores are capped, and on other devices, it is done in plain operations.

use tch::{Device, Kind, TchError, Tensor};

use crate::attention::Heads;

/// The outputs, shaped as the queries, and the logarithms of the softmax sums, `[bins, heads, queries]`.
pub(crate) fn forward(
    queries: &Tensor,
    [keys, values]: &[Tensor; 2],
    mask: &Tensor,
    heads: Heads,
) -> Result<(Tensor, Tensor), TchError> {
    if has_kernel(queries, heads) {
        return Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu(
            queries,
            keys,
            values,
            0.0,
            false,
            Some(mask),
            heads.scale,
        );
    }
    let (scores, _) = scored(queries, keys, heads)?;
    let scores = scores.f_add(mask)?;
    let sums = scores.f_logsumexp([-1], true)?;
    let output = scores.f_sub(&sums)?.f_exp()?.f_matmul(values)?;
    Ok((output, sums.f_squeeze_dim(-1)?))
}

fn has_kernel(queries: &Tensor, heads: Heads) -> bool {
    heads.cap.is_none() && queries.device() == Device::Cpu
}

/// What the way back starts from: the gradient of the outputs, and what went in and came out.
pub(crate) struct Given<'a> {
    pub(crate) grad: &'a Tensor,
    pub(crate) queries: &'a Tensor,
    pub(crate) outputs: &'a Tensor,
    pub(crate) log_sums: &'a Tensor,
}

/// The gradients of queries, keys and values.
pub(crate) fn backward(
    given: &Given<'_>,
    [keys, values]: &[Tensor; 2],
    mask: &Tensor,
    heads: Heads,
) -> Result<(Tensor, Tensor, Tensor), TchError> {
    let &Given { grad, queries, outputs, log_sums } = given;
    if has_kernel(queries, heads) {
        return Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu_backward(
            grad,
            queries,
            keys,
            values,
            outputs,
            log_sums,
            0.0,
            false,
            Some(mask),
            heads.scale,
        );
    }
    plain_backward(given, [keys, values], mask, heads)
}

fn plain_backward(
    given: &Given<'_>,
    [keys, values]: [&Tensor; 2],
    mask: &Tensor,
    heads: Heads,
) -> Result<(Tensor, Tensor, Tensor), TchError> {
    let &Given { grad, queries, outputs, log_sums } = given;
    let (scores, slope) = scored(queries, keys, heads)?;
    let weights = scores.f_add(mask)?.f_sub(&log_sums.f_unsqueeze(-1)?)?.f_exp()?;
    let of_values = weights.f_transpose(-2, -1)?.f_matmul(grad)?;
    let mean = grad.f_mul(outputs)?.f_sum_dim_intlist(-1, true, Kind::Float)?;
    let of_capped = grad.f_matmul(&values.f_transpose(-2, -1)?)?.f_sub_(&mean)?.f_mul_(&weights)?;
    let of_scores = slope.map_or_else(|| Ok(of_capped.shallow_clone()), |slope| of_capped.f_mul(&slope))?;
    let of_products = of_scores.f_mul_scalar(heads.scale())?;
    let of_keys = of_products.f_transpose(-2, -1)?.f_matmul(queries)?;
    Ok((of_products.f_matmul(keys)?, of_keys, of_values))
}

/// The scores, and the slope of the cap on them, if there is one.
fn scored(queries: &Tensor, keys: &Tensor, heads: Heads) -> Result<(Tensor, Option<Tensor>), TchError> {
    let scores = queries.f_matmul(&keys.f_transpose(-2, -1)?)?.f_mul_scalar(heads.scale())?;
    let Some(cap) = heads.cap else { return Ok((scores, None)) };
    let curve = scores.f_div_scalar(cap)?.f_tanh()?;
    let slope = curve.f_square()?.f_neg()?.f_add_scalar(1.0)?;
    Ok((curve.f_mul_scalar(cap)?, Some(slope)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::Reach;

    fn random(shape: [i64; 4]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn assert_close(found: &Tensor, expected: &Tensor) {
        let off = f64::try_from((found - expected).abs().max() / expected.abs().max()).expect("a number");
        assert!(off < 1e-5, "off by {off}");
    }

    /// A window narrower than the kernel's blocks, so that some blocks are hidden from some queries.
    #[test]
    fn both_kernels_equal_the_plain_computation() {
        let (queries, n_keys, window) = (700, 1300, 20);
        let at = Tensor::arange(n_keys, (Kind::Int64, Device::Cpu));
        let distance = at.narrow(0, n_keys - queries, queries).unsqueeze(1) - &at;
        let hidden = distance.lt(0).logical_or(&distance.ge(window));
        let zeros = Tensor::zeros([1, 1, queries, n_keys], (Kind::Float, Device::Cpu));
        let mask = zeros.masked_fill(&hidden, f64::NEG_INFINITY);
        for (scale, cap) in [(None, None), (Some(0.5), None), (Some(0.5), Some(1.5))] {
            let heads = Heads { kv: 2, repeat: 1, dim: 8, scale, cap, reach: Reach::All };
            let [q, k, v] = [queries, n_keys, n_keys].map(|n| random([1, 2, n, 8]).set_requires_grad(true));
            let grad = random([1, 2, queries, 8]);
            let scores = q.matmul(&k.transpose(-2, -1)) * scale.unwrap_or(8_f64.powf(-0.5));
            let scores = cap.map_or(scores.shallow_clone(), |cap| (&scores / cap).tanh() * cap);
            let expected = (scores + &mask).softmax(-1, Kind::Float).matmul(&v);
            (&expected * &grad).sum(Kind::Float).backward();
            let [dq, dk, dv] = [&q, &k, &v].map(Tensor::grad);
            let (q, kv) = (q.detach(), [k.detach(), v.detach()]);
            let (outputs, log_sums) = forward(&q, &kv, &mask, heads).expect("attention");
            assert_close(&outputs, &expected.detach());
            let given = Given { grad: &grad, queries: &q, outputs: &outputs, log_sums: &log_sums };
            let (gq, gk, gv) = backward(&given, &kv, &mask, heads).expect("gradients");
            assert_close(&gq, &dq);
            assert_close(&gk, &dk);
            assert_close(&gv, &dv);
            // Without a cap the plain way is that of other devices.
            let (pq, pk, pv) = plain_backward(&given, [&kv[0], &kv[1]], &mask, heads).expect("gradients");
            [(pq, dq), (pk, dk), (pv, dv)].iter().for_each(|(found, expected)| assert_close(found, expected));
            let scores = scored(&q, &kv[0], heads).expect("scores").0 + &mask;
            assert_close(&scores.softmax(-1, Kind::Float).matmul(&kv[1]), &expected.detach());
        }
    }
}
