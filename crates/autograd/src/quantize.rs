//! Weights in 8 and in 4 bits, packed row by row.

use sepal_core::NF4_LEVELS;
use tch::{Kind, TchError, Tensor};

/// Number of consecutive numbers of a row that share a scale in NF4.
pub(crate) const NF4_GROUP: i64 = 64;
/// Size of a factor.
pub(crate) const SCALE_BYTES: i64 = 4;

/// Number of numbers that are quantized to NF4 at a time.
const CHUNK: i64 = 1 << 22;

/// Quantizes `numbers [n, width]` of fp32 to integers from -127 to 127 and a factor for each row: rows of
/// [`RowEncoding::Int8`](sepal_core::RowEncoding::Int8), uint8.
///
/// # Errors
/// [`TchError`] if libtorch fails.
pub fn quantize_int8(numbers: &Tensor) -> Result<Tensor, TchError> {
    let scales = numbers.f_abs()?.f_amax([1], true)?.f_div_scalar(127.0)?;
    // Avoids a division by zero in rows of zeros.
    let divisors = scales.f_where_self(&scales.f_gt(0.0)?, &scales.f_ones_like()?)?;
    let quantized = numbers.f_div(&divisors)?.f_round()?.f_to_kind(Kind::Int8)?;
    Tensor::f_cat(&[scales.f_contiguous()?.f_view_dtype(Kind::Uint8)?, quantized.f_view_dtype(Kind::Uint8)?], 1)
}

/// Quantizes `numbers [n, width]` of fp32 to the nearest of 16 levels and a factor, the largest magnitude, for each 64 numbers
/// of a row: rows of [`RowEncoding::Nf4`](sepal_core::RowEncoding::Nf4), uint8.
///
/// # Errors
/// [`TchError`] if libtorch fails.
pub fn quantize_nf4(numbers: &Tensor) -> Result<Tensor, TchError> {
    let (n, width) = numbers.size2()?;
    // In chunks, because intermediate results take several times the memory of the numbers.
    let rows = (CHUNK / width.max(1)).max(1);
    let starts = (0..n).step_by(usize::try_from(rows).unwrap_or(1));
    let chunks = starts.map(|start| quantize_nf4_chunk(&numbers.f_narrow(0, start, rows.min(n - start))?));
    Tensor::f_cat(&chunks.collect::<Result<Vec<Tensor>, TchError>>()?, 0)
}

fn quantize_nf4_chunk(numbers: &Tensor) -> Result<Tensor, TchError> {
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
    let quantized = high.f_mul_scalar(16)?.f_add(&low)?; // [n, groups, 32]
    let scales = scales.f_contiguous()?.f_view_dtype(Kind::Uint8)?; // [n, groups, 4]
    Tensor::f_cat(&[scales, quantized], 2)?.f_reshape([n, -1])
}

#[cfg(test)]
mod tests {
    use sepal_core::RowEncoding;
    use tch::Device;

    use super::*;
    use crate::packed::{Columns, widen};

    fn random(n: i64, width: i64) -> Tensor {
        Tensor::randn([n, width], (Kind::Float, Device::Cpu))
    }

    fn widened(rows: &Tensor, encoding: RowEncoding, width: i64) -> Tensor {
        widen(rows, encoding, width, Columns::default()).expect("numbers")
    }

    #[test]
    fn int8_error_is_at_most_half_a_step() {
        for (n, width) in [(1, 1), (5, 7), (300, 200)] {
            let numbers = random(n, width);
            let rows = quantize_int8(&numbers).expect("rows");
            assert_eq!((rows.kind(), rows.size()), (Kind::Uint8, vec![n, width + 4]));
            let steps = numbers.abs().amax([1], true) / 127.0;
            let off = (widened(&rows, RowEncoding::Int8, width) - &numbers).abs() / steps;
            assert!(f64::try_from(off.max()).expect("a number") <= 0.5001);
        }
    }

    #[test]
    fn nf4_uses_the_nearest_level() {
        for (n, width) in [(1, 1), (3, 63), (5, 64), (300, 200)] {
            let numbers = random(n, width);
            let rows = quantize_nf4(&numbers).expect("rows");
            let groups = (width + 63) / 64;
            assert_eq!(rows.size(), [n, groups * 36]);
            let found = widened(&rows, RowEncoding::Nf4, width);
            // By brute force: no level of the group is nearer.
            let padded = numbers.constant_pad_nd([0, groups * 64 - width]).view([n, groups, 64]);
            let scales = padded.abs().amax([2], true).expand([n, groups, 64], false).reshape([n, -1]);
            let levels = Tensor::from_slice(&NF4_LEVELS) * scales.narrow(1, 0, width).unsqueeze(2);
            let nearest = (levels - numbers.unsqueeze(2)).abs().amin([2], false);
            let off = f64::try_from(((found - &numbers).abs() - nearest).abs().max()).expect("a number");
            assert!(off < 1e-6, "off by {off}");
        }
    }

    #[test]
    fn zeros_are_exact() {
        let zeros = Tensor::zeros([2, 70], (Kind::Float, Device::Cpu));
        let rows = quantize_int8(&zeros).expect("rows");
        assert_eq!(widened(&rows, RowEncoding::Int8, 70), zeros);
        let rows = quantize_nf4(&zeros).expect("rows");
        assert_eq!(widened(&rows, RowEncoding::Nf4, 70), zeros);
    }
}
