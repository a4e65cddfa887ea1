//! Replacements in libtorch's own operations, for devices without the kernels and for products too small for oneDNN. The
//! fused steps take several passes over memory.

use tch::{Kind, TchError, Tensor};

use crate::quantize::{NF4_GROUP, SCALE_BYTES};

pub(crate) fn rms_norm(x: &Tensor, eps: f64) -> Result<(Tensor, Tensor), TchError> {
    let scales = mean(&x.f_square()?)?.f_add_scalar(eps)?.f_rsqrt()?;
    Ok((x.f_mul(&scales)?, scales))
}

pub(crate) fn add_rms_norm_grad(sum: &mut Tensor, grad: &Tensor, x: &Tensor, scales: &Tensor) -> Result<(), TchError> {
    let y = x.f_mul(scales)?;
    let along = y.f_mul(&mean(&grad.f_mul(&y)?)?)?;
    sum.f_add_(&grad.f_sub(&along)?.f_mul(scales)?).map(drop)
}

pub(crate) fn layer_norm(x: &Tensor, eps: f64) -> Result<(Tensor, Tensor, Tensor), TchError> {
    let means = mean(x)?;
    let centred = x.f_sub(&means)?;
    let scales = mean(&centred.f_square()?)?.f_add_scalar(eps)?.f_rsqrt()?;
    Ok((centred.f_mul(&scales)?, means, scales))
}

pub(crate) fn add_layer_norm_grad(
    sum: &mut Tensor,
    grad: &Tensor,
    x: &Tensor,
    means: &Tensor,
    scales: &Tensor,
) -> Result<(), TchError> {
    let y = x.f_sub(means)?.f_mul(scales)?;
    let along = y.f_mul(&mean(&grad.f_mul(&y)?)?)?;
    sum.f_add_(&grad.f_sub(&mean(grad)?)?.f_sub(&along)?.f_mul(scales)?).map(drop)
}

pub(crate) fn silu_mul(gate_up: &Tensor) -> Result<Tensor, TchError> {
    let (gate, up) = halves(gate_up)?;
    gate.f_to_kind(Kind::Float)?.f_silu()?.f_mul_(&up)?.f_to_kind(gate_up.kind())
}

pub(crate) fn silu_mul_grad(out: &mut Tensor, grad: &Tensor, gate_up: &Tensor) -> Result<(), TchError> {
    let (gate, up) = halves(gate_up)?;
    let (gate, grad) = (gate.f_to_kind(Kind::Float)?, grad.f_to_kind(Kind::Float)?);
    let (mut grad_gate, mut grad_up) = halves(out)?;
    grad_gate.f_copy_(&gate.f_silu_backward(&grad.f_mul(&up)?)?)?;
    grad_up.f_copy_(&gate.f_silu()?.f_mul_(&grad)?)
}

/// As [`crate::fused::rotate`]; `sign` is 1 or -1. Products of any kind with the fp32 of `cos` and `sin` are fp32.
pub(crate) fn rotate(x: &mut Tensor, cos: &Tensor, sin: &Tensor, head_dim: i64, sign: f64) -> Result<(), TchError> {
    let (n, width) = x.size2()?;
    let half = cos.size()[1];
    if head_dim < 1 || width % head_dim != 0 || 2 * half > head_dim || cos.size()[0] != n {
        return Err(TchError::Shape("expected heads, and rotations for each row".to_owned()));
    }
    // A view of the same memory, because rows may have gaps between them.
    let row = x.stride()[0];
    let heads = x.f_as_strided([n, width / head_dim, head_dim], [row, head_dim, 1], None)?;
    let (mut first, mut second) = (heads.f_narrow(2, 0, half)?, heads.f_narrow(2, half, half)?);
    let (cos, sin) = (cos.f_unsqueeze(1)?, sin.f_unsqueeze(1)?.f_mul_scalar(sign)?);
    let rotated = first.f_mul(&cos)?.f_sub(&second.f_mul(&sin)?)?;
    second.f_copy_(&second.f_mul(&cos)?.f_add(&first.f_mul(&sin)?)?)?;
    first.f_copy_(&rotated)
}

