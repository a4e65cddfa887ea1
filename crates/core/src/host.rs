use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The number formats that tensors have on the wire and in checkpoints once read.
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
}

impl DType {
    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }

    /// The name as it is written in a pipeline file: `f32`, `f16`, `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [DType::F32, DType::F16, DType::Bf16]
            .into_iter()
            .find(|dtype| dtype.name() == text)
            .ok_or_else(|| format!("`{text}` is not a dtype; write f32, f16 or bf16"))
    }
}

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
    /// [`ShapeError`] if the bytes are not as many as shape and dtype say.
    pub fn new(dtype: DType, shape: Vec<usize>, data: Bytes) -> Result<Self, ShapeError> {
        let expected = shape
            .iter()
            .try_fold(dtype.size(), |bytes, &dim| bytes.checked_mul(dim))
            .ok_or_else(|| ShapeError { dtype, shape: shape.clone(), expected: usize::MAX, found: data.len() })?;
        if expected == data.len() {
            Ok(Self { dtype, shape, data })
        } else {
            Err(ShapeError { dtype, shape, expected, found: data.len() })
        }
    }

    /// A tensor of these fp32 numbers.
    ///
    /// # Errors
    /// [`ShapeError`] if they are not as many as the shape says.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Result<Self, ShapeError> {
        Self::new(DType::F32, shape, Bytes::copy_from_slice(bytemuck::cast_slice(values)))
    }

    /// The numbers as fp32, whatever the dtype.
    pub fn to_f32(&self) -> Vec<f32> {
        let halves = || self.data.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
        match self.dtype {
            DType::F32 => {
                self.data.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect()
            }
            DType::F16 => halves().map(|pair| half::f16::from_le_bytes(pair).to_f32()).collect(),
            DType::Bf16 => halves().map(|pair| half::bf16::from_le_bytes(pair).to_f32()).collect(),
        }
    }

    /// The number format.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes, row-major, little-endian.
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

/// A byte count that does not fit a shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {dtype} tensor of shape {shape:?} has {expected} bytes, found {found}")]
pub struct ShapeError {
    /// The number format.
    pub dtype: DType,
    /// The dimensions.
    pub shape: Vec<usize>,
    /// Bytes that it should have.
    pub expected: usize,
    /// Bytes that it has.
    pub found: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_must_fit_the_shape() {
        assert!(HostTensor::from_f32(vec![2, 3], &[0.0; 6]).is_ok());
        assert!(HostTensor::from_f32(vec![2, 3], &[0.0; 5]).is_err());
        assert!(HostTensor::new(DType::F16, vec![usize::MAX, 3], Bytes::new()).is_err());
    }

    #[test]
    fn halves_widen() {
        let one = half::bf16::from_f32(1.5).to_le_bytes();
        let tensor = HostTensor::new(DType::Bf16, vec![1], Bytes::copy_from_slice(&one)).expect("fits");
        assert_eq!(tensor.to_f32(), [1.5]);
    }
}
