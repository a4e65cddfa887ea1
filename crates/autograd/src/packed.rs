//! Matrices that are packed row by row, widened to fp32 a few rows at a time.

use sepal_core::{NF4_LEVELS, RowEncoding};
use tch::{Device, Kind, TchError, Tensor};

use crate::portable;

kernels! {
    sepal_widen(rows, levels, columns, order, out; code: i64, group: i64);
}

/// Changes of the columns while a matrix is widened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Columns<'a> {
    /// Index of each column among the packed ones, `[width]`, int64.
    pub order: Option<&'a Tensor>,
    /// Factor of each column, after they are ordered, `[width]`, fp32.
    pub factors: Option<&'a Tensor>,
}

/// Returns `rows [n, bytes of a row]`, uint8, as numbers `[n, width]` of fp32. Each is computed by the operations of the
/// reference of its format, in their order.
///
/// On another device than the CPU only some encodings are supported, see [`is_supported`].
///
/// # Errors
/// [`TchError`] if shapes disagree, or the device does not support the encoding.
pub fn widen(rows: &Tensor, encoding: RowEncoding, width: i64, columns: Columns<'_>) -> Result<Tensor, TchError> {
    let out = Tensor::f_empty([rows.size()[0], width], (Kind::Float, rows.device()))?;
    widen_into(&out, rows, encoding, columns)?;
    Ok(out)
}

/// As [`widen`], into `out [n, width]` of fp32, contiguous.
fn widen_into(out: &Tensor, rows: &Tensor, encoding: RowEncoding, columns: Columns<'_>) -> Result<(), TchError> {
    let (n, width) = out.size2()?;
    let row_bytes = usize::try_from(width).ok().and_then(|width| encoding.row_bytes(width));
    if row_bytes.and_then(|bytes| i64::try_from(bytes).ok()).is_none_or(|bytes| rows.size() != [n, bytes]) {
        let shape = rows.size();
        return Err(TchError::Shape(format!(
            "packed rows of shape {shape:?} are not {n} rows of {width} {encoding:?}"
        )));
    }
    let Some(code) = code(encoding).filter(|_| rows.device() == Device::Cpu) else {
        return widen_by_libtorch(out, rows, encoding, columns);
    };
    let (factors, order) =
        (Tensor::f_empty([0], (Kind::Float, Device::Cpu))?, Tensor::f_empty([0], (Kind::Int64, Device::Cpu))?);
    let levels = Tensor::f_from_slice(&NF4_LEVELS)?;
    let is_dense = rows.stride()[1] == 1;
    let rows = if is_dense { rows.shallow_clone() } else { rows.f_contiguous()? };
    sepal_widen(
        &rows,
        &levels,
        columns.factors.unwrap_or(&factors),
        columns.order.unwrap_or(&order),
        out,
        code,
        group(encoding),
    )
}

/// True if [`widen`] supports an encoding on a device.
pub fn is_supported(encoding: RowEncoding, device: Device) -> bool {
    encoding.is_for_every_device() || (device == Device::Cpu && code(encoding).is_some())
}

/// Index of the kernel in packed.cpp; `None` for an encoding without one.
fn code(encoding: RowEncoding) -> Option<i64> {
    Some(match encoding {
        RowEncoding::Q4_0 => 0,
        RowEncoding::Q4_1 => 1,
        RowEncoding::Q5_0 => 2,
        RowEncoding::Q5_1 => 3,
        RowEncoding::Q8_0 => 4,
        RowEncoding::Q2K => 5,
        RowEncoding::Q3K => 6,
        RowEncoding::Q4K => 7,
        RowEncoding::Q5K => 8,
        RowEncoding::Q6K => 9,
        RowEncoding::Mxfp4 => 10,
        RowEncoding::Int8 => 11,
        RowEncoding::Nf4 => 12,
        RowEncoding::Fp8 { .. } => 13,
        RowEncoding::Int4 { .. } => 14,
        RowEncoding::Uint8 { .. } => 15,
        RowEncoding::F16 => 16,
        RowEncoding::Bf16 => 17,
        _ => return None,
    })
}

/// Numbers that share a factor; 1 for encodings that have a fixed number.
fn group(encoding: RowEncoding) -> i64 {
    match encoding {
        RowEncoding::Fp8 { group } | RowEncoding::Int4 { group } | RowEncoding::Uint8 { group } => i64::from(group),
        _ => 1,
    }
}