/// Numbers of rows of [`RowEncoding::Int8`](sepal_core::RowEncoding::Int8), `[n, width]`.
pub(crate) fn widen_int8(rows: &Tensor) -> Result<Tensor, TchError> {
    let width = rows.size()[1] - SCALE_BYTES;
    let numbers = rows.f_narrow(1, SCALE_BYTES, width)?.f_contiguous()?.f_view_dtype(Kind::Int8)?;
    numbers.f_to_kind(Kind::Float)?.f_mul(&scales(&rows.f_narrow(1, 0, SCALE_BYTES)?)?)
}

/// Numbers of rows of [`RowEncoding::Nf4`](sepal_core::RowEncoding::Nf4), `[n, width]`, with its levels `[16]`.
pub(crate) fn widen_nf4(rows: &Tensor, levels: &Tensor, width: i64) -> Result<Tensor, TchError> {
    let n = rows.size()[0];
    let groups = rows.f_view([n, -1, SCALE_BYTES + NF4_GROUP / 2])?;
    let quantized = groups.f_narrow(2, SCALE_BYTES, NF4_GROUP / 2)?.f_to_kind(Kind::Int64)?;
    let (low, high) = (quantized.f_bitwise_and(15)?, quantized.f_bitwise_right_shift_tensor_scalar(4)?);
    let indices = Tensor::f_cat(&[low, high], 2)?;
    let numbers = levels.f_index_select(0, &indices.f_view([-1])?)?.f_view([n, -1, NF4_GROUP])?;
    let numbers = numbers.f_mul(&scales(&groups.f_narrow(2, 0, SCALE_BYTES)?)?)?;
    numbers.f_view([n, -1])?.f_narrow(1, 0, width)
}

/// fp32 factors of the bytes `[.., 4]`, `[.., 1]`.
fn scales(bytes: &Tensor) -> Result<Tensor, TchError> {
    let mut shape = bytes.size();
    shape.pop();
    shape.push(1);
    // A copy, because the bytes of a view may be misaligned.
    bytes.f_detach_copy()?.f_reshape([-1])?.f_view_dtype(Kind::Float)?.f_view(shape.as_slice())
}

pub(crate) fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    sum: Option<&Tensor>,
) -> Result<Tensor, TchError> {
    let Some(first) = sum.or(bias) else { return x.f_mm(weight) };
    let mut product = first.f_addmm(x, weight)?;
    match bias {
        Some(bias) if sum.is_some() => product.f_add_(bias),
        _ => Ok(product),
    }
}

fn mean(x: &Tensor) -> Result<Tensor, TchError> {
    x.f_mean_dim(1, true, Kind::Float)
}

fn halves(gate_up: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let width = gate_up.size()[1] / 2;
    Ok((gate_up.f_narrow(1, 0, width)?, gate_up.f_narrow(1, width, width)?))
}

#[cfg(test)]
mod tests {
    use sepal_core::{NF4_LEVELS, RowEncoding};
    use tch::Device;

    use super::*;
    use crate::fused::{self, Rotate};
    use crate::packed::{Columns, widen};
    use crate::quantize;

    fn random(n: i64, width: i64) -> Tensor {
        Tensor::randn([n, width], (Kind::Float, Device::Cpu))
    }

    fn assert_close(found: &Tensor, expected: &Tensor) {
        assert!(found.allclose(expected, 1e-5, 1e-5, false));
    }

    #[test]
    fn norms_equal_fused_kernels() {
        let (x, grad, start) = (random(7, 30), random(7, 30), random(7, 30));
        let ((y, scales), (fused_y, fused_scales)) =
            (rms_norm(&x, 1e-5).expect("a norm"), fused::rms_norm(&x, 1e-5).expect("a norm"));
        assert_close(&y, &fused_y);
        assert_close(&scales, &fused_scales);
        let (mut sum, mut fused_sum) = (start.copy(), start.copy());
        add_rms_norm_grad(&mut sum, &grad, &x, &scales).expect("a gradient");
        fused::add_rms_norm_grad(&mut fused_sum, &grad, &x, &scales).expect("a gradient");
        assert_close(&sum, &fused_sum);

        let (y, means, scales) = layer_norm(&x, 1e-5).expect("a norm");
        let (fused_y, fused_means, fused_scales) = fused::layer_norm(&x, 1e-5).expect("a norm");
        assert_close(&y, &fused_y);
        assert_close(&means, &fused_means);
        assert_close(&scales, &fused_scales);
        let (mut sum, mut fused_sum) = (start.copy(), start.copy());
        add_layer_norm_grad(&mut sum, &grad, &x, &means, &scales).expect("a gradient");
        fused::add_layer_norm_grad(&mut fused_sum, &grad, &x, &means, &scales).expect("a gradient");
        assert_close(&sum, &fused_sum);
    }

