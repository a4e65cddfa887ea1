use bytes::Bytes;

/// Levels of NF4: quantiles of the normal distribution, with 0 among them and ends at 1 (arXiv 2305.14314, appendix E).
pub const NF4_LEVELS: [f32; 16] = [
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

/// Encoding of a matrix whose rows lie in memory one after another, each with all that is needed to read it. Numbers are
/// little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RowEncoding {
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// Blocks of 32 numbers of a GGUF file: Q4_0.
    Q4_0,
    /// Blocks of 32 numbers of a GGUF file: Q4_1.
    Q4_1,
    /// Blocks of 32 numbers of a GGUF file: Q5_0.
    Q5_0,
    /// Blocks of 32 numbers of a GGUF file: Q5_1.
    Q5_1,
    /// Blocks of 32 numbers of a GGUF file: Q8_0.
    Q8_0,
    /// Blocks of 256 numbers of a GGUF file: Q2_K.
    Q2K,
    /// Blocks of 256 numbers of a GGUF file: Q3_K.
    Q3K,
    /// Blocks of 256 numbers of a GGUF file: Q4_K.
    Q4K,
    /// Blocks of 256 numbers of a GGUF file: Q5_K.
    Q5K,
    /// Blocks of 256 numbers of a GGUF file: Q6_K.
    Q6K,
    /// An f32 factor, then an i8 for each number: `factor * i8`.
    Int8,
    /// Groups of 64 numbers, an f32 factor and 32 bytes each: byte `j` holds the numbers `j` (low half) and `j + 32`, as
    /// levels of NF4 (arXiv 2305.14314). The last group is padded.
    Nf4,
    /// Groups of `group` numbers, an f32 factor and a byte for each number: `factor * e4m3`, the 8-bit floats without
    /// infinities (arXiv 2209.05433). The last group may be shorter.
    Fp8 {
        /// Numbers that share a factor.
        group: u32,
    },
    /// Groups of `group` numbers, an even number: an f32 factor, an i16 zero and half a byte for each number, the even ones
    /// in the low halves: `factor * (number - zero)`. The last group may be shorter.
    Int4 {
        /// Numbers that share a factor and a zero.
        group: u32,
    },
    /// As [`Int4`](Self::Int4), with a byte for each number.
    Uint8 {
        /// Numbers that share a factor and a zero.
        group: u32,
    },
    /// Groups of 32 numbers: a byte `e`, then half a byte for each number, the even ones in the low halves:
    /// `2^(e - 127) * e2m1` (MXFP4 of the OCP Microscaling Formats 1.0).
    Mxfp4,
}

impl RowEncoding {
    /// True for 16-bit floats, which have no factors.
    pub fn is_16_bit(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16)
    }

    /// True for the encodings that products on every device read; the others are for the CPU.
    pub fn is_for_every_device(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::Int8 | Self::Nf4)
    }

    /// Numbers and bytes of a block, where rows are nothing but equal blocks; `None` for the other encodings.
    pub const fn block(self) -> Option<(usize, usize)> {
        Some(match self {
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::Mxfp4 => (32, 17),
            Self::Int8 | Self::Nf4 | Self::Fp8 { .. } | Self::Int4 { .. } | Self::Uint8 { .. } => return None,
        })
    }

    /// Numbers that are encoded together: the part of a row between multiples of this is a row of its own. `None` if all
    /// numbers of a row share a factor.
    pub fn group_len(self) -> Option<usize> {
        match self {
            Self::Int8 => None,
            Self::Nf4 => Some(64),
            Self::Fp8 { group } | Self::Int4 { group } | Self::Uint8 { group } => usize::try_from(group).ok(),
            blocks => blocks.block().map(|(len, _)| len),
        }
    }

    /// Bytes of a row of `width` numbers; `None` if such a row cannot be encoded.
    pub fn row_bytes(self, width: usize) -> Option<usize> {
        if let Some((len, bytes)) = self.block() {
            return (width / len).checked_mul(bytes).filter(|_| width.is_multiple_of(len));
        }
        let groups = |group: u32, header: usize, numbers: usize| {
            let group = usize::try_from(group).ok().filter(|group| *group > 0)?;
            width.div_ceil(group).checked_mul(header)?.checked_add(numbers)
        };
        match self {
            Self::Int8 => width.checked_add(4),
            Self::Nf4 => width.div_ceil(64).checked_mul(36),
            Self::Fp8 { group } => groups(group, 4, width),
            Self::Int4 { group } if group % 2 != 0 => None,
            Self::Int4 { group } => groups(group, 6, width.div_ceil(2)),
            Self::Uint8 { group } => groups(group, 6, width),
            _ => None,
        }
    }
}

