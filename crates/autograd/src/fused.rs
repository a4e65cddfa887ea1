//! Element-wise steps of transformer blocks, forward and backward, each in one pass over memory.
//!
//! Matrices are `[n, width]`, and all steps compute in fp32. Matrices of other kinds, bf16 for example, are converted in
//! further passes. Rows may have gaps between them, so that views of a matrix are valid arguments. Other devices than the
//! CPU use libtorch's own operations, in several passes. libtorch's autograd records none of them.

use tch::{Device, Kind, TchError, Tensor};

use crate::portable;

kernels! {
    sepal_fused_rms_norm(x, y, scales; eps: f64);
    sepal_fused_rms_norm_backward(grad, x, scales, sum;);
    sepal_fused_layer_norm(x, y, means, scales; eps: f64);
    sepal_fused_layer_norm_backward(grad, x, means, scales, sum;);
    sepal_fused_silu_mul(gate_up, y;);
    sepal_fused_silu_mul_backward(grad, gate_up, y;);
    sepal_fused_rotate(x, cos, sin; head_dim: i64, sign: f64);
}

/// RMSNorm without a weight (arXiv 1910.07467): `y = x s` with `s = 1 / sqrt(mean(x²) + eps)` for each row. Returns
/// `y [n, width]` and the scales `s [n, 1]`, both fp32.
///
/// # Errors
/// [`TchError`] if `x` is not a matrix.
pub fn rms_norm(x: &Tensor, eps: f64) -> Result<(Tensor, Tensor), TchError> {
    let x = x.f_to_kind(Kind::Float)?;
    if has_no_kernel(&x) {
        return portable::rms_norm(&x, eps);
    }
    let y = x.f_empty_like()?;
    let scales = x.f_new_empty([x.size()[0], 1], (x.kind(), x.device()))?;
    sepal_fused_rms_norm(&x, &y, &scales, eps)?;
    Ok((y, scales))
}

/// Adds the gradient of [`rms_norm`]'s input to `sum`, all `[n, width]`. `sum` and `scales` are fp32.
///
/// # Errors
/// [`TchError`] if shapes disagree, or if `sum` is not fp32.
pub fn add_rms_norm_grad(sum: &mut Tensor, grad: &Tensor, x: &Tensor, scales: &Tensor) -> Result<(), TchError> {
    let (grad, x) = (grad.f_to_kind(Kind::Float)?, x.f_to_kind(Kind::Float)?);
    if has_no_kernel(&x) {
        return portable::add_rms_norm_grad(sum, &grad, &x, scales);
    }
    sepal_fused_rms_norm_backward(&grad, &x, scales, sum)
}

/// LayerNorm without weight and bias (arXiv 1607.06450): `y = (x - m) s` with the mean `m` and
/// `s = 1 / sqrt(var(x) + eps)` of each row. Returns `y [n, width]`, the means `[n, 1]` and the scales `[n, 1]`, all fp32.
///
/// # Errors
/// [`TchError`] if `x` is not a matrix.
pub fn layer_norm(x: &Tensor, eps: f64) -> Result<(Tensor, Tensor, Tensor), TchError> {
    let x = x.f_to_kind(Kind::Float)?;
    if has_no_kernel(&x) {
        return portable::layer_norm(&x, eps);
    }
    let y = x.f_empty_like()?;
    let empty = || x.f_new_empty([x.size()[0], 1], (x.kind(), x.device()));
    let (means, scales) = (empty()?, empty()?);
    sepal_fused_layer_norm(&x, &y, &means, &scales, eps)?;
    Ok((y, means, scales))
}

/// Adds the gradient of [`layer_norm`]'s input to `sum`, all `[n, width]`. `sum`, `means` and `scales` are fp32.
///
/// # Errors
/// [`TchError`] if shapes disagree, or if `sum` is not fp32.
pub fn add_layer_norm_grad(
    sum: &mut Tensor,
    grad: &Tensor,
    x: &Tensor,
    means: &Tensor,
    scales: &Tensor,
) -> Result<(), TchError> {
    let (grad, x) = (grad.f_to_kind(Kind::Float)?, x.f_to_kind(Kind::Float)?);
    if has_no_kernel(&x) {
        return portable::add_layer_norm_grad(sum, &grad, &x, means, scales);
    }
    sepal_fused_layer_norm_backward(&grad, &x, means, scales, sum)
}