/// Widens by operations of libtorch, on any device.
fn widen_by_libtorch(out: &Tensor, rows: &Tensor, encoding: RowEncoding, columns: Columns<'_>) -> Result<(), TchError> {
    let width = out.size()[1];
    let numbers = match encoding {
        RowEncoding::F16 => rows.f_view_dtype(Kind::Half)?,
        RowEncoding::Bf16 => rows.f_view_dtype(Kind::BFloat16)?,
        RowEncoding::Int8 => portable::widen_int8(rows)?,
        RowEncoding::Nf4 => {
            portable::widen_nf4(rows, &Tensor::f_from_slice(&NF4_LEVELS)?.f_to_device(rows.device())?, width)?
        }
        other => {
            let device = rows.device();
            return Err(TchError::Kind(format!("rows in the encoding {other:?} cannot be widened on {device:?}")));
        }
    };
    let mut out = out.shallow_clone();
    match columns.order {
        Some(order) => out.f_copy_(&numbers.f_index_select(1, order)?)?,
        None => out.f_copy_(&numbers)?,
    }
    columns.factors.map_or(Ok(()), |factors| out.f_mul_(factors).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(rows: &[u8], encoding: RowEncoding, width: i64) -> Vec<f32> {
        let n = rows.len() / encoding.row_bytes(width as usize).expect("rows");
        let rows = Tensor::from_slice(rows).view([n as i64, -1]);
        Vec::try_from(widen(&rows, encoding, width, Columns::default()).expect("numbers").view([-1])).expect("floats")
    }

    fn f32_bytes(number: f32) -> Vec<u8> {
        number.to_le_bytes().to_vec()
    }

    #[test]
    fn e4m3_is_widened_exactly() {
        let bytes = [0x00, 0x80, 0x01, 0x08, 0x38, 0xB8, 0x7E, 0x7F];
        let found = numbers(&[f32_bytes(2.0), bytes.to_vec()].concat(), RowEncoding::Fp8 { group: 8 }, 8);
        // 2^-9 is the smallest, 2^-6 the smallest normal number, 448 the largest.
        assert_eq!(found[..7], [0.0, 0.0, 2.0 / 512.0, 2.0 / 64.0, 2.0, -2.0, 896.0]);
        assert!(found[7].is_nan());
    }

    #[test]
    fn groups_have_factors_of_their_own() {
        // Groups of two, the last with one number.
        let int4 = [f32_bytes(0.5), vec![8, 0, 0xF0], f32_bytes(2.0), vec![0xFF, 0xFF, 0x03]].concat();
        assert_eq!(numbers(&int4, RowEncoding::Int4 { group: 2 }, 3), [-4.0, 3.5, 8.0]);
        let uint8 = [f32_bytes(0.5), vec![128, 0, 0, 255], f32_bytes(1.0), vec![0, 0, 7]].concat();
        assert_eq!(numbers(&uint8, RowEncoding::Uint8 { group: 2 }, 3), [-64.0, 63.5, 7.0]);
        let fp8 = [f32_bytes(1.0), vec![0x38, 0x38], f32_bytes(3.0), vec![0x38]].concat();
        assert_eq!(numbers(&fp8, RowEncoding::Fp8 { group: 2 }, 3), [1.0, 1.0, 3.0]);
    }

    #[test]
    fn mxfp4_is_widened_exactly() {
        let mut row = vec![128];
        row.extend((0..8_u8).map(|j| (2 * j) | ((2 * j + 1) << 4)));
        row.extend([0x10; 8]);
        let found = numbers(&row, RowEncoding::Mxfp4, 32);
        assert_eq!(found[..8], [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0]);
        assert_eq!(found[9..16], [-1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0]);
        assert_eq!(found[16..18], [0.0, 1.0]);
    }

    #[test]
    fn columns_are_ordered_and_then_scaled() {
        let row = [f32_bytes(1.0), vec![1, 2, 3]].concat();
        let rows = Tensor::from_slice(&row).view([1, -1]);
        let (order, factors) = (Tensor::from_slice(&[2_i64, 0, 1]), Tensor::from_slice(&[1.0_f32, 10.0, 100.0]));
        let columns = Columns { order: Some(&order), factors: Some(&factors) };
        let found = widen(&rows, RowEncoding::Int8, 3, columns).expect("numbers");
        let expected = Tensor::from_slice(&[3.0_f32, 10.0, 200.0]).view([1, 3]);
        assert_eq!(found, expected);
        let by_libtorch = found.zeros_like();
        widen_by_libtorch(&by_libtorch, &rows, RowEncoding::Int8, columns).expect("numbers");
        assert_eq!(by_libtorch, expected);
        let outside = Columns { order: Some(&Tensor::from_slice(&[0_i64, 1, 3])), factors: None };
        assert!(widen(&rows, RowEncoding::Int8, 3, outside).is_err());
    }

    #[test]
    fn halves_are_widened_as_by_libtorch() {
        // All bit patterns: subnormal numbers, infinities and NaN among them.
        let bits: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let rows = Tensor::from_slice(&bits).view([4, -1]);
        for encoding in [RowEncoding::F16, RowEncoding::Bf16] {
            let found = widen(&rows, encoding, 1 << 14, Columns::default()).expect("numbers");
            let expected = found.zeros_like();
            widen_by_libtorch(&expected, &rows, encoding, Columns::default()).expect("numbers");
            let (is_nan, expected_nan) = (found.isnan(), expected.isnan());
            assert_eq!(is_nan, expected_nan);
            let (found, expected) = (found.masked_fill(&is_nan, 0.0), expected.masked_fill(&is_nan, 0.0));
            assert_eq!(found.view_dtype(Kind::Int), expected.view_dtype(Kind::Int), "{encoding:?}");
        }
    }

    #[test]
    fn rows_of_another_size_fail() {
        let rows = Tensor::zeros([2, 7], (Kind::Uint8, Device::Cpu));
        assert!(widen(&rows, RowEncoding::Int8, 4, Columns::default()).is_err());
        assert!(widen(&rows, RowEncoding::Q4K, 256, Columns::default()).is_err());
    }
}
