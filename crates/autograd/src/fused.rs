//! Element-wise steps of transformer blocks, forward and backward, each in one pass over memory.
//!
//! Matrices are fp32, `[n, width]`; rows may lie apart, so that parts of a matrix can be given. On other devices than the
//! CPU libtorch's own operations do the same, in several passes. None of these is seen by libtorch's autograd.

use std::ffi::c_char;

use tch::{Device, TchError, Tensor};
use torch_sys::C_tensor;

use crate::{portable, take_text};

// SAFETY: these are the functions of fused.cpp, with the same signatures.
unsafe extern "C" {
    fn sepal_fused_rms_norm(x: *const C_tensor, y: *const C_tensor, scales: *const C_tensor, eps: f64) -> *mut c_char;
    fn sepal_fused_rms_norm_back(
        grad: *const C_tensor,
        x: *const C_tensor,
        scales: *const C_tensor,
        sum: *const C_tensor,
    ) -> *mut c_char;
    fn sepal_fused_layer_norm(
        x: *const C_tensor,
        y: *const C_tensor,
        means: *const C_tensor,
        scales: *const C_tensor,
        eps: f64,
    ) -> *mut c_char;
    fn sepal_fused_layer_norm_back(
        grad: *const C_tensor,
        x: *const C_tensor,
        means: *const C_tensor,
        scales: *const C_tensor,
        sum: *const C_tensor,
    ) -> *mut c_char;
    fn sepal_fused_silu_mul(gate_up: *const C_tensor, y: *const C_tensor) -> *mut c_char;
    fn sepal_fused_silu_mul_back(grad: *const C_tensor, gate_up: *const C_tensor, y: *const C_tensor) -> *mut c_char;
    fn sepal_fused_rotate(
        x: *const C_tensor,
        cos: *const C_tensor,
        sin: *const C_tensor,
        head_dim: i64,
        direction: f64,
    ) -> *mut c_char;
}

/// RMSNorm without a weight (arXiv 1910.07467): `y = x s` with `s = 1 / sqrt(mean(x²) + eps)` for each row. Returns
/// `y [n, width]` and the scales `s [n, 1]`.
///
/// # Errors
/// [`TchError`] if `x` is no such matrix.
pub fn rms_norm(x: &Tensor, eps: f64) -> Result<(Tensor, Tensor), TchError> {
    if is_elsewhere(x) {
        return portable::rms_norm(x, eps);
    }
    let y = x.f_empty_like()?;
    let scales = x.f_new_empty([x.size()[0], 1], (x.kind(), x.device()))?;
    // SAFETY: live tensors; the function checks their shapes and reports by its text.
    check(unsafe { sepal_fused_rms_norm(x.as_ptr(), y.as_ptr(), scales.as_ptr(), eps) })?;
    Ok((y, scales))
}

/// Adds the gradient of [`rms_norm`]'s input to `sum`, all `[n, width]`.
///
/// # Errors
/// [`TchError`] if shapes do not agree.
pub fn add_rms_norm_grad(sum: &mut Tensor, grad: &Tensor, x: &Tensor, scales: &Tensor) -> Result<(), TchError> {
    if is_elsewhere(x) {
        return portable::add_rms_norm_grad(sum, grad, x, scales);
    }
    // SAFETY: as above.
    check(unsafe { sepal_fused_rms_norm_back(grad.as_ptr(), x.as_ptr(), scales.as_ptr(), sum.as_ptr()) })
}

/// LayerNorm without weight and bias (arXiv 1607.06450): `y = (x - m) s` with the mean `m` and
/// `s = 1 / sqrt(var(x) + eps)` of each row. Returns `y [n, width]`, the means `[n, 1]` and the scales `[n, 1]`.
///
/// # Errors
/// [`TchError`] if `x` is no such matrix.
pub fn layer_norm(x: &Tensor, eps: f64) -> Result<(Tensor, Tensor, Tensor), TchError> {
    if is_elsewhere(x) {
        return portable::layer_norm(x, eps);
    }
    let y = x.f_empty_like()?;
    let of_rows = || x.f_new_empty([x.size()[0], 1], (x.kind(), x.device()));
    let (means, scales) = (of_rows()?, of_rows()?);
    // SAFETY: as above.
    check(unsafe { sepal_fused_layer_norm(x.as_ptr(), y.as_ptr(), means.as_ptr(), scales.as_ptr(), eps) })?;
    Ok((y, means, scales))
}