/// Returns `silu(gate) up`, `[n, width]`, for `gate_up [n, 2 width]` with the gate first, of the same kind.
///
/// # Errors
/// [`TchError`] if `gate_up` is not a matrix.
pub fn silu_mul(gate_up: &Tensor) -> Result<Tensor, TchError> {
    if has_no_kernel(gate_up) {
        return portable::silu_mul(gate_up);
    }
    let (n, width) = gate_up.size2()?;
    let wide = gate_up.f_to_kind(Kind::Float)?;
    let y = wide.f_new_empty([n, width / 2], (wide.kind(), wide.device()))?;
    sepal_fused_silu_mul(&wide, &y)?;
    y.f_to_kind(gate_up.kind())
}

/// Writes the gradient of [`silu_mul`]'s input, `[n, 2 width]`, into `out`; `grad` is `[n, width]`.
///
/// # Errors
/// [`TchError`] if shapes disagree.
pub fn silu_mul_grad(out: &mut Tensor, grad: &Tensor, gate_up: &Tensor) -> Result<(), TchError> {
    if has_no_kernel(gate_up) {
        return portable::silu_mul_grad(out, grad, gate_up);
    }
    let (grad, gate_up) = (grad.f_to_kind(Kind::Float)?, gate_up.f_to_kind(Kind::Float)?);
    let wide = out.f_to_kind(Kind::Float)?;
    sepal_fused_silu_mul_backward(&grad, &gate_up, &wide)?;
    write_back(out, &wide)
}

/// Direction of [`rotate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotate {
    /// Rotation by the angles.
    Forward,
    /// Rotation by the negative angles, which is the backward pass.
    Backward,
}

/// Rotates the heads of `x [n, heads * head_dim]` in place by the angles with these `cos` and `sin`, `[n, half]`. The
/// numbers `i` and `i + half` of a head are a pair (arXiv 2104.09864). Numbers from `2 half` on do not change. `cos` and
/// `sin` are fp32.
///
/// # Errors
/// [`TchError`] if shapes disagree.
pub fn rotate(x: &mut Tensor, cos: &Tensor, sin: &Tensor, head_dim: i64, direction: Rotate) -> Result<(), TchError> {
    let sign = if direction == Rotate::Forward { 1.0 } else { -1.0 };
    if has_no_kernel(x) {
        return portable::rotate(x, cos, sin, head_dim, sign);
    }
    let wide = x.f_to_kind(Kind::Float)?;
    sepal_fused_rotate(&wide, cos, sin, head_dim, sign)?;
    write_back(x, &wide)
}

/// Converts a result in fp32 to `tensor`, unless both are the same.
fn write_back(tensor: &mut Tensor, wide: &Tensor) -> Result<(), TchError> {
    if tensor.kind() == Kind::Float { Ok(()) } else { tensor.f_copy_(wide) }
}

