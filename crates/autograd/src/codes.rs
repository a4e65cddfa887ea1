//! Weights in 8 and in 4 bits: made once, widened to fp32 in one pass.

use std::ffi::c_char;

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

use crate::{portable, take_text};

// SAFETY: these are the functions of codes.cpp, with the same signatures.
unsafe extern "C" {
    fn sepal_codes_int8(
        codes: *const C_tensor,
        scales: *const C_tensor,
        columns: *const C_tensor,
        out: *const C_tensor,
    ) -> *mut c_char;
    fn sepal_codes_nf4(
        codes: *const C_tensor,
        scales: *const C_tensor,
        levels: *const C_tensor,
        columns: *const C_tensor,
        out: *const C_tensor,
    ) -> *mut c_char;
}

/// Numbers of a row that have one scale in NF4.
pub const NF4_GROUP: i64 = 64;

/// Numbers that are made NF4 at a time.
const AT_A_TIME: i64 = 1 << 22;

/// Levels of NF4: quantiles of the normal distribution, with 0 among them and ends at 1 (arXiv 2305.14314, appendix E).
pub(crate) const NF4_LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Whole numbers from -127 to 127, int8 `[n, width]`, and a factor for each row, `[n]`, whose products are nearest to
/// `numbers [n, width]` of fp32.
///
/// # Errors
/// [`TchError`] if libtorch refuses.
pub fn to_int8(numbers: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let scales = numbers.f_abs()?.f_amax([1], true)?.f_div_scalar(127.0)?;
    // A row of zeros has any factor.
    let divisors = scales.f_where_self(&scales.f_gt(0.0)?, &scales.f_ones_like()?)?;
    let codes = numbers.f_div(&divisors)?.f_round()?.f_to_kind(Kind::Int8)?;
    Ok((codes, scales.f_view([-1])?))
}

/// The way back of [`to_int8`], `[n, width]`, with each column times its number of `columns [width]`.
///
/// # Errors
/// [`TchError`] if shapes do not agree.
pub fn from_int8(codes: &Tensor, scales: &Tensor, columns: &Tensor) -> Result<Tensor, TchError> {
    if codes.device() != Device::Cpu {
        return portable::from_int8(codes, scales, columns);
    }
    let out = scales.f_new_empty(codes.size().as_slice(), (Kind::Float, scales.device()))?;
    // SAFETY: live tensors; the function checks their shapes and reports by its text.
    check(unsafe { sepal_codes_int8(codes.as_ptr(), scales.as_ptr(), columns.as_ptr(), out.as_ptr()) })?;
    Ok(out)
}

/// NF4: for each [`NF4_GROUP`] numbers of a row of `numbers [n, width]` the largest one, `[n, groups]`, and the nearest of
/// 16 levels for each number, two in a byte, `[n, groups * 32]`.
///
/// # Errors
/// [`TchError`] if libtorch refuses.
pub fn to_nf4(numbers: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let (n, width) = numbers.size2()?;
    // A part at a time: what is between takes several times the memory of the numbers.
    let rows = (AT_A_TIME / width.max(1)).max(1);
    let starts = (0..n).step_by(usize::try_from(rows).unwrap_or(1));
    let parts = starts.map(|start| part_to_nf4(&numbers.f_narrow(0, start, rows.min(n - start))?));
    let (codes, scales): (Vec<Tensor>, Vec<Tensor>) = parts.collect::<Result<Vec<_>, TchError>>()?.into_iter().unzip();
    Ok((Tensor::f_cat(&codes, 0)?, Tensor::f_cat(&scales, 0)?))
}

fn part_to_nf4(numbers: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let (n, width) = numbers.size2()?;
    let missing = (NF4_GROUP - width % NF4_GROUP) % NF4_GROUP;
    let whole = numbers.f_constant_pad_nd([0, missing])?.f_view([n, -1, NF4_GROUP])?;
    let scales = whole.f_abs()?.f_amax([2], true)?;
    let divisors = scales.f_where_self(&scales.f_gt(0.0)?, &scales.f_ones_like()?)?;
    let between: Vec<f32> = NF4_LEVELS.windows(2).map(|pair| f32::midpoint(pair[0], pair[1])).collect();
    let levels = whole.f_div(&divisors)?;
    let between = Tensor::f_from_slice(&between)?.f_to_device(numbers.device())?;
    let levels = levels.f_bucketize(&between, false, false)?;
    let levels = levels.f_to_kind(Kind::Uint8)?;
    let (low, high) = (levels.f_narrow(2, 0, NF4_GROUP / 2)?, levels.f_narrow(2, NF4_GROUP / 2, NF4_GROUP / 2)?);
    let codes = high.f_mul_scalar(16)?.f_add(&low)?.f_reshape([n, -1])?;
    Ok((codes, scales.f_reshape([n, -1])?))
}

