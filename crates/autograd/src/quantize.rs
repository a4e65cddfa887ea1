//! Weights in 8 and in 4 bits: quantized once, dequantized to fp32 in one pass.

use tch::{Device, Kind, TchError, Tensor};

use crate::portable;

kernels! {
    sepal_dequantize_int8(quantized, scales, columns, out;);
    sepal_dequantize_nf4(quantized, scales, levels, columns, out;);
}

/// Number of consecutive numbers of a row that share a scale in NF4.
pub const NF4_GROUP: i64 = 64;

/// Number of numbers that are quantized to NF4 at a time.
const CHUNK: i64 = 1 << 22;

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

/// Quantizes `numbers [n, width]` of fp32: quantized from -127 to 127, int8 `[n, width]`, and a scale for each row, `[n]`.
///
/// # Errors
/// [`TchError`] if libtorch fails.
pub fn quantize_int8(numbers: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let scales = numbers.f_abs()?.f_amax([1], true)?.f_div_scalar(127.0)?;
    // Avoids a division by zero in rows of zeros.
    let divisors = scales.f_where_self(&scales.f_gt(0.0)?, &scales.f_ones_like()?)?;
    let quantized = numbers.f_div(&divisors)?.f_round()?.f_to_kind(Kind::Int8)?;
    Ok((quantized, scales.f_view([-1])?))
}

/// Inverse of [`quantize_int8`], `[n, width]`, with each column multiplied by its number in `columns [width]`.
///
/// # Errors
/// [`TchError`] if shapes disagree.
pub fn dequantize_int8(quantized: &Tensor, scales: &Tensor, columns: &Tensor) -> Result<Tensor, TchError> {
    if quantized.device() != Device::Cpu {
        return portable::dequantize_int8(quantized, scales, columns);
    }
    let out = scales.f_new_empty(quantized.size().as_slice(), (Kind::Float, scales.device()))?;
    sepal_dequantize_int8(quantized, scales, columns, &out)?;
    Ok(out)
}

/// Quantizes `numbers [n, width]` of fp32 to NF4: the nearest of 16 levels for each number, two to a byte,
/// `[n, groups * 32]`, and as a scale the largest of each [`NF4_GROUP`] numbers of a row, `[n, groups]`.
///
/// # Errors
/// [`TchError`] if libtorch fails.
pub fn quantize_nf4(numbers: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let (n, width) = numbers.size2()?;
    // In chunks, because intermediate results take several times the memory of the numbers.
    let rows = (CHUNK / width.max(1)).max(1);
    let starts = (0..n).step_by(usize::try_from(rows).unwrap_or(1));
    let chunks = starts.map(|start| quantize_nf4_chunk(&numbers.f_narrow(0, start, rows.min(n - start))?));
    let (quantized, scales): (Vec<Tensor>, Vec<Tensor>) =
        chunks.collect::<Result<Vec<_>, TchError>>()?.into_iter().unzip();
    Ok((Tensor::f_cat(&quantized, 0)?, Tensor::f_cat(&scales, 0)?))
}

fn quantize_nf4_chunk(numbers: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let (n, width) = numbers.size2()?;
    let padding = (NF4_GROUP - width % NF4_GROUP) % NF4_GROUP;
    let groups = numbers.f_constant_pad_nd([0, padding])?.f_view([n, -1, NF4_GROUP])?;
    let scales = groups.f_abs()?.f_amax([2], true)?;
    let divisors = scales.f_where_self(&scales.f_gt(0.0)?, &scales.f_ones_like()?)?;
    let midpoints: Vec<f32> = NF4_LEVELS.windows(2).map(|pair| f32::midpoint(pair[0], pair[1])).collect();
    let levels = groups.f_div(&divisors)?;
    let midpoints = Tensor::f_from_slice(&midpoints)?.f_to_device(numbers.device())?;
    let levels = levels.f_bucketize(&midpoints, false, false)?.f_to_kind(Kind::Uint8)?;
    let (low, high) = (levels.f_narrow(2, 0, NF4_GROUP / 2)?, levels.f_narrow(2, NF4_GROUP / 2, NF4_GROUP / 2)?);
    let quantized = high.f_mul_scalar(16)?.f_add(&low)?.f_reshape([n, -1])?;
    Ok((quantized, scales.f_reshape([n, -1])?))
}

