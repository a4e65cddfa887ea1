//! Location and decoding of tensors, common to both formats.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use safetensors::Dtype;
use sepal_core::{DType, HostTensor, PackedMatrix, RowEncoding};

use crate::error::{BoxError, OpenError, ReadError};
use crate::file::WeightsFile;
use crate::gguf::NumberType;
use crate::quantized::{Kind, Layer};
use crate::rows::Rows;

/// Number of values of a quantized tensor that are dequantized at a time, which bounds the memory beside the result.
const CHUNK: usize = 1 << 22;

/// The most numbers of a checkpoint: far above those of any model, and so few that sums of their bytes do not overflow.
const MAX_NUMBERS: usize = 1 << 48;

/// The tensors of a checkpoint by their names in the HF layout.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) files: Vec<WeightsFile>,
    pub(crate) tensors: BTreeMap<String, Stored>,
    /// Layers of single experts, which are parts of [`Store::tensors`].
    pub(crate) experts: BTreeMap<String, Stored>,
    /// Quantized layers of safetensors.
    pub(crate) layers: Vec<Layer>,
}

/// Place and type of a tensor. Of a quantized layer, they are those of the tensor with most of its bytes.
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

impl Stored {
    /// Its bytes; those of factors in another tensor are left out.
    pub(crate) fn extent(&self) -> Extent {
        Extent { file: self.file, offset: self.offset, len: self.len }
    }
}

/// Bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Index into [`Store::files`].
    pub(crate) file: usize,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// Stored number type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Encoding {
    /// Type of safetensors, read without conversion.
    Plain(Dtype),
    /// Type of GGUF, dequantized to fp32.
    Gguf(NumberType),
    /// MXFP4, dequantized to bf16. The factors are in another tensor.
    Mxfp4 {
        /// Index into [`Store::files`].
        scales_file: usize,
        scales_offset: u64,
    },
    /// Quantized layer of safetensors, dequantized to fp32: an index into [`Store::layers`].
    Quantized { kind: Kind, layer: usize },
}

impl Encoding {
    /// Number format of a tensor that is read; `None` if the type is not supported.
    pub(crate) fn dtype(self) -> Option<DType> {
        match self {
            Encoding::Plain(Dtype::F32) => Some(DType::F32),
            Encoding::Plain(Dtype::F16) => Some(DType::F16),
            Encoding::Plain(Dtype::BF16) | Encoding::Mxfp4 { .. } => Some(DType::Bf16),
            Encoding::Plain(_) => None,
            Encoding::Gguf(number_type) => number_type.is_read().then_some(DType::F32),
            Encoding::Quantized { .. } => Some(DType::F32),
        }
    }

    /// Encoding of rows as they are stored; `None` for fp32 and types that are not supported.
    pub(crate) fn of_rows(self) -> Option<RowEncoding> {
        match self {
            Encoding::Plain(Dtype::F16) => Some(RowEncoding::F16),
            Encoding::Plain(Dtype::BF16) => Some(RowEncoding::Bf16),
            Encoding::Gguf(number_type) => number_type.row_encoding(),
            Encoding::Plain(_) | Encoding::Mxfp4 { .. } | Encoding::Quantized { .. } => None,
        }
    }

    /// Usual name of the type.
    pub(crate) fn name(self) -> String {
        match self {
            Encoding::Plain(dtype) => dtype.to_string(),
            Encoding::Mxfp4 { .. } => "MXFP4".into(),
            Encoding::Gguf(number_type) => number_type.name().to_owned(),
            Encoding::Quantized { kind, .. } => kind.name(),
        }
    }
}

