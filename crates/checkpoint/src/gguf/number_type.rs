//! Number types of GGUF files, and their blocks as fp32.
//!
//! Each number is computed by the same operations in the same order as in the reference of its format, so that results are
//! equal to the bit.

use half::{bf16, f16};
use sepal_core::RowEncoding;

/// Number type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NumberType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl NumberType {
    /// Type of this number in the format; `None` for types that are not read.
    pub(super) fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// Usual name of the type.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Numbers of a block.
    pub(crate) fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub(crate) fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Encoding of rows as they are stored; `None` for fp32.
    pub(crate) fn row_encoding(self) -> Option<RowEncoding> {
        Some(match self {
            Self::F32 => return None,
            Self::F16 => RowEncoding::F16,
            Self::Bf16 => RowEncoding::Bf16,
            Self::Q4_0 => RowEncoding::Q4_0,
            Self::Q4_1 => RowEncoding::Q4_1,
            Self::Q5_0 => RowEncoding::Q5_0,
            Self::Q5_1 => RowEncoding::Q5_1,
            Self::Q8_0 => RowEncoding::Q8_0,
            Self::Q2K => RowEncoding::Q2K,
            Self::Q3K => RowEncoding::Q3K,
            Self::Q4K => RowEncoding::Q4K,
            Self::Q5K => RowEncoding::Q5K,
            Self::Q6K => RowEncoding::Q6K,
        })
    }

    /// Appends the numbers of whole blocks to `values`.
    pub(crate) fn widen(self, blocks: &[u8], values: &mut Vec<f32>) {
        match self {
            Self::F32 => values.extend(blocks.as_chunks().0.iter().copied().map(f32::from_le_bytes)),
            Self::F16 => values.extend(blocks.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32())),
            Self::Bf16 => values.extend(blocks.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32())),
            Self::Q4_0 => each(blocks, values, q4_0),
            Self::Q4_1 => each(blocks, values, q4_1),
            Self::Q5_0 => each(blocks, values, q5_0),
            Self::Q5_1 => each(blocks, values, q5_1),
            Self::Q8_0 => each(blocks, values, q8_0),
            Self::Q2K => each(blocks, values, q2_k),
            Self::Q3K => each(blocks, values, q3_k),
            Self::Q4K => each(blocks, values, q4_k),
            Self::Q5K => each(blocks, values, q5_k),
            Self::Q6K => each(blocks, values, q6_k),
        }
    }
}

/// Appends the numbers of each block.
fn each<const BYTES: usize, const LEN: usize>(
    blocks: &[u8],
    values: &mut Vec<f32>,
    widen: fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let mut numbers = [0.0; LEN];
    for block in blocks.as_chunks().0 {
        widen(block, &mut numbers);
        values.extend_from_slice(&numbers);
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn word_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

// Blocks of 32 numbers: byte j holds the low bits of the numbers j and j + 16.

fn q4_0(block: &[u8; 18], numbers: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (j, byte) in block[2..].iter().enumerate() {
        numbers[j] = (f32::from(byte & 15) - 8.0) * scale;
        numbers[j + 16] = (f32::from(byte >> 4) - 8.0) * scale;
    }
}

fn q4_1(block: &[u8; 20], numbers: &mut [f32; 32]) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    for (j, byte) in block[4..].iter().enumerate() {
        numbers[j] = f32::from(byte & 15) * scale + min;
        numbers[j + 16] = f32::from(byte >> 4) * scale + min;
    }
}

/// Numbers of 5 bits, of which the highest are the bits of a word.
fn five_bits(high: u32, low: &[u8], j: usize) -> [f32; 2] {
    let bit = |at: usize| ((high >> at & 1) << 4) as u8;
    [f32::from(low[j] & 15 | bit(j)), f32::from(low[j] >> 4 | bit(j + 16))]
}

fn q5_0(block: &[u8; 22], numbers: &mut [f32; 32]) {
    let (scale, high) = (half_at(block, 0), word_at(block, 2));
    for j in 0..16 {
        let [first, second] = five_bits(high, &block[6..], j);
        numbers[j] = (first - 16.0) * scale;
        numbers[j + 16] = (second - 16.0) * scale;
    }
}

fn q5_1(block: &[u8; 24], numbers: &mut [f32; 32]) {
    let (scale, min, high) = (half_at(block, 0), half_at(block, 2), word_at(block, 4));
    for j in 0..16 {
        let [first, second] = five_bits(high, &block[8..], j);
        numbers[j] = first * scale + min;
        numbers[j + 16] = second * scale + min;
    }
}

fn q8_0(block: &[u8; 34], numbers: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (number, byte) in numbers.iter_mut().zip(&block[2..]) {
        *number = f32::from(*byte as i8) * scale;
    }
}

// Blocks of 256 numbers, in groups with factors of their own.

/// Factors of 16 groups, then four pairs of bits in each of 2 * 32 bytes.
fn q2_k(block: &[u8; 84], numbers: &mut [f32; 256]) {
    let (scale, min) = (half_at(block, 80), half_at(block, 82));
    for (group, numbers) in numbers.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let bytes = &block[16 + 32 * (group / 8) + 16 * (group % 2)..];
        let shift = 2 * (group % 8 / 2);
        let (scale, offset) = (scale * f32::from(block[group] & 15), min * f32::from(block[group] >> 4));
        for (number, byte) in numbers.iter_mut().zip(bytes) {
            *number = scale * f32::from(byte >> shift & 3) - offset;
        }
    }
}

