//! MXFP4 (OCP Microscaling Formats 1.0): groups of 32 numbers in 4 bits each, with a power of two as their factor. The
//! numbers of a matrix and its factors are two tensors.

use bytes::Bytes;
use sepal_core::{DType, HostTensor, PackedMatrix, RowEncoding};

use crate::error::ReadError;
use crate::rows::Rows;
use crate::store::{Encoding, Store, Stored};

/// Numbers of a group.
pub(crate) const GROUP: usize = 32;
/// Bytes of a group's numbers.
pub(crate) const GROUP_BYTES: usize = GROUP / 2;

/// Numbers by their 4 bits: a sign, two bits of the exponent, one of the mantissa (E2M1).
const LEVELS: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

impl Store {
    /// Reads a matrix `[outputs, inputs]` without dequantizing it.
    pub(crate) fn packed_mxfp4(&self, name: &str, stored: &Stored) -> Result<PackedMatrix, ReadError> {
        let rows = self.mxfp4_rows(name, stored)?;
        let width = stored.shape.last().copied().unwrap_or(0);
        PackedMatrix::new(RowEncoding::Mxfp4, width, Bytes::from(rows)).map_err(|source| ReadError::Decode {
            name: name.to_owned(),
            path: self.files[stored.file].path().to_owned(),
            source: source.into(),
        })
    }

    /// Reads a matrix `[outputs, inputs]`, or the matrices of all experts, `[experts, inputs, outputs]`, as bf16, which holds
    /// each number exactly up to its largest; products beyond it are infinite, and those of a factor that is NaN are NaN.
    pub(crate) fn read_mxfp4(&self, name: &str, stored: &Stored) -> Result<HostTensor, ReadError> {
        let numbers = match stored.shape[..] {
            [experts, inputs, outputs] => {
                let mut numbers = Vec::with_capacity(experts * inputs * outputs);
                for expert in 0..experts {
                    let rows = Rows::Every { first: 0, step: 1 };
                    let matrix = Stored { shape: vec![outputs, inputs], rows, ..stored.expert(expert) };
                    let matrix = dequantized(&self.mxfp4_rows(name, &matrix)?); // [outputs, inputs]
                    numbers.extend(Rows::Columns { first: 0, step: 1 }.select(&matrix, &[inputs, outputs]));
                }
                numbers
            }
            _ => dequantized(self.packed_mxfp4(name, stored)?.data()),
        };
        let data = Bytes::copy_from_slice(bytemuck::cast_slice(&numbers));
        HostTensor::new(DType::Bf16, stored.shape.clone(), data).map_err(|source| ReadError::Decode {
            name: name.to_owned(),
            path: self.files[stored.file].path().to_owned(),
            source: source.into(),
        })
    }

    /// Rows of a matrix `[outputs, inputs]` in [`RowEncoding::Mxfp4`]: each group's factor, then its numbers.
    fn mxfp4_rows(&self, name: &str, stored: &Stored) -> Result<Vec<u8>, ReadError> {
        let (Encoding::Mxfp4 { scales_file, scales_offset }, Rows::Every { first, step }) =
            (stored.encoding, stored.rows)
        else {
            let (name, path) = (name.to_owned(), self.files[stored.file].path().to_owned());
            return Err(ReadError::DType { name, path, dtype: stored.encoding.name() });
        };
        let len = stored.len as usize;
        let numbers: Vec<u8> = self.files[stored.file].read_tensor(name, stored.offset, len)?;
        let scales: Vec<u8> = self.files[scales_file].read_tensor(name, scales_offset, len / GROUP_BYTES)?;
        let groups = stored.shape.last().map_or(1, |width| width / GROUP).max(1);
        let rows = numbers.chunks_exact(groups * GROUP_BYTES).zip(scales.chunks_exact(groups));
        let mut selected = Vec::with_capacity((len + scales.len()) / step);
        for (numbers, scales) in rows.skip(first).step_by(step) {
            for (numbers, scale) in numbers.chunks_exact(GROUP_BYTES).zip(scales) {
                selected.push(*scale);
                selected.extend_from_slice(numbers);
            }
        }
        Ok(selected)
    }
}

/// Numbers of packed rows, in bf16.
fn dequantized(rows: &[u8]) -> Vec<u16> {
    let groups = rows.chunks_exact(1 + GROUP_BYTES);
    let mut numbers = Vec::with_capacity(groups.len() * GROUP);
    for group in groups {
        let factor = power_of_two(group[0]);
        let number = |level: u8| ((LEVELS[usize::from(level)] * factor).to_bits() >> 16) as u16;
        numbers.extend(group[1..].iter().flat_map(|pair| [number(pair & 15), number(pair >> 4)]));
    }
    numbers
}

/// A float of eight exponent bits (E8M0): `2^(exponent - 127)`, from `2^-127` for 0 to `2^127` for 254; NaN for 255.
pub(crate) fn power_of_two(exponent: u8) -> f32 {
    match exponent {
        // A subnormal number.
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_dequantized_exactly() {
        let mut group = vec![126];
        group.extend((0..GROUP_BYTES as u8).map(|byte| byte | ((15 - byte) << 4)));
        let found: Vec<f32> =
            dequantized(&group).into_iter().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect();
        let expected: Vec<f32> = (0..16).flat_map(|level| [LEVELS[level] / 2.0, LEVELS[15 - level] / 2.0]).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn factors_are_powers_of_two() {
        for (exponent, expected) in [(0, 2_f32.powi(-127)), (1, 2_f32.powi(-126)), (127, 1.0), (254, 2_f32.powi(127))] {
            assert_eq!(power_of_two(exponent), expected);
        }
        assert!(power_of_two(255).is_nan());
    }

    #[test]
    fn numbers_of_a_factor_that_is_nan_are_nan() {
        let group = [255; 1 + GROUP_BYTES];
        let numbers: Vec<f32> =
            dequantized(&group).into_iter().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect();
        assert!(numbers.len() == GROUP && numbers.iter().all(|number| number.is_nan()), "{numbers:?}");
    }
}