/// The way back of [`to_nf4`], `[n, width]`, with each column times its number of `columns [width]`.
///
/// # Errors
/// [`TchError`] if shapes do not agree.
pub fn from_nf4(codes: &Tensor, scales: &Tensor, columns: &Tensor) -> Result<Tensor, TchError> {
    if codes.device() != Device::Cpu {
        let levels = Tensor::f_from_slice(&NF4_LEVELS)?.f_to_device(codes.device())?;
        return portable::from_nf4(codes, scales, columns, &levels, NF4_GROUP);
    }
    let out = scales.f_new_empty([scales.size()[0], columns.size()[0]], (Kind::Float, scales.device()))?;
    let levels = Tensor::f_from_slice(&NF4_LEVELS)?;
    // SAFETY: as above.
    check(unsafe {
        sepal_codes_nf4(codes.as_ptr(), scales.as_ptr(), levels.as_ptr(), columns.as_ptr(), out.as_ptr())
    })?;
    Ok(out)
}

fn check(error: *mut c_char) -> Result<(), TchError> {
    if error.is_null() { Ok(()) } else { Err(TchError::Torch(take_text(error))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(n: i64, width: i64) -> Tensor {
        Tensor::randn([n, width], (Kind::Float, Device::Cpu))
    }

    fn ones(width: i64) -> Tensor {
        Tensor::ones([width], (Kind::Float, Device::Cpu))
    }

    #[test]
    fn columns_have_factors() {
        let (numbers, columns) = (random(3, 130), random(1, 130).view([130]));
        let (codes, scales) = to_int8(&numbers).expect("codes");
        let plain = from_int8(&codes, &scales, &ones(130)).expect("numbers");
        assert!(from_int8(&codes, &scales, &columns).expect("numbers").allclose(
            &(plain * &columns),
            1e-6,
            1e-6,
            false
        ));
        let (codes, scales) = to_nf4(&numbers).expect("codes");
        let plain = from_nf4(&codes, &scales, &ones(130)).expect("numbers");
        assert!(from_nf4(&codes, &scales, &columns).expect("numbers").allclose(&(plain * &columns), 1e-6, 1e-6, false));
    }

    #[test]
    fn int8_is_off_by_half_a_step_at_most() {
        for (n, width) in [(1, 1), (5, 7), (300, 200)] {
            let numbers = random(n, width);
            let (codes, scales) = to_int8(&numbers).expect("codes");
            assert_eq!((codes.kind(), codes.size(), scales.size()), (Kind::Int8, vec![n, width], vec![n]));
            let off =
                (from_int8(&codes, &scales, &ones(width)).expect("numbers") - &numbers).abs() / scales.unsqueeze(1);
            assert!(f64::try_from(off.max()).expect("a number") <= 0.5001);
        }
    }

    #[test]
    fn nf4_takes_the_nearest_level() {
        for (n, width) in [(1, 1), (3, 63), (5, 64), (300, 200)] {
            let numbers = random(n, width);
            let (codes, scales) = to_nf4(&numbers).expect("codes");
            let groups = (width + 63) / 64;
            assert_eq!((codes.size(), scales.size()), (vec![n, groups * 32], vec![n, groups]));
            let found = from_nf4(&codes, &scales, &ones(width)).expect("numbers");
            // By brute force: no level of the group is nearer.
            let of_numbers = scales.repeat_interleave_self_int(64, 1, None).narrow(1, 0, width);
            let levels = Tensor::from_slice(&NF4_LEVELS) * of_numbers.unsqueeze(2);
            let nearest = (levels - numbers.unsqueeze(2)).abs().amin([2], false);
            let off = f64::try_from(((found - &numbers).abs() - nearest).abs().max()).expect("a number");
            assert!(off < 1e-6, "off by {off}");
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        let zeros = Tensor::zeros([2, 70], (Kind::Float, Device::Cpu));
        let (codes, scales) = to_int8(&zeros).expect("codes");
        assert_eq!(from_int8(&codes, &scales, &ones(70)).expect("numbers"), zeros);
        let (codes, scales) = to_nf4(&zeros).expect("codes");
        assert_eq!(from_nf4(&codes, &scales, &ones(70)).expect("numbers"), zeros);
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let (codes, scales) = to_nf4(&random(3, 100)).expect("codes");
        assert!(from_nf4(&codes, &scales, &ones(200)).is_err());
        let (codes, scales) = to_int8(&random(3, 100)).expect("codes");
        assert!(from_int8(&codes, &scales.narrow(0, 0, 2), &ones(100)).is_err());
    }
}
