//! Location and decoding of tensors, common to both formats.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Error as CandleError};
use safetensors::Dtype;
use sepal_core::{DType, HostTensor};

use crate::error::{BoxError, ReadError};
use crate::file::WeightsFile;
use crate::rows::Rows;

/// Number of values of a quantized tensor that are dequantized at a time, which bounds the memory beside the result.
const CHUNK: usize = 1 << 22;

/// The tensors of a checkpoint by their names in the HF layout.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) files: Vec<WeightsFile>,
    pub(crate) tensors: BTreeMap<String, Stored>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    /// Index into [`Store::files`].
    pub(crate) file: usize,
    pub(crate) encoding: Encoding,
    pub(crate) shape: Vec<usize>,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) rows: Rows,
}

/// Stored number type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Encoding {
    /// Type of safetensors, read without conversion.
    Plain(Dtype),
    /// Type of GGUF, dequantized to fp32.
    Ggml(GgmlDType),
}

impl Encoding {
    /// Number format of a tensor that is read; `None` if the type is not supported.
    pub(crate) fn dtype(self) -> Option<DType> {
        match self {
            Encoding::Plain(Dtype::F32) => Some(DType::F32),
            Encoding::Plain(Dtype::F16) => Some(DType::F16),
            Encoding::Plain(Dtype::BF16) => Some(DType::Bf16),
            Encoding::Plain(_) | Encoding::Ggml(GgmlDType::Q8_1 | GgmlDType::Q8K) => None,
            Encoding::Ggml(_) => Some(DType::F32),
        }
    }

    /// Usual name of the type.
    pub(crate) fn name(self) -> String {
        match self {
            Encoding::Plain(dtype) => dtype.to_string(),
            Encoding::Ggml(dtype) => match dtype {
                GgmlDType::Q2K => "Q2_K".into(),
                GgmlDType::Q3K => "Q3_K".into(),
                GgmlDType::Q4K => "Q4_K".into(),
                GgmlDType::Q5K => "Q5_K".into(),
                GgmlDType::Q6K => "Q6_K".into(),
                GgmlDType::Q8K => "Q8_K".into(),
                other => format!("{other:?}"),
            },
        }
    }
}

impl Store {
    pub(crate) fn read(&self, name: &str, stored: &Stored) -> Result<HostTensor, ReadError> {
        let read = Read { name, stored, file: &self.files[stored.file] };
        if !read.file.is_present() {
            return Err(ReadError::MissingShard { name: name.to_owned(), path: read.path().to_owned() });
        }
        let dtype = stored.encoding.dtype().ok_or_else(|| read.unsupported())?;
        match stored.encoding {
            Encoding::Plain(_) => read.plain(dtype),
            Encoding::Ggml(GgmlDType::F32) if stored.rows == Rows::Same => read.plain(dtype),
            Encoding::Ggml(quantized) => read.dequantized(quantized),
        }
    }

    /// Names of the tensors' types, the one with the most bytes first.
    pub(crate) fn encodings(&self) -> Vec<String> {
        let mut bytes: BTreeMap<String, u64> = BTreeMap::new();
        for stored in self.tensors.values() {
            *bytes.entry(stored.encoding.name()).or_default() += stored.len;
        }
        let mut names: Vec<(String, u64)> = bytes.into_iter().collect();
        names.sort_by(|(_, first), (_, second)| second.cmp(first));
        names.into_iter().map(|(name, _)| name).collect()
    }
}

struct Read<'a> {
    name: &'a str,
    stored: &'a Stored,
    file: &'a WeightsFile,
}