fn has_no_kernel(tensor: &Tensor) -> bool {
    tensor.device() != Device::Cpu
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Pseudo-random numbers within 5 of 0, the same in every run and independent of other tests.
    fn random(n: i64, width: i64) -> Tensor {
        thread_local!(static CALLS: Cell<f64> = const { Cell::new(0.0) });
        let call = CALLS.replace(CALLS.get() + 1.0);
        let angles = Tensor::arange(n * width, (Kind::Double, Device::Cpu)) * 12.9898 + call * 78.233;
        let fractions = (angles.sin() * 43758.5453).remainder(1.0);
        ((fractions - 0.5) * 10.0).to_kind(Kind::Float).view([n, width])
    }

    /// Asserts a difference below 1e-6 of the largest number.
    fn assert_close(found: &Tensor, expected: &Tensor) {
        let off = f64::try_from((found - expected).abs().max() / expected.abs().max()).expect("a number");
        assert!(off < 1e-6, "off by {off}");
    }

    #[test]
    fn rms_norm_equals_libtorch() {
        // 300 rows are split among threads.
        for (n, width) in [(1, 1), (3, 7), (300, 576)] {
            let x = random(n, width).set_requires_grad(true);
            let grad = random(n, width);
            let expected = &x * (x.square().mean_dim(1, true, Kind::Float) + 1e-5).rsqrt();
            (&expected * &grad).sum(Kind::Float).backward();
            let (y, scales) = rms_norm(&x.detach(), 1e-5).expect("a norm");
            assert_close(&y, &expected);
            let start = random(n, width);
            let mut sum = start.copy();
            add_rms_norm_grad(&mut sum, &grad, &x.detach(), &scales).expect("a gradient");
            // Cancellation: the tolerance is relative to the largest term of the gradient.
            let terms = (&grad * scales.view([n, 1])).abs().max();
            let off = (&sum - &start - x.grad()).abs().max() / terms.maximum(&start.abs().max());
            let off = f64::try_from(off).expect("a number");
            assert!(off < 1e-6, "off by {off}");
        }
    }

    #[test]
    fn layer_norm_equals_libtorch() {
        for (n, width) in [(1, 2), (3, 7), (300, 576)] {
            let x = (random(n, width) + 5.0).set_requires_grad(true);
            let grad = random(n, width);
            let expected = x.layer_norm([width], None::<Tensor>, None::<Tensor>, 1e-5, false);
            (&expected * &grad).sum(Kind::Float).backward();
            let (y, means, scales) = layer_norm(&x.detach(), 1e-5).expect("a norm");
            assert_close(&y, &expected.detach());
            let mut sum = x.zeros_like();
            add_layer_norm_grad(&mut sum, &grad, &x.detach(), &means, &scales).expect("a gradient");
            // Cancellation: rows of two numbers have gradients close to 0.
            let off = f64::try_from((sum - x.grad()).abs().max()).expect("a number");
            assert!(off < 1e-5, "off by {off}");
        }
    }

    #[test]
    fn silu_mul_equals_libtorch() {
        for (n, width) in [(1, 1), (5, 3), (300, 100)] {
            let x = (random(n, 2 * width) * 8.0).set_requires_grad(true);
            let grad = random(n, width);
            let expected = x.narrow(1, 0, width).silu() * x.narrow(1, width, width);
            (&expected * &grad).sum(Kind::Float).backward();
            assert_close(&silu_mul(&x.detach()).expect("a product"), &expected);
            let mut out = x.empty_like();
            silu_mul_grad(&mut out, &grad, &x.detach()).expect("a gradient");
            assert_close(&out, &x.grad());
        }
    }

    #[test]
    fn silu_mul_of_extremes_is_finite() {
        let x = Tensor::from_slice(&[-200.0_f32, 200.0, -88.5, 0.0, 1.0, 1.0, 1.0, 1.0]).view([1, 8]);
        let y = Vec::<f32>::try_from(silu_mul(&x).expect("a product").view([4])).expect("numbers");
        assert!(y[0].abs() < 1e-30 && y[1] == 200.0 && y[2].abs() < 1e-30 && y[3] == 0.0, "{y:?}");
    }

    #[test]
    fn silu_mul_of_nan_is_nan() {
        let x = Tensor::from_slice(&[f32::NAN, 1.0]).view([1, 2]);
        let y = f64::try_from(silu_mul(&x).expect("a product").view([])).expect("a number");
        assert!(y.is_nan());
    }

    #[test]
    fn rotate_backward_inverts_forward() {
        let (angles, x) = (random(4, 2), random(4, 12));
        let (cos, sin) = (angles.cos(), angles.sin());
        // Two heads of five, of which the first four are pairs, and two further columns.
        let rotated = x.copy();
        rotate(&mut rotated.narrow(1, 0, 10), &cos, &sin, 5, Rotate::Forward).expect("rotated");
        assert_eq!(rotated.narrow(1, 4, 1), x.narrow(1, 4, 1));
        assert_eq!(rotated.narrow(1, 10, 2), x.narrow(1, 10, 2));
        let expected = x.narrow(1, 5, 2) * &cos - x.narrow(1, 7, 2) * &sin;
        assert_close(&rotated.narrow(1, 5, 2), &expected);
        rotate(&mut rotated.narrow(1, 0, 10), &cos, &sin, 5, Rotate::Backward).expect("rotated");
        assert_close(&rotated, &x);
    }

    /// Kinds of 16 bits.
    const HALF_KINDS: [Kind; 2] = [Kind::BFloat16, Kind::Half];

    /// Pseudo-random numbers of a kind, and the same in fp32.
    fn rounded(n: i64, width: i64, kind: Kind) -> (Tensor, Tensor) {
        let half = random(n, width).to_kind(kind);
        let wide = half.to_kind(Kind::Float);
        (half, wide)
    }

    #[test]
    fn norms_of_16_bits_equal_those_of_the_widened_numbers() {
        for kind in HALF_KINDS {
            let ((x, wide_x), (grad, wide_grad)) = (rounded(5, 12, kind), rounded(5, 12, kind));
            let start = random(5, 12);
            let (y, scales) = rms_norm(&x, 1e-5).expect("a norm");
            let (wide_y, wide_scales) = rms_norm(&wide_x, 1e-5).expect("a norm");
            assert_eq!((y.kind(), scales.kind()), (Kind::Float, Kind::Float));
            assert_eq!((&y, &scales), (&wide_y, &wide_scales), "{kind:?}");
            let (mut sum, mut wide_sum) = (start.copy(), start.copy());
            add_rms_norm_grad(&mut sum, &grad, &x, &scales).expect("a gradient");
            add_rms_norm_grad(&mut wide_sum, &wide_grad, &wide_x, &scales).expect("a gradient");
            assert_eq!(sum, wide_sum, "{kind:?}");

            let (y, means, scales) = layer_norm(&x, 1e-5).expect("a norm");
            let (wide_y, wide_means, wide_scales) = layer_norm(&wide_x, 1e-5).expect("a norm");
            assert_eq!((y.kind(), means.kind(), scales.kind()), (Kind::Float, Kind::Float, Kind::Float));
            assert_eq!((&y, &means, &scales), (&wide_y, &wide_means, &wide_scales), "{kind:?}");
            let (mut sum, mut wide_sum) = (start.copy(), start.copy());
            add_layer_norm_grad(&mut sum, &grad, &x, &means, &scales).expect("a gradient");
            add_layer_norm_grad(&mut wide_sum, &wide_grad, &wide_x, &means, &scales).expect("a gradient");
            assert_eq!(sum, wide_sum, "{kind:?}");
        }
    }

    #[test]
    fn gates_and_rotations_of_16_bits_round_the_result_in_fp32() {
        for kind in HALF_KINDS {
            let ((x, wide_x), (grad, wide_grad)) = (rounded(5, 12, kind), rounded(5, 6, kind));
            let y = silu_mul(&x).expect("a product");
            assert_eq!(y.kind(), kind);
            assert_eq!(y, silu_mul(&wide_x).expect("a product").to_kind(kind));
            let (mut out, mut wide_out) = (x.empty_like(), wide_x.empty_like());
            silu_mul_grad(&mut out, &grad, &x).expect("a gradient");
            silu_mul_grad(&mut wide_out, &wide_grad, &wide_x).expect("a gradient");
            assert_eq!(out, wide_out.to_kind(kind));

            // Two heads of five, of which the first four are pairs, in rows with gaps between them.
            let angles = random(5, 2);
            let (cos, sin) = (angles.cos(), angles.sin());
            for direction in [Rotate::Forward, Rotate::Backward] {
                let (found, expected) = (x.copy(), wide_x.copy());
                rotate(&mut found.narrow(1, 0, 10), &cos, &sin, 5, direction).expect("rotated");
                rotate(&mut expected.narrow(1, 0, 10), &cos, &sin, 5, direction).expect("rotated");
                assert_eq!(found, expected.to_kind(kind));
            }
        }
    }

    #[test]
    fn kernels_with_wrong_shapes_fail() {
        assert!(silu_mul_grad(&mut random(2, 4), &random(2, 3), &random(2, 4)).is_err());
        assert!(rms_norm(&random(4, 4).tr().narrow(0, 0, 2), 1e-5).is_err());
        assert!(rotate(&mut random(2, 4), &random(2, 3), &random(2, 3), 4, Rotate::Forward).is_err());
    }
}