/// A matrix in host memory, encoded row by row. Cloning shares the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedMatrix {
    encoding: RowEncoding,
    width: usize,
    data: Bytes,
}

/// Bytes that are not whole rows of a matrix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("take {n_bytes} bytes as rows of {width} numbers in the encoding {encoding:?}")]
pub struct PackedError {
    encoding: RowEncoding,
    width: usize,
    n_bytes: usize,
}

impl PackedMatrix {
    /// A matrix of rows of `width` numbers.
    ///
    /// # Errors
    /// [`PackedError`] if the bytes are not whole rows.
    pub fn new(encoding: RowEncoding, width: usize, data: Bytes) -> Result<Self, PackedError> {
        let fits = |row_bytes: usize| row_bytes > 0 && data.len().is_multiple_of(row_bytes);
        match encoding.row_bytes(width).is_some_and(fits) {
            true => Ok(Self { encoding, width, data }),
            false => Err(PackedError { encoding, width, n_bytes: data.len() }),
        }
    }

    /// Encoding of the rows.
    pub fn encoding(&self) -> RowEncoding {
        self.encoding
    }

    /// Numbers of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.encoding.row_bytes(self.width).map_or(0, |row_bytes| self.data.len() / row_bytes)
    }

    /// The rows.
    pub fn data(&self) -> &Bytes {
        &self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_the_sizes_of_their_encoding() {
        let sizes = [
            (RowEncoding::Bf16, 3, Some(6)),
            (RowEncoding::Q4K, 512, Some(288)),
            (RowEncoding::Q4K, 500, None),
            (RowEncoding::Q8_0, 64, Some(68)),
            (RowEncoding::Nf4, 65, Some(72)),
            (RowEncoding::Fp8 { group: 128 }, 130, Some(138)),
            (RowEncoding::Int4 { group: 128 }, 256, Some(140)),
            (RowEncoding::Int4 { group: 3 }, 6, None),
            (RowEncoding::Uint8 { group: 0 }, 6, None),
        ];
        for (encoding, width, expected) in sizes {
            assert_eq!(encoding.row_bytes(width), expected, "{encoding:?}");
        }
    }

    #[test]
    fn sizes_beyond_the_range_are_none() {
        let width = usize::MAX / 256 * 256;
        let encodings = [RowEncoding::F16, RowEncoding::Q8_0, RowEncoding::Q6K, RowEncoding::Mxfp4];
        let groups = [RowEncoding::Fp8 { group: 2 }, RowEncoding::Int4 { group: 2 }, RowEncoding::Uint8 { group: 1 }];
        for encoding in encodings.into_iter().chain(groups) {
            let rows = encoding.row_bytes(width);
            assert!(rows.is_none_or(|bytes| bytes >= width / 2), "{encoding:?}: {rows:?}");
        }
        assert_eq!(RowEncoding::Int8.row_bytes(usize::MAX), None);
    }

    #[test]
    fn new_of_partial_rows_fails() {
        let matrix = PackedMatrix::new(RowEncoding::Int8, 3, Bytes::from(vec![0; 14])).expect("two rows");
        assert_eq!((matrix.n_rows(), matrix.width()), (2, 3));
        assert!(PackedMatrix::new(RowEncoding::Int8, 3, Bytes::from(vec![0; 13])).is_err());
        assert!(PackedMatrix::new(RowEncoding::Q4K, 3, Bytes::new()).is_err());
    }
}
