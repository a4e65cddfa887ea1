//! Number types of GGUF files, and their blocks as fp32.
//!
//! Each number is computed by the same operations in the same order as in the reference of its format, so that results are
//! equal to the bit.

use half::{bf16, f16};
use sepal_core::RowEncoding;

/// Number type of a tensor: an entry of [`TYPES`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct NumberType(&'static Entry);

impl PartialEq for NumberType {
    fn eq(&self, other: &Self) -> bool {
        self.0.code == other.0.code
    }
}

/// A number type of the format.
#[derive(Debug)]
struct Entry {
    code: u32,
    /// Usual name.
    name: &'static str,
    /// Numbers and bytes of a block.
    block: (usize, usize),
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    F32,
    /// Rows that can be used as they are stored.
    Rows {
        encoding: RowEncoding,
        widen: fn(&[u8], &mut Vec<f32>),
    },
    /// Type that is not read. Files may have it in tensors that nothing needs.
    Unread,
}

/// Entry of a type whose blocks are those of an encoding.
const fn rows(code: u32, name: &'static str, encoding: RowEncoding, widen: fn(&[u8], &mut Vec<f32>)) -> Entry {
    // Evaluated by the compiler.
    let Some(block) = encoding.block() else { panic!("the encoding has no blocks") };
    Entry { code, name, block, kind: Kind::Rows { encoding, widen } }
}

const fn unread(code: u32, name: &'static str, block_len: usize, block_bytes: usize) -> Entry {
    Entry { code, name, block: (block_len, block_bytes), kind: Kind::Unread }
}

/// All number types that files have, with the sizes of the Python package gguf 0.19.
static TYPES: [Entry; 32] = [
    Entry { code: 0, name: "F32", block: (1, 4), kind: Kind::F32 },
    rows(1, "F16", RowEncoding::F16, |blocks, values| {
        values.extend(blocks.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()));
    }),
    rows(30, "BF16", RowEncoding::Bf16, |blocks, values| {
        values.extend(blocks.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()));
    }),
    rows(2, "Q4_0", RowEncoding::Q4_0, |blocks, values| each(blocks, values, q4_0)),
    rows(3, "Q4_1", RowEncoding::Q4_1, |blocks, values| each(blocks, values, q4_1)),
    rows(6, "Q5_0", RowEncoding::Q5_0, |blocks, values| each(blocks, values, q5_0)),
    rows(7, "Q5_1", RowEncoding::Q5_1, |blocks, values| each(blocks, values, q5_1)),
    rows(8, "Q8_0", RowEncoding::Q8_0, |blocks, values| each(blocks, values, q8_0)),
    rows(10, "Q2_K", RowEncoding::Q2K, |blocks, values| each(blocks, values, q2_k)),
    rows(11, "Q3_K", RowEncoding::Q3K, |blocks, values| each(blocks, values, q3_k)),
    rows(12, "Q4_K", RowEncoding::Q4K, |blocks, values| each(blocks, values, q4_k)),
    rows(13, "Q5_K", RowEncoding::Q5K, |blocks, values| each(blocks, values, q5_k)),
    rows(14, "Q6_K", RowEncoding::Q6K, |blocks, values| each(blocks, values, q6_k)),
    unread(16, "IQ2_XXS", 256, 66),
    unread(17, "IQ2_XS", 256, 74),
    unread(18, "IQ3_XXS", 256, 98),
    unread(19, "IQ1_S", 256, 50),
    unread(20, "IQ4_NL", 32, 18),
    unread(21, "IQ3_S", 256, 110),
    unread(22, "IQ2_S", 256, 82),
    unread(23, "IQ4_XS", 256, 136),
    unread(24, "I8", 1, 1),
    unread(25, "I16", 1, 2),
    unread(26, "I32", 1, 4),
    unread(27, "I64", 1, 8),
    unread(28, "F64", 1, 8),
    unread(29, "IQ1_M", 256, 56),
    unread(34, "TQ1_0", 256, 54),
    unread(35, "TQ2_0", 256, 66),
    unread(39, "MXFP4", 32, 17),
    unread(40, "NVFP4", 64, 36),
    unread(41, "Q1_0", 128, 18),
];