impl Read<'_> {
    /// Reads the stored bytes.
    fn plain(&self, dtype: DType) -> Result<HostTensor, ReadError> {
        let mut bytes = vec![0; self.stored.len as usize];
        self.file.read_at(self.stored.offset, &mut bytes).map_err(|source| self.io(source))?;
        self.host(dtype, Bytes::from(bytes))
    }

    /// Reads the numbers as fp32, with rows in the model's order.
    fn dequantized(&self, dtype: GgmlDType) -> Result<HostTensor, ReadError> {
        let values = self.dequantize(dtype)?;
        let values = self.stored.rows.restore(values, &self.stored.shape).map_err(|source| self.decode(source))?;
        self.host(DType::F32, Bytes::from_owner(Numbers(values)))
    }

    fn dequantize(&self, dtype: GgmlDType) -> Result<Vec<f32>, ReadError> {
        let (block_len, block_size) = (dtype.block_size(), dtype.type_size());
        let n_blocks = self.stored.len as usize / block_size;
        let mut values = Vec::with_capacity(n_blocks * block_len);
        // Words are aligned: candle casts the bytes to its block structures.
        let mut words: Vec<u64> = Vec::new();
        for start in (0..n_blocks).step_by(CHUNK / block_len) {
            let blocks = (n_blocks - start).min(CHUNK / block_len);
            words.resize((blocks * block_size).div_ceil(8), 0);
            let bytes = &mut bytemuck::cast_slice_mut(&mut words)[..blocks * block_size];
            let offset = self.stored.offset + (start * block_size) as u64;
            self.file.read_at(offset, bytes).map_err(|source| self.io(source))?;
            values.extend(dequantize_blocks(dtype, bytes, blocks * block_len).map_err(|source| self.decode(source))?);
        }
        Ok(values)
    }

    fn host(&self, dtype: DType, data: Bytes) -> Result<HostTensor, ReadError> {
        HostTensor::new(dtype, self.stored.shape.clone(), data).map_err(|source| self.decode(source))
    }

    fn unsupported(&self) -> ReadError {
        let dtype = self.stored.encoding.name();
        ReadError::DType { name: self.name.to_owned(), path: self.path().to_owned(), dtype }
    }

    fn io(&self, source: std::io::Error) -> ReadError {
        ReadError::Io { name: self.name.to_owned(), path: self.path().to_owned(), source }
    }

    fn decode(&self, source: impl Into<BoxError>) -> ReadError {
        ReadError::Decode { name: self.name.to_owned(), path: self.path().to_owned(), source: source.into() }
    }

    fn path(&self) -> &Path {
        self.file.path()
    }
}

fn dequantize_blocks(dtype: GgmlDType, blocks: &[u8], n_values: usize) -> Result<Vec<f32>, CandleError> {
    let storage = QStorage::from_data(Cow::Borrowed(blocks), &Device::Cpu, dtype)?;
    QTensor::new(storage, n_values)?.dequantize(&Device::Cpu)?.to_vec1()
}

/// Numbers that expose their bytes.
struct Numbers(Vec<f32>);

impl AsRef<[u8]> for Numbers {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use safetensors::SafeTensors;

    use super::*;

    #[test]
    fn every_type_is_dequantized_as_by_the_gguf_package() {
        use GgmlDType::*;
        let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../testkit/goldens/quants.safetensors"));
        let file = std::fs::read(path).expect("the goldens");
        let goldens = SafeTensors::deserialize(&file).expect("safetensors");
        let types = [F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K];
        let names = "F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K";
        for (name, dtype) in names.split(' ').zip(types) {
            let bytes = goldens.tensor(&format!("{name}.bytes")).expect("bytes");
            let values = goldens.tensor(&format!("{name}.values")).expect("values");
            let number = |four: &[u8]| f32::from_le_bytes(four.try_into().expect("four bytes"));
            let expected: Vec<f32> = values.data().chunks_exact(4).map(number).collect();
            // Aligned words, as in `dequantize`.
            let mut words = vec![0_u64; bytes.data().len().div_ceil(8)];
            let blocks = &mut bytemuck::cast_slice_mut(&mut words)[..bytes.data().len()];
            blocks.copy_from_slice(bytes.data());
            let found = dequantize_blocks(dtype, blocks, expected.len()).expect("dequantized");
            assert_eq!(Encoding::Ggml(dtype).name(), name);
            for (found, expected) in found.iter().zip(&expected) {
                let error = (found - expected).abs();
                assert!(error <= 1e-6 * expected.abs().max(1e-3), "{name}: {found} for {expected}");
            }
        }
    }
}
