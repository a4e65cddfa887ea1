//! Encoded rows as fp32.

use sepal_core::{NF4_LEVELS, RowEncoding};

/// Numbers of a group of NF4.
pub(super) const NF4_GROUP: usize = 64;

/// Numbers of the 8-bit floats with 4 exponent bits and without infinities (arXiv 2209.05433).
static E4M3: [f32; 256] = {
    let mut numbers = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        numbers[byte] = e4m3(byte as u8);
        byte += 1;
    }
    numbers
};

const fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = ((byte >> 3 & 15) as u32, (byte & 7) as u32);
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        (0, mantissa) => mantissa as f32 / 512.0,
        // Bias 127 in place of 7.
        (exponent, mantissa) => f32::from_bits((exponent + 120) << 23 | mantissa << 20),
    };
    if byte >> 7 == 1 { -magnitude } else { magnitude }
}

/// Numbers of encoded rows of `width` numbers; `None` if they are not whole rows of an encoding that this module writes.
pub(super) fn widen(encoding: RowEncoding, width: usize, data: &[u8]) -> Option<Vec<f32>> {
    let row_bytes = encoding.row_bytes(width).filter(|row_bytes| data.len().is_multiple_of(*row_bytes))?;
    let mut values = Vec::with_capacity(data.len() / row_bytes * width);
    for row in data.chunks_exact(row_bytes) {
        match encoding {
            RowEncoding::Fp8 { group } => fp8(row, group as usize, &mut values)?,
            RowEncoding::Int8 => {
                let (factor, numbers) = row.split_first_chunk()?;
                let factor = f32::from_le_bytes(*factor);
                values.extend(numbers.iter().map(|number| factor * f32::from(*number as i8)));
            }
            RowEncoding::Int4 { group } => int4(row, width, group as usize, &mut values)?,
            RowEncoding::Uint8 { group } => uint8(row, group as usize, &mut values)?,
            RowEncoding::Nf4 => nf4(row, width, &mut values)?,
            _ => return None,
        }
    }
    Some(values)
}

fn fp8(row: &[u8], group: usize, values: &mut Vec<f32>) -> Option<()> {
    for group in row.chunks(4 + group) {
        let (factor, numbers) = group.split_first_chunk()?;
        let factor = f32::from_le_bytes(*factor);
        values.extend(numbers.iter().map(|number| factor * E4M3[usize::from(*number)]));
    }
    Some(())
}

fn int4(row: &[u8], width: usize, group: usize, values: &mut Vec<f32>) -> Option<()> {
    let mut remaining = width;
    for bytes in row.chunks(6 + group / 2) {
        let (scale, numbers) = Scale::read(bytes)?;
        let halves = numbers.iter().flat_map(|byte| [byte & 15, byte >> 4]);
        values.extend(halves.take(remaining.min(group)).map(|number| scale.value(number)));
        remaining = remaining.saturating_sub(group);
    }
    Some(())
}

fn uint8(row: &[u8], group: usize, values: &mut Vec<f32>) -> Option<()> {
    for group in row.chunks(6 + group) {
        let (scale, numbers) = Scale::read(group)?;
        values.extend(numbers.iter().map(|number| scale.value(*number)));
    }
    Some(())
}

fn nf4(row: &[u8], width: usize, values: &mut Vec<f32>) -> Option<()> {
    let mut remaining = width;
    for group in row.chunks(4 + NF4_GROUP / 2) {
        let (factor, numbers) = group.split_first_chunk()?;
        let factor = f32::from_le_bytes(*factor);
        let codes = numbers.iter().map(|byte| byte & 15).chain(numbers.iter().map(|byte| byte >> 4));
        values.extend(codes.take(remaining).map(|code| factor * NF4_LEVELS[usize::from(code)]));
        remaining = remaining.saturating_sub(NF4_GROUP);
    }
    Some(())
}

/// Factor and zero of a group of integers.
struct Scale {
    factor: f32,
    zero: i16,
}

impl Scale {
    /// Splits a group into its scale and its numbers.
    fn read(group: &[u8]) -> Option<(Self, &[u8])> {
        let (factor, group) = group.split_first_chunk()?;
        let (zero, numbers) = group.split_first_chunk()?;
        Some((Self { factor: f32::from_le_bytes(*factor), zero: i16::from_le_bytes(*zero) }, numbers))
    }

    fn value(&self, number: u8) -> f32 {
        self.factor * (i32::from(number) - i32::from(self.zero)) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_floats_are_those_of_the_paper() {
        let numbers = [0x00, 0x01, 0x07, 0x08, 0x38, 0x3c, 0x7e, 0xb8, 0xfe].map(|byte: u8| E4M3[usize::from(byte)]);
        assert_eq!(numbers, [0.0, 1.0 / 512.0, 7.0 / 512.0, 1.0 / 64.0, 1.0, 1.5, 448.0, -1.0, -448.0]);
        assert!(E4M3[0x7f].is_nan() && E4M3[0xff].is_nan());
    }

    #[test]
    fn last_group_may_be_shorter() {
        let group =
            |factor: f32, zero: i16, numbers: &[u8]| [&factor.to_le_bytes()[..], &zero.to_le_bytes(), numbers].concat();
        let row = [group(0.5, 8, &[0x98, 0x0f]), group(2.0, 16, &[0xf1])].concat();
        let expected = vec![0.0, 0.5, 3.5, -4.0, -30.0, -2.0];
        assert_eq!(widen(RowEncoding::Int4 { group: 4 }, 6, &row), Some(expected));
        assert_eq!(widen(RowEncoding::Int4 { group: 4 }, 6, &row[1..]), None);
        let row = [group(0.5, 1, &[255, 0, 1, 2]), group(1.0, 256, &[0])].concat();
        assert_eq!(widen(RowEncoding::Uint8 { group: 4 }, 5, &row), Some(vec![127.0, -0.5, 0.0, 0.5, -256.0]));
    }

    #[test]
    fn other_encodings_are_not_widened() {
        assert_eq!(widen(RowEncoding::F16, 1, &[0, 0]), None);
    }
}
