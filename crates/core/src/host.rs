use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::q8;

/// Number format of a tensor on the wire and, except for [`DType::Q8`], of a tensor read from a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum DType {
    /// IEEE 754 binary32.
    #[default]
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// Eight bits per number and a scale for each block of 64 numbers: 1.0625 bytes per number. The error is at most a
    /// 254th of the largest number of the block. A format of the wire only: no file has it.
    Q8,
}

impl DType {
    /// All formats.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Q8];

    /// Size of `numel` numbers in bytes; `None` on overflow.
    pub fn n_bytes(self, numel: usize) -> Option<usize> {
        match self {
            DType::F32 => numel.checked_mul(4),
            DType::F16 | DType::Bf16 => numel.checked_mul(2),
            DType::Q8 => q8::n_bytes(numel),
        }
    }

    /// Format of tunables and of gradients of parameters if hidden states have the format `self`: bf16 for q8. Optimizers
    /// treat each number separately, and q8 rounds numbers to zero that are small compared with their neighbours.
    #[must_use]
    pub fn for_parameters(self) -> Self {
        match self {
            DType::Q8 => DType::Bf16,
            plain => plain,
        }
    }

    /// Written name: `f32`, `f16`, `bf16` or `q8`.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::Q8 => "q8",
        }
    }
}

text_by_name!(DType, "a dtype; write f32, f16, bf16 or q8");

/// A tensor in host memory: row-major, little-endian. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct HostTensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Bytes,
}

impl HostTensor {
    /// A tensor of these bytes.
    ///
    /// # Errors
    /// [`ShapeError`] if the number of bytes does not fit shape and dtype.
    pub fn new(dtype: DType, shape: Vec<usize>, data: Bytes) -> Result<Self, ShapeError> {
        Self::check_bytes(dtype, &shape, data.len())?;
        Ok(Self { dtype, shape, data })
    }

    /// Checks that a tensor of this shape has `found` bytes.
    ///
    /// # Errors
    /// [`ShapeError`] if it has another number of bytes.
    pub fn check_bytes(dtype: DType, shape: &[usize], found: usize) -> Result<(), ShapeError> {
        let numel = shape.iter().try_fold(1_usize, |numel, &dim| numel.checked_mul(dim));
        let expected = numel.and_then(|numel| dtype.n_bytes(numel)).unwrap_or(usize::MAX);
        if expected == found {
            return Ok(());
        }
        Err(ShapeError { dtype, shape: shape.to_vec(), expected, found })
    }

    /// A tensor of these fp32 numbers.
    ///
    /// # Errors
    /// [`ShapeError`] if the count does not fit the shape.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Result<Self, ShapeError> {
        Self::new(DType::F32, shape, Bytes::copy_from_slice(bytemuck::cast_slice(values)))
    }

    /// Converts the numbers to fp32.
    pub fn to_f32(&self) -> Vec<f32> {
        let halves = || self.data.as_chunks::<2>().0.iter();
        match self.dtype {
            DType::F32 => self.data.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
            DType::F16 => halves().map(|pair| half::f16::from_le_bytes(*pair).to_f32()).collect(),
            DType::Bf16 => halves().map(|pair| half::bf16::from_le_bytes(*pair).to_f32()).collect(),
            DType::Q8 => q8::decode(&self.data),
        }
    }

    /// The part `range` along the first dimension, without a copy. `None` if it is out of bounds or divides a block of q8
    /// numbers.
    pub fn rows(&self, range: Range<usize>) -> Option<Self> {
        let n = *self.shape.first()?;
        let row: usize = self.shape[1..].iter().product();
        let start = self.dtype.n_bytes(range.start * row)?;
        let end = self.dtype.n_bytes(range.end * row)?;
        if range.start > range.end || range.end > n || (self.dtype == DType::Q8 && !row.is_multiple_of(q8::BLOCK)) {
            return None;
        }
        let mut shape = self.shape.clone();
        shape[0] = range.len();
        Some(Self { dtype: self.dtype, shape, data: self.data.slice(start..end) })
    }

    /// Concatenation with `other` along the first dimension. `None` if the shapes or formats differ, or if a row divides a
    /// block of q8 numbers.
    pub fn followed_by(&self, other: &Self) -> Option<Self> {
        let row: usize = self.shape.get(1..)?.iter().product();
        let fits = self.dtype == other.dtype && self.shape.get(1..) == other.shape.get(1..);
        if !fits || (self.dtype == DType::Q8 && !row.is_multiple_of(q8::BLOCK)) {
            return None;
        }
        let mut shape = self.shape.clone();
        shape[0] += other.shape.first()?;
        Some(Self { dtype: self.dtype, shape, data: [&self.data[..], &other.data[..]].concat().into() })
    }

    /// Converts the numbers to [`DType::Q8`]. A block with a non-finite number becomes NaN.
    #[must_use]
    pub fn to_q8(&self) -> Self {
        let data = match self.dtype {
            DType::F32 => q8::encode(&self.data).into(),
            DType::F16 | DType::Bf16 => q8::encode(bytemuck::cast_slice(&self.to_f32())).into(),
            DType::Q8 => self.data.clone(),
        };
        Self { dtype: DType::Q8, shape: self.shape.clone(), data }
    }

    /// True if all numbers are finite.
    pub fn is_finite(&self) -> bool {
        let exponent = |mask: u16| move |pair: &[u8; 2]| u16::from_le_bytes(*pair) & mask != mask;
        let halves = || self.data.as_chunks::<2>().0.iter();
        match self.dtype {
            DType::F32 => self.data.as_chunks::<4>().0.iter().all(|four| f32::from_le_bytes(*four).is_finite()),
            DType::F16 => halves().all(exponent(0x7c00)),
            DType::Bf16 => halves().all(exponent(0x7f80)),
            DType::Q8 => q8::is_finite(&self.data),
        }
    }

    /// Largest absolute value; 0 of a tensor without numbers. Numbers that are not finite may be left out.
    pub fn max_abs(&self) -> f32 {
        let largest = |largest: f32, number: f32| largest.max(number.abs());
        match self.dtype {
            DType::F32 => self.data.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).fold(0.0, largest),
            DType::F16 | DType::Bf16 | DType::Q8 => self.to_f32().into_iter().fold(0.0, largest),
        }
    }

    /// Number format.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Bytes, row-major and little-endian.
    pub fn data(&self) -> &Bytes {
        &self.data
    }
}