/// Adds the gradient of [`layer_norm`]'s input to `sum`, all `[n, width]`.
///
/// # Errors
/// [`TchError`] if shapes do not agree.
pub fn add_layer_norm_grad(
    sum: &mut Tensor,
    grad: &Tensor,
    x: &Tensor,
    means: &Tensor,
    scales: &Tensor,
) -> Result<(), TchError> {
    if is_elsewhere(x) {
        return portable::add_layer_norm_grad(sum, grad, x, means, scales);
    }
    // SAFETY: as above.
    check(unsafe {
        sepal_fused_layer_norm_back(grad.as_ptr(), x.as_ptr(), means.as_ptr(), scales.as_ptr(), sum.as_ptr())
    })
}

/// `silu(gate) up` for `gate_up [n, 2 width]`, the gate first: `[n, width]`.
///
/// # Errors
/// [`TchError`] if `gate_up` is no such matrix.
pub fn silu_mul(gate_up: &Tensor) -> Result<Tensor, TchError> {
    if is_elsewhere(gate_up) {
        return portable::silu_mul(gate_up);
    }
    let (n, width) = gate_up.size2()?;
    let y = gate_up.f_new_empty([n, width / 2], (gate_up.kind(), gate_up.device()))?;
    // SAFETY: as above.
    check(unsafe { sepal_fused_silu_mul(gate_up.as_ptr(), y.as_ptr()) })?;
    Ok(y)
}

/// Writes the gradient of [`silu_mul`]'s input, `[n, 2 width]`, into `out`; `grad` is `[n, width]`.
///
/// # Errors
/// [`TchError`] if shapes do not agree.
pub fn silu_mul_grad(out: &mut Tensor, grad: &Tensor, gate_up: &Tensor) -> Result<(), TchError> {
    if is_elsewhere(gate_up) {
        return portable::silu_mul_grad(out, grad, gate_up);
    }
    // SAFETY: as above.
    check(unsafe { sepal_fused_silu_mul_back(grad.as_ptr(), gate_up.as_ptr(), out.as_ptr()) })
}

/// Which way [`rotate`] turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// By the angles.
    Forward,
    /// By their negatives, which is how gradients go.
    Back,
}

/// Turns the heads of `x [n, heads * head_dim]` in place by the angles whose `cos` and `sin` are `[n, half]`: the
/// numbers `i` and `i + half` of a head make a pair (arXiv 2104.09864). Numbers from `2 half` on stay.
///
/// # Errors
/// [`TchError`] if shapes do not agree.
pub fn rotate(x: &mut Tensor, cos: &Tensor, sin: &Tensor, head_dim: i64, turn: Turn) -> Result<(), TchError> {
    let direction = if turn == Turn::Forward { 1.0 } else { -1.0 };
    if is_elsewhere(x) {
        return portable::rotate(x, cos, sin, head_dim, direction);
    }
    // SAFETY: as above.
    check(unsafe { sepal_fused_rotate(x.as_ptr(), cos.as_ptr(), sin.as_ptr(), head_dim, direction) })
}

/// Whether a tensor lies where the kernels do not run.
fn is_elsewhere(tensor: &Tensor) -> bool {
    tensor.device() != Device::Cpu
}