impl NumberType {
    /// Type of this number in the format; `None` for a number that is not in [`TYPES`], whose blocks have no known size.
    pub(super) fn from_code(code: u32) -> Option<Self> {
        TYPES.iter().find(|entry| entry.code == code).map(Self)
    }

    /// Names of the types that are read.
    pub(crate) fn read_names() -> String {
        let read = TYPES.iter().filter(|entry| !matches!(entry.kind, Kind::Unread));
        read.map(|entry| entry.name).collect::<Vec<_>>().join(", ")
    }

    /// Usual name of the type.
    pub(crate) fn name(self) -> &'static str {
        self.0.name
    }

    /// Numbers of a block.
    pub(crate) fn block_len(self) -> usize {
        self.0.block.0
    }

    /// Bytes of a block.
    pub(crate) fn block_bytes(self) -> usize {
        self.0.block.1
    }

    /// True for fp32.
    pub(crate) fn is_f32(self) -> bool {
        matches!(self.0.kind, Kind::F32)
    }

    /// True if numbers of the type can be read.
    pub(crate) fn is_read(self) -> bool {
        !matches!(self.0.kind, Kind::Unread)
    }

    /// Encoding of rows as they are stored; `None` for fp32 and types that are not read.
    pub(crate) fn row_encoding(self) -> Option<RowEncoding> {
        match self.0.kind {
            Kind::Rows { encoding, .. } => Some(encoding),
            Kind::F32 | Kind::Unread => None,
        }
    }

    /// Appends the numbers of whole blocks to `values`; none of a type that is not read.
    pub(crate) fn widen(self, blocks: &[u8], values: &mut Vec<f32>) {
        match self.0.kind {
            Kind::F32 => values.extend(blocks.as_chunks().0.iter().copied().map(f32::from_le_bytes)),
            Kind::Rows { widen, .. } => widen(blocks, values),
            Kind::Unread => {}
        }
    }
}

#[cfg(test)]
impl NumberType {
    /// Type of this name.
    pub(crate) fn named(name: &str) -> Self {
        Self(TYPES.iter().find(|entry| entry.name == name).expect("a name in the list"))
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

    /// The types that are read, but for fp32.
    fn types() -> impl Iterator<Item = NumberType> {
        TYPES.iter().map(NumberType).filter(|kind| kind.row_encoding().is_some())
    }

    #[test]
    fn every_type_is_widened_as_by_the_gguf_package() {
        let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../testkit/goldens/quants.safetensors"));
        let file = std::fs::read(path).expect("the goldens");
        let goldens = SafeTensors::deserialize(&file).expect("safetensors");
        for kind in types() {
            let name = kind.name();
            let bytes = goldens.tensor(&format!("{name}.bytes")).expect("bytes");
            let values = goldens.tensor(&format!("{name}.values")).expect("values");
            let (mut found, mut expected) = (Vec::new(), Vec::new());
            kind.widen(bytes.data(), &mut found);
            NumberType::named("F32").widen(values.data(), &mut expected);
            assert_eq!(found.len(), expected.len(), "{name}");
            for (found, expected) in found.iter().zip(&expected) {
                let error = (found - expected).abs();
                assert!(error <= 1e-6 * expected.abs().max(1e-3), "{name}: {found} for {expected}");
            }
        }
    }

    #[test]
    fn every_type_has_a_number_and_a_name_of_its_own() {
        for (index, entry) in TYPES.iter().enumerate() {
            let is_same = |other: &Entry| other.code == entry.code || other.name == entry.name;
            assert!(!TYPES[..index].iter().any(is_same), "{}", entry.name);
            assert_eq!(NumberType::from_code(entry.code), Some(NumberType::named(entry.name)));
            assert!(entry.block.0.is_power_of_two() && entry.block.1 > 0, "{}", entry.name);
        }
        assert_eq!(types().count(), 12);
        assert_eq!(NumberType::from_code(99), None);
    }

    #[test]
    fn blocks_have_the_bytes_of_rows() {
        for kind in types() {
            let encoding = kind.row_encoding().expect("rows");
            assert_eq!(encoding.row_bytes(kind.block_len()), Some(kind.block_bytes()), "{}", kind.name());
        }
    }
}