impl Store {
    /// The tensor `name`, also of a single expert.
    pub(crate) fn get(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name).or_else(|| self.experts.get(name))
    }

    /// Refuses the headers of files at `path` that describe more than [`MAX_NUMBERS`]. The file of an outline need not be
    /// there, so that its length bounds nothing.
    pub(crate) fn check_size(&self, path: &Path) -> Result<(), OpenError> {
        let of_tensor = |stored: &Stored| {
            // Products of some of the dimensions must not overflow either.
            stored.shape.iter().try_fold(1_usize, |numbers, &dim| numbers.checked_mul(dim.max(1)))
        };
        let mut counts = self.tensors.values().map(of_tensor);
        let sum = counts.try_fold(0_usize, |sum, numbers| sum.checked_add(numbers?).filter(|sum| *sum <= MAX_NUMBERS));
        let problem =
            || format!("its tensors have more than {MAX_NUMBERS} numbers, which no model has; fetch it again");
        sum.map(drop).ok_or_else(|| OpenError::Layout { path: path.to_owned(), problem: problem() })
    }

    pub(crate) fn read(&self, name: &str, stored: &Stored) -> Result<HostTensor, ReadError> {
        let read = Read { name, stored, file: &self.files[stored.file] };
        self.require_files(name, stored)?;
        let dtype = stored.encoding.dtype().ok_or_else(|| read.unsupported())?;
        match (stored.encoding, dtype) {
            (Encoding::Plain(_), _) if stored.rows == Rows::Same => read.plain(dtype),
            (Encoding::Plain(_), DType::F32) => read.selected::<u32>(dtype),
            (Encoding::Plain(_), _) => read.selected::<u16>(dtype),
            (Encoding::Gguf(number_type), _) if number_type.is_f32() && stored.rows == Rows::Same => read.plain(dtype),
            (Encoding::Gguf(number_type), _) => read.dequantized(number_type),
            (Encoding::Mxfp4 { .. }, _) => self.read_mxfp4(name, stored),
            (Encoding::Quantized { .. }, _) => self.dequantized(name, stored),
        }
    }

    /// Error of a tensor whose type is not read.
    pub(crate) fn unsupported(&self, name: &str, stored: &Stored) -> ReadError {
        Read { name, stored, file: &self.files[stored.file] }.unsupported()
    }

    /// Error if some bytes of the tensor are not there.
    pub(crate) fn require_files(&self, name: &str, stored: &Stored) -> Result<(), ReadError> {
        let mut sources = self.sources_of(stored).into_iter();
        sources.try_for_each(|Extent { file, offset, len }| self.files[file].require(name, offset, len))
    }

    /// Reads a matrix as it is stored, with its rows in the order of the model and a row for each output. `None` if it is not
    /// stored so: matrices of all experts, and rows of the model that are stored columns.
    pub(crate) fn packed(&self, name: &str, stored: &Stored) -> Result<Option<PackedMatrix>, ReadError> {
        if let (Encoding::Mxfp4 { .. }, [_, _]) = (stored.encoding, &stored.shape[..]) {
            self.require_files(name, stored)?;
            return self.packed_mxfp4(name, stored).map(Some);
        }
        let Some(encoding) = stored.encoding.of_rows() else { return self.packed_rows(name, stored) };
        let [n_rows, width] = match (&stored.shape[..], stored.rows) {
            (_, Rows::OneMore | Rows::Every { .. } | Rows::Columns { .. }) => return Ok(None),
            (&[width, n_rows], Rows::Transposed) => [n_rows, width],
            (&[n_rows, width], _) => [n_rows, width],
            _ => return Ok(None),
        };
        self.require_files(name, stored)?;
        let read = Read { name, stored, file: &self.files[stored.file] };
        let bytes = stored.rows.reordered(read.bytes()?, n_rows).map_err(|source| read.decode(source))?;
        PackedMatrix::new(encoding, width, Bytes::from(bytes)).map(Some).map_err(|source| read.decode(source))
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
        self.host(dtype, Bytes::from(self.bytes()?))
    }

    fn bytes(&self) -> Result<Vec<u8>, ReadError> {
        self.file.read_tensor(self.name, self.stored.offset, self.stored.len as usize)
    }

    /// Reads the rows or columns of the model, of numbers as large as `T`.
    fn selected<T: bytemuck::Pod>(&self, dtype: DType) -> Result<HostTensor, ReadError> {
        let count = self.stored.len as usize / size_of::<T>();
        let numbers: Vec<T> = self.file.read_tensor(self.name, self.stored.offset, count)?;
        let numbers = self.stored.rows.select(&numbers, &self.stored.shape);
        self.host(dtype, Bytes::copy_from_slice(bytemuck::cast_slice(&numbers)))
    }

    /// Reads the numbers as fp32, with rows in the model's order.
    fn dequantized(&self, number_type: NumberType) -> Result<HostTensor, ReadError> {
        let values = self.dequantize(number_type)?;
        let values = self.stored.rows.restore(values, &self.stored.shape).map_err(|source| self.decode(source))?;
        self.host(DType::F32, Bytes::from_owner(Numbers(values)))
    }

    fn dequantize(&self, number_type: NumberType) -> Result<Vec<f32>, ReadError> {
        let (block_len, block_bytes) = (number_type.block_len(), number_type.block_bytes());
        let (n_blocks, step) = (self.stored.len as usize / block_bytes, CHUNK / block_len);
        let (mut values, mut bytes) = (Vec::with_capacity(n_blocks * block_len), Vec::new());
        for start in (0..n_blocks).step_by(step) {
            bytes.resize((n_blocks - start).min(step) * block_bytes, 0);
            let offset = self.stored.offset + (start * block_bytes) as u64;
            self.file.read_at(offset, &mut bytes).map_err(|source| self.file.read_error(self.name, source))?;
            number_type.widen(&bytes, &mut values);
        }
        Ok(values)
    }

    fn host(&self, dtype: DType, data: Bytes) -> Result<HostTensor, ReadError> {
        HostTensor::new(dtype, self.stored.shape.clone(), data).map_err(|source| self.decode(source))
    }

    fn unsupported(&self) -> ReadError {
        let (name, path, dtype) = (self.name.to_owned(), self.path().to_owned(), self.stored.encoding.name());
        match self.stored.encoding {
            Encoding::Gguf(_) => ReadError::BlockType { name, path, dtype, supported: NumberType::read_names() },
            _ => ReadError::DType { name, path, dtype },
        }
    }

    fn decode(&self, source: impl Into<BoxError>) -> ReadError {
        ReadError::Decode { name: self.name.to_owned(), path: self.path().to_owned(), source: source.into() }
    }

    fn path(&self) -> &Path {
        self.file.path()
    }
}

/// Numbers that expose their bytes.
pub(crate) struct Numbers(pub(crate) Vec<f32>);

impl AsRef<[u8]> for Numbers {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}