    #[test]
    fn gates_and_rotations_equal_fused_kernels() {
        let (x, grad) = (random(7, 30), random(7, 15));
        assert_close(&silu_mul(&x).expect("a product"), &fused::silu_mul(&x).expect("a product"));
        let (mut out, mut fused_out) = (x.empty_like(), x.empty_like());
        silu_mul_grad(&mut out, &grad, &x).expect("a gradient");
        fused::silu_mul_grad(&mut fused_out, &grad, &x).expect("a gradient");
        assert_close(&out, &fused_out);

        // Heads of five, of which four are rotated, in rows with gaps between them.
        let angles = random(7, 2);
        let (cos, sin) = (angles.cos(), angles.sin());
        for (direction, sign) in [(Rotate::Forward, 1.0), (Rotate::Backward, -1.0)] {
            let (rotated, fused_rotated) = (x.copy(), x.copy());
            rotate(&mut rotated.narrow(1, 0, 20), &cos, &sin, 5, sign).expect("rotated");
            fused::rotate(&mut fused_rotated.narrow(1, 0, 20), &cos, &sin, 5, direction).expect("rotated");
            assert_close(&rotated, &fused_rotated);
        }
        assert!(rotate(&mut random(2, 4), &random(2, 3), &random(2, 3), 4, 1.0).is_err());
    }

    #[test]
    fn gates_and_rotations_of_16_bits_are_close_to_fused_kernels() {
        let (x, grad) = (random(7, 30).to_kind(Kind::BFloat16), random(7, 15).to_kind(Kind::BFloat16));
        // Both round a result in fp32 once, and may differ in that result's last bits.
        let assert_close = |found: &Tensor, expected: &Tensor| {
            assert_eq!((found.kind(), expected.kind()), (Kind::BFloat16, Kind::BFloat16));
            assert!(found.allclose(expected, 1e-2, 1e-5, false));
        };
        assert_close(&silu_mul(&x).expect("a product"), &fused::silu_mul(&x).expect("a product"));
        let (mut out, mut fused_out) = (x.empty_like(), x.empty_like());
        silu_mul_grad(&mut out, &grad, &x).expect("a gradient");
        fused::silu_mul_grad(&mut fused_out, &grad, &x).expect("a gradient");
        assert_close(&out, &fused_out);
        let angles = random(7, 2);
        let (rotated, fused_rotated) = (x.copy(), x.copy());
        let (cos, sin) = (angles.cos(), angles.sin());
        rotate(&mut rotated.narrow(1, 0, 20), &cos, &sin, 5, 1.0).expect("rotated");
        fused::rotate(&mut fused_rotated.narrow(1, 0, 20), &cos, &sin, 5, Rotate::Forward).expect("rotated");
        assert_close(&rotated, &fused_rotated);
    }

    #[test]
    fn widened_rows_equal_kernels() {
        let numbers = random(5, 130);
        let rows = quantize::quantize_int8(&numbers).expect("rows");
        let fused = widen(&rows, RowEncoding::Int8, 130, Columns::default()).expect("numbers");
        assert_eq!(widen_int8(&rows).expect("numbers"), fused);
        // The factor of a row that begins at an odd byte.
        let odd = quantize::quantize_int8(&random(3, 31)).expect("rows").narrow(0, 1, 1);
        let fused = widen(&odd, RowEncoding::Int8, 31, Columns::default()).expect("numbers");
        assert_eq!(widen_int8(&odd).expect("numbers"), fused);
        let rows = quantize::quantize_nf4(&numbers).expect("rows");
        let fused = widen(&rows, RowEncoding::Nf4, 130, Columns::default()).expect("numbers");
        let plain = widen_nf4(&rows, &Tensor::from_slice(&NF4_LEVELS), 130);
        assert_eq!(plain.expect("numbers"), fused);
    }
}
