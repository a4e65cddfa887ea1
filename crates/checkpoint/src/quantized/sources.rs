use std::ops::Range;

use bytes::Bytes;
use safetensors::Dtype;
use sepal_core::HostTensor;

use crate::error::{BoxError, ReadError};
use crate::file::WeightsFile;
use crate::mxfp4::power_of_two;
use crate::store::{Encoding, Stored};

/// Number of bytes of rows that are read at a time.
const CHUNK: usize = 1 << 22;

/// Reader of the tensors of one quantized layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sources<'a> {
    pub(super) files: &'a [WeightsFile],
    /// Name of the layer's weight, for errors.
    pub(super) name: &'a str,
}

impl Sources<'_> {
    /// Reads bytes of a tensor.
    pub(super) fn bytes(&self, stored: &Stored, range: Range<usize>) -> Result<Vec<u8>, ReadError> {
        self.files[stored.file].read_tensor(self.name, stored.offset + range.start as u64, range.len())
    }

    /// Reads all bytes of a tensor.
    pub(super) fn all_bytes(&self, stored: &Stored) -> Result<Vec<u8>, ReadError> {
        self.bytes(stored, 0..stored.len as usize)
    }

    /// Error unless all zero points of a layer are 0, as those of symmetric schemes are.
    pub(super) fn require_zeros(&self, zero_points: Option<&Stored>) -> Result<(), ReadError> {
        let Some(stored) = zero_points else { return Ok(()) };
        if self.all_bytes(stored)?.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let problem = "its `weight_zero_point` is not 0, as that of a symmetric scheme is; use the original checkpoint";
        Err(self.decode(stored, problem))
    }

    /// Reads rows of `width` bytes of a tensor, some at a time, and passes each to `encode` with its index.
    pub(super) fn for_each_row(
        &self,
        stored: &Stored,
        width: usize,
        rows: Range<usize>,
        mut encode: impl FnMut(usize, &[u8]),
    ) -> Result<(), ReadError> {
        let chunk_rows = (CHUNK / width).max(1);
        for start in rows.clone().step_by(chunk_rows) {
            let chunk = start..rows.end.min(start + chunk_rows);
            let bytes = self.bytes(stored, chunk.start * width..chunk.end * width)?;
            chunk.zip(bytes.chunks_exact(width)).for_each(|(row, bytes)| encode(row, bytes));
        }
        Ok(())
    }

    /// Reads a tensor of 32-bit words. They are little-endian; use [`u32::from_le`].
    pub(super) fn words(&self, stored: &Stored) -> Result<Vec<u32>, ReadError> {
        self.files[stored.file].read_tensor(self.name, stored.offset, stored.len as usize / size_of::<u32>())
    }

    /// Reads all numbers of a float tensor.
    pub(super) fn floats(&self, stored: &Stored) -> Result<Vec<f32>, ReadError> {
        let bytes = self.all_bytes(stored)?;
        if stored.encoding == Encoding::Plain(Dtype::F8_E8M0) {
            return Ok(bytes.into_iter().map(power_of_two).collect());
        }
        let unsupported = || self.decode(stored, format!("its factors are of {}", stored.encoding.name()));
        let dtype = stored.encoding.dtype().ok_or_else(unsupported)?;
        let count = stored.shape.iter().product();
        let tensor = HostTensor::new(dtype, vec![count], Bytes::from(bytes));
        Ok(tensor.map_err(|source| self.decode(stored, source))?.to_f32())
    }

    /// Error of a tensor with an invalid content.
    pub(super) fn decode(&self, stored: &Stored, source: impl Into<BoxError>) -> ReadError {
        let path = self.files[stored.file].path().to_owned();
        ReadError::Decode { name: self.name.to_owned(), path, source: source.into() }
    }
}