impl fmt::Debug for HostTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostTensor({} {:?})", self.dtype, self.shape)
    }
}

/// A tensor with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedHostTensor {
    /// For example `deep_prompts`.
    pub name: String,
    /// The numbers.
    pub tensor: HostTensor,
}

/// Error of a number of bytes that does not fit a shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("a {dtype} tensor of shape {shape:?} has {expected} bytes, found {found}")]
pub struct ShapeError {
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub expected: usize,
    pub found: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_checks_the_number_of_bytes() {
        assert!(HostTensor::from_f32(vec![2, 3], &[0.0; 6]).is_ok());
        assert!(HostTensor::from_f32(vec![2, 3], &[0.0; 5]).is_err());
        assert!(HostTensor::new(DType::F16, vec![usize::MAX, 3], Bytes::new()).is_err());
        // Two blocks: 64 numbers and 26.
        assert!(HostTensor::new(DType::Q8, vec![9, 10], vec![0; 98].into()).is_ok());
        assert!(HostTensor::new(DType::Q8, vec![9, 10], vec![0; 90].into()).is_err());
    }

    #[test]
    fn to_f32_widens_bf16() {
        let one = half::bf16::from_f32(1.5).to_le_bytes();
        let tensor = HostTensor::new(DType::Bf16, vec![1], Bytes::copy_from_slice(&one)).expect("fits");
        assert_eq!(tensor.to_f32(), [1.5]);
    }

    #[test]
    fn max_abs_is_that_of_every_dtype() {
        let tensor = HostTensor::from_f32(vec![1, 32], &[[0.5; 31].as_slice(), &[-2.0]].concat()).expect("a tensor");
        assert_eq!((tensor.max_abs(), tensor.to_q8().max_abs()), (2.0, 2.0));
        let halves = HostTensor::new(DType::Bf16, vec![2], vec![0x80, 0x3f, 0x40, 0xc0].into()).expect("a tensor");
        assert_eq!(halves.max_abs(), 3.0);
        assert_eq!(HostTensor::from_f32(vec![0], &[]).expect("a tensor").max_abs(), 0.0);
    }

    #[test]
    fn is_finite_holds_in_every_dtype() {
        for dtype in DType::ALL {
            let tensor = |value: f32| {
                let numbers = [1.0, value];
                let data = match dtype {
                    DType::F16 => numbers.map(|number| half::f16::from_f32(number).to_le_bytes()).concat(),
                    DType::Bf16 => numbers.map(|number| half::bf16::from_f32(number).to_le_bytes()).concat(),
                    DType::F32 => numbers.map(f32::to_le_bytes).concat(),
                    DType::Q8 => return HostTensor::from_f32(vec![2], &numbers).expect("fits").to_q8(),
                };
                HostTensor::new(dtype, vec![2], data.into()).expect("fits")
            };
            assert!(tensor(-60_000.0).is_finite());
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert!(!tensor(value).is_finite(), "{value} as {dtype}");
                assert!(!tensor(value).to_q8().is_finite(), "{value} as {dtype}");
            }
        }
    }
}