fn check(error: *mut c_char) -> Result<(), TchError> {
    if error.is_null() { Ok(()) } else { Err(TchError::Torch(take_text(error))) }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tch::Kind;

    use super::*;

    /// Numbers within 5 of 0 that look like chance and are the same in every run, whatever other tests draw.
    fn random(n: i64, width: i64) -> Tensor {
        thread_local!(static CALLS: Cell<f64> = const { Cell::new(0.0) });
        let call = CALLS.replace(CALLS.get() + 1.0);
        let places = Tensor::arange(n * width, (Kind::Double, Device::Cpu)) * 12.9898 + call * 78.233;
        let share = (places.sin() * 43758.5453).remainder(1.0);
        ((share - 0.5) * 10.0).to_kind(Kind::Float).view([n, width])
    }

    /// Within so much of the largest number.
    fn assert_close(found: &Tensor, expected: &Tensor) {
        let off = f64::try_from((found - expected).abs().max() / expected.abs().max()).expect("a number");
        assert!(off < 1e-6, "off by {off}");
    }

    #[test]
    fn norms_equal_libtorchs() {
        // 300 rows are more than one thread's share.
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
            // A gradient may be what is left of large numbers: within so much of these.
            let terms = (&grad * scales.view([n, 1])).abs().max();
            let off = (&sum - &start - x.grad()).abs().max() / terms.maximum(&start.abs().max());
            let off = f64::try_from(off).expect("a number");
            assert!(off < 1e-6, "off by {off}");
        }
    }

    #[test]
    fn layer_norms_equal_libtorchs() {
        for (n, width) in [(1, 2), (3, 7), (300, 576)] {
            let x = (random(n, width) + 5.0).set_requires_grad(true);
            let grad = random(n, width);
            let expected = x.layer_norm([width], None::<Tensor>, None::<Tensor>, 1e-5, false);
            (&expected * &grad).sum(Kind::Float).backward();
            let (y, means, scales) = layer_norm(&x.detach(), 1e-5).expect("a norm");
            assert_close(&y, &expected.detach());
            let mut sum = x.zeros_like();
            add_layer_norm_grad(&mut sum, &grad, &x.detach(), &means, &scales).expect("a gradient");
            // Two numbers have hardly a gradient: it is what is left of large ones.
            let off = f64::try_from((sum - x.grad()).abs().max()).expect("a number");
            assert!(off < 1e-5, "off by {off}");
        }
    }

    #[test]
    fn gates_equal_libtorchs() {
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
    fn extremes_stay_finite() {
        let x = Tensor::from_slice(&[-200.0_f32, 200.0, -88.5, 0.0, 1.0, 1.0, 1.0, 1.0]).view([1, 8]);
        let y = Vec::<f32>::try_from(silu_mul(&x).expect("a product").view([4])).expect("numbers");
        assert!(y[0].abs() < 1e-30 && y[1] == 200.0 && y[2].abs() < 1e-30 && y[3] == 0.0, "{y:?}");
    }

    #[test]
    fn not_a_number_stays_one() {
        let x = Tensor::from_slice(&[f32::NAN, 1.0]).view([1, 2]);
        let y = f64::try_from(silu_mul(&x).expect("a product").view([])).expect("a number");
        assert!(y.is_nan());
    }

    #[test]
    fn turning_there_and_back_changes_nothing() {
        let (angles, x) = (random(4, 2), random(4, 12));
        let (cos, sin) = (angles.cos(), angles.sin());
        // Two heads of five and a part that is not turned: only the first four of each are pairs.
        let turned = x.copy();
        rotate(&mut turned.narrow(1, 0, 10), &cos, &sin, 5, Turn::Forward).expect("turned");
        assert_eq!(turned.narrow(1, 4, 1), x.narrow(1, 4, 1));
        assert_eq!(turned.narrow(1, 10, 2), x.narrow(1, 10, 2));
        let expected = x.narrow(1, 5, 2) * &cos - x.narrow(1, 7, 2) * &sin;
        assert_close(&turned.narrow(1, 5, 2), &expected);
        rotate(&mut turned.narrow(1, 0, 10), &cos, &sin, 5, Turn::Back).expect("turned");
        assert_close(&turned, &x);
    }

    #[test]
    fn wrong_shapes_are_refused() {
        assert!(silu_mul_grad(&mut random(2, 4), &random(2, 3), &random(2, 4)).is_err());
        assert!(rms_norm(&random(4, 4).tr().narrow(0, 0, 2), 1e-5).is_err());
        assert!(rotate(&mut random(2, 4), &random(2, 3), &random(2, 3), 4, Turn::Forward).is_err());
    }
}