/// A mask of the highest bits, the lower pairs of bits, and factors of 6 bits: the lower four of the groups 0-7 and 8-15
/// share bytes, the upper two of four groups each.
fn q3_k(block: &[u8; 110], numbers: &mut [f32; 256]) {
    let (factors, scale) = (&block[96..108], half_at(block, 108));
    for (group, numbers) in numbers.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = factors[group % 8] >> (if group < 8 { 0 } else { 4 }) & 15;
        let high = factors[8 + group % 4] >> (2 * (group / 4)) & 3;
        let scale = scale * (f32::from(low | high << 4) - 32.0);
        let (part, at) = (group / 2, 16 * (group % 2));
        let (mask, bytes) = (&block[at..], &block[32 + 32 * (part / 4) + at..]);
        for ((number, byte), mask) in numbers.iter_mut().zip(bytes).zip(mask) {
            let low = byte >> (2 * (part % 4)) & 3;
            *number = scale * f32::from((low | (mask >> part & 1) << 2) as i8 - 4);
        }
    }
}

/// Scale and offset of one of 8 groups: factors of the block times 6 bits each in 12 bytes.
fn scale_and_offset(block: &[u8], group: usize) -> (f32, f32) {
    let factors = &block[4..16];
    let (scale, offset) = match group {
        0..4 => (factors[group] & 63, factors[group + 4] & 63),
        _ => {
            let (low, high) = (factors[group + 4] & 15, factors[group + 4] >> 4);
            (low | factors[group - 4] >> 6 << 4, high | factors[group] >> 6 << 4)
        }
    };
    (half_at(block, 0) * f32::from(scale), half_at(block, 2) * f32::from(offset))
}

fn q4_k(block: &[u8; 144], numbers: &mut [f32; 256]) {
    for (group, numbers) in numbers.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, offset) = scale_and_offset(block, group);
        let shift = 4 * (group % 2);
        for (number, byte) in numbers.iter_mut().zip(&block[16 + 32 * (group / 2)..]) {
            *number = scale * f32::from(byte >> shift & 15) - offset;
        }
    }
}

fn q5_k(block: &[u8; 176], numbers: &mut [f32; 256]) {
    for (group, numbers) in numbers.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, offset) = scale_and_offset(block, group);
        let shift = 4 * (group % 2);
        let bytes = block[48 + 32 * (group / 2)..].iter().zip(&block[16..48]);
        for (number, (low, high)) in numbers.iter_mut().zip(bytes) {
            *number = scale * f32::from(low >> shift & 15 | (high >> group & 1) << 4) - offset;
        }
    }
}

/// In each half of a block, four parts of 32 numbers share 64 bytes of low and 32 bytes of high bits.
fn q6_k(block: &[u8; 210], numbers: &mut [f32; 256]) {
    let scale = half_at(block, 208);
    for (group, numbers) in numbers.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = scale * f32::from(block[192 + group] as i8);
        let (half, quarter, at) = (group / 8, group / 2 % 4, 16 * (group % 2));
        let low = &block[64 * half + 32 * (quarter % 2) + at..];
        let high = &block[128 + 32 * half + at..];
        for ((number, low), high) in numbers.iter_mut().zip(low).zip(high) {
            let low = low >> (if quarter < 2 { 0 } else { 4 }) & 15;
            *number = scale * f32::from((low | (high >> (2 * quarter) & 3) << 4) as i8 - 32);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use safetensors::SafeTensors;

    use super::*;

    const TYPES: [NumberType; 12] = {
        use NumberType::*;
        [F16, Bf16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K]
    };

    #[test]
    fn every_type_is_widened_as_by_the_gguf_package() {
        let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../testkit/goldens/quants.safetensors"));
        let file = std::fs::read(path).expect("the goldens");
        let goldens = SafeTensors::deserialize(&file).expect("safetensors");
        for kind in TYPES {
            let name = kind.name();
            let bytes = goldens.tensor(&format!("{name}.bytes")).expect("bytes");
            let values = goldens.tensor(&format!("{name}.values")).expect("values");
            let (mut found, mut expected) = (Vec::new(), Vec::new());
            kind.widen(bytes.data(), &mut found);
            NumberType::F32.widen(values.data(), &mut expected);
            assert_eq!(found.len(), expected.len(), "{name}");
            for (found, expected) in found.iter().zip(&expected) {
                let error = (found - expected).abs();
                assert!(error <= 1e-6 * expected.abs().max(1e-3), "{name}: {found} for {expected}");
            }
        }
    }

    #[test]
    fn blocks_have_the_bytes_of_rows() {
        for kind in TYPES {
            let encoding = kind.row_encoding().expect("rows");
            assert_eq!(encoding.row_bytes(kind.block_len()), Some(kind.block_bytes()), "{}", kind.name());
        }
    }
}