/// Inverse of [`quantize_nf4`], `[n, width]`, with each column multiplied by its number in `columns [width]`.
///
/// # Errors
/// [`TchError`] if shapes disagree.
pub fn dequantize_nf4(quantized: &Tensor, scales: &Tensor, columns: &Tensor) -> Result<Tensor, TchError> {
    if quantized.device() != Device::Cpu {
        let levels = Tensor::f_from_slice(&NF4_LEVELS)?.f_to_device(quantized.device())?;
        return portable::dequantize_nf4(quantized, scales, columns, &levels, NF4_GROUP);
    }
    let out = scales.f_new_empty([scales.size()[0], columns.size()[0]], (Kind::Float, scales.device()))?;
    let levels = Tensor::f_from_slice(&NF4_LEVELS)?;
    sepal_dequantize_nf4(quantized, scales, &levels, columns, &out)?;
    Ok(out)
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
    fn dequantize_multiplies_columns() {
        let (numbers, columns) = (random(3, 130), random(1, 130).view([130]));
        let (quantized, scales) = quantize_int8(&numbers).expect("quantized");
        let dequantized = dequantize_int8(&quantized, &scales, &ones(130)).expect("numbers");
        let scaled = dequantize_int8(&quantized, &scales, &columns).expect("numbers");
        assert!(scaled.allclose(&(dequantized * &columns), 1e-6, 1e-6, false));
        let (quantized, scales) = quantize_nf4(&numbers).expect("quantized");
        let dequantized = dequantize_nf4(&quantized, &scales, &ones(130)).expect("numbers");
        let scaled = dequantize_nf4(&quantized, &scales, &columns).expect("numbers");
        assert!(scaled.allclose(&(dequantized * &columns), 1e-6, 1e-6, false));
    }

    #[test]
    fn int8_error_is_at_most_half_a_step() {
        for (n, width) in [(1, 1), (5, 7), (300, 200)] {
            let numbers = random(n, width);
            let (quantized, scales) = quantize_int8(&numbers).expect("quantized");
            assert_eq!((quantized.kind(), quantized.size(), scales.size()), (Kind::Int8, vec![n, width], vec![n]));
            let off = (dequantize_int8(&quantized, &scales, &ones(width)).expect("numbers") - &numbers).abs()
                / scales.unsqueeze(1);
            assert!(f64::try_from(off.max()).expect("a number") <= 0.5001);
        }
    }

    #[test]
    fn nf4_uses_the_nearest_level() {
        for (n, width) in [(1, 1), (3, 63), (5, 64), (300, 200)] {
            let numbers = random(n, width);
            let (quantized, scales) = quantize_nf4(&numbers).expect("quantized");
            let groups = (width + 63) / 64;
            assert_eq!((quantized.size(), scales.size()), (vec![n, groups * 32], vec![n, groups]));
            let found = dequantize_nf4(&quantized, &scales, &ones(width)).expect("numbers");
            // By brute force: no level of the group is nearer.
            let number_scales = scales.repeat_interleave_self_int(64, 1, None).narrow(1, 0, width);
            let levels = Tensor::from_slice(&NF4_LEVELS) * number_scales.unsqueeze(2);
            let nearest = (levels - numbers.unsqueeze(2)).abs().amin([2], false);
            let off = f64::try_from(((found - &numbers).abs() - nearest).abs().max()).expect("a number");
            assert!(off < 1e-6, "off by {off}");
        }
    }

    #[test]
    fn zeros_are_exact() {
        let zeros = Tensor::zeros([2, 70], (Kind::Float, Device::Cpu));
        let (quantized, scales) = quantize_int8(&zeros).expect("quantized");
        assert_eq!(dequantize_int8(&quantized, &scales, &ones(70)).expect("numbers"), zeros);
        let (quantized, scales) = quantize_nf4(&zeros).expect("quantized");
        assert_eq!(dequantize_nf4(&quantized, &scales, &ones(70)).expect("numbers"), zeros);
    }

    #[test]
    fn dequantize_with_wrong_shapes_fails() {
        let (quantized, scales) = quantize_nf4(&random(3, 100)).expect("quantized");
        assert!(dequantize_nf4(&quantized, &scales, &ones(200)).is_err());
        let (quantized, scales) = quantize_int8(&random(3, 100)).expect("quantized");
        assert!(dequantize_int8(&quantized, &scales.narrow(0, 0, 2), &ones(100)).is_err());
    }
}
