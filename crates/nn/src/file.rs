//! Safetensors files of host tensors: atomic writes with deterministic bytes.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use sepal_core::{DType, HostTensor, NamedHostTensor, ShapeError};
use sepal_machine::durable::PendingFile;
use serde::Serialize;

/// Failed write. The previous file stays.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum WriteError {
    /// The tensors do not form a safetensors file.
    #[error("lay out {path}")]
    Layout { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    /// A file operation failed.
    #[error("write {path}")]
    Io { path: PathBuf, source: io::Error },
    /// A tensor of a file that is written tensor by tensor is not available.
    #[error("write {path}")]
    Tensor { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
}

/// Name, number format and shape of a tensor that is written later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorLayout {
    /// Name in the file.
    pub name: String,
    /// Number format.
    pub dtype: DType,
    /// Dimensions.
    pub shape: Vec<usize>,
}

impl TensorLayout {
    /// Size of the numbers in bytes; `None` on overflow.
    pub fn n_bytes(&self) -> Option<usize> {
        let numel = self.shape.iter().try_fold(1_usize, |numel, &dim| numel.checked_mul(dim))?;
        self.dtype.n_bytes(numel)
    }
}

/// Unreadable file.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum ReadError {
    /// A file operation failed.
    #[error("read {path}")]
    Io { path: PathBuf, source: io::Error },
    /// The file is damaged, truncated, or of another format.
    #[error("read {path}: it is not a complete safetensors file")]
    Format { path: PathBuf, source: SafeTensorError },
    /// The dtype is not supported.
    #[error("read `{name}` of {path}: its dtype is {dtype}, expected F32, F16 or BF16")]
    DType { path: PathBuf, name: String, dtype: String },
    /// The bytes do not fit the shape.
    #[error("read {path}")]
    Shape { path: PathBuf, source: ShapeError },
}

/// Tensors of a file, in the order of their bytes, and its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Contents {
    /// Tensors of the file.
    pub tensors: Vec<NamedHostTensor>,
    /// Metadata of the file.
    pub metadata: BTreeMap<String, String>,
}

/// Writes `tensors` in their order and the sorted `metadata` to `path`, by a synced temporary file in the same folder.
///
/// # Errors
/// [`WriteError`] if a name occurs twice or the write fails; `path` is untouched then.
pub fn write(path: &Path, tensors: &[NamedHostTensor], metadata: &BTreeMap<String, String>) -> Result<(), WriteError> {
    let layout = |NamedHostTensor { name, tensor }: &NamedHostTensor| TensorLayout {
        name: name.clone(),
        dtype: tensor.dtype(),
        shape: tensor.shape().to_vec(),
    };
    let layouts: Vec<TensorLayout> = tensors.iter().map(layout).collect();
    let mut tensors = tensors.iter();
    // Layouts and tensors have the same number and order.
    write_streaming(path, &layouts, metadata, |layout| match tensors.next() {
        Some(named) => Ok(named.tensor.clone()),
        None => Err(format!("`{}` is missing", layout.name).into()),
    })
}

/// As [`write()`], with one tensor in memory at a time: `tensor` returns that of each layout, in order.
///
/// # Errors
/// [`WriteError`] as for [`write()`], or if `tensor` fails or returns another number format or shape; `path` is untouched
/// then.
pub fn write_streaming(
    path: &Path,
    layouts: &[TensorLayout],
    metadata: &BTreeMap<String, String>,
    mut tensor: impl FnMut(&TensorLayout) -> Result<HostTensor, Box<dyn std::error::Error + Send + Sync>>,
) -> Result<(), WriteError> {
    let header = header(layouts, metadata).map_err(|source| WriteError::Layout { path: path.into(), source })?;
    let mut failure = None;
    let written = write_atomically(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for layout in layouts {
            match tensor(layout).and_then(|tensor| fitting(layout, tensor)) {
                Ok(tensor) => file.write_all(tensor.data())?,
                Err(source) => {
                    failure = Some(source);
                    return Err(io::Error::other("a tensor is not available"));
                }
            }
        }
        Ok(())
    });
    match (written, failure) {
        (_, Some(source)) => Err(WriteError::Tensor { path: path.into(), source }),
        (Err(source), None) => Err(WriteError::Io { path: path.into(), source }),
        (Ok(()), None) => Ok(()),
    }
}

/// Returns the tensor if it has the format and shape that the header states.
fn fitting(layout: &TensorLayout, tensor: HostTensor) -> Result<HostTensor, Box<dyn std::error::Error + Send + Sync>> {
    if tensor.dtype() == layout.dtype && tensor.shape() == layout.shape {
        return Ok(tensor);
    }
    let TensorLayout { name, dtype, shape } = layout;
    Err(format!("`{name}` is {tensor:?}, and the header says {dtype} {shape:?}").into())
}

/// Reads the whole file.
///
/// # Errors
/// [`ReadError`] if the file is missing, truncated or damaged, or holds other than float tensors.
pub fn read(path: &Path) -> Result<Contents, ReadError> {
    let bytes = sepal_machine::regular::read(path)
        .map(Bytes::from)
        .map_err(|source| ReadError::Io { path: path.into(), source })?;
    let format = |source| ReadError::Format { path: path.into(), source };
    let (header_len, header) = SafeTensors::read_metadata(&bytes).map_err(format)?;
    let data = bytes.slice(size_of::<u64>() + header_len..);
    let tensors = header
        .offset_keys()
        .into_iter()
        .filter_map(|name| header.info(&name).map(|info| (name, info)))
        .map(|(name, info)| tensor(path, name, info, &data))
        .collect::<Result<_, _>>()?;
    let metadata = header.metadata().iter().flatten().map(|(key, text)| (key.clone(), text.clone())).collect();
    Ok(Contents { tensors, metadata })
}

fn tensor(path: &Path, name: String, info: &TensorInfo, data: &Bytes) -> Result<NamedHostTensor, ReadError> {
    let dtype = match info.dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::Bf16,
        other => return Err(ReadError::DType { path: path.into(), name, dtype: format!("{other:?}") }),
    };
    let (start, end) = info.data_offsets;
    HostTensor::new(dtype, info.shape.clone(), data.slice(start..end))
        .map(|tensor| NamedHostTensor { name, tensor })
        .map_err(|source| ReadError::Shape { path: path.into(), source })
}

/// The header of the `safetensors` crate keeps metadata in a hash map, whose order is not deterministic.
#[derive(Serialize)]
struct Header<'a> {
    #[serde(rename = "__metadata__", skip_serializing_if = "BTreeMap::is_empty")]
    metadata: &'a BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: Metadata,
}

fn header(
    layouts: &[TensorLayout],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let mut end = 0;
    let mut names = HashSet::new();
    let mut infos: Vec<(String, TensorInfo)> = Vec::with_capacity(layouts.len());
    for layout in layouts {
        let TensorLayout { name, dtype, shape } = layout;
        if !names.insert(name) {
            return Err(format!("two tensors are named `{name}`").into());
        }
        let start = end;
        end += layout.n_bytes().ok_or_else(|| format!("`{name}` of shape {shape:?} is too large"))?;
        let dtype = match dtype {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::Bf16 => Dtype::BF16,
            DType::Q8 => return Err(format!("`{name}` is q8, which is for the wire alone").into()),
        };
        infos.push((name.clone(), TensorInfo { dtype, shape: shape.clone(), data_offsets: (start, end) }));
    }
    let mut header = serde_json::to_vec(&Header { metadata, tensors: Metadata::new(None, infos)? })?;
    header.resize(header.len().next_multiple_of(size_of::<u64>()), b' ');
    Ok(header)
}

/// Fills a file that gets the name `path` when it is complete.
fn write_atomically(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut pending = PendingFile::create(path)?;
    let mut buffered = io::BufWriter::new(&mut pending);
    fill(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    pending.publish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, shape: &[usize], first: f32) -> NamedHostTensor {
        let numbers: Vec<f32> = (0..shape.iter().product()).map(|i| first + i as f32).collect();
        let tensor = HostTensor::from_f32(shape.to_vec(), &numbers).expect("fits");
        NamedHostTensor { name: name.to_owned(), tensor }
    }

    fn some_metadata() -> BTreeMap<String, String> {
        (0..20).map(|i| (format!("key{i}"), format!("\"text\" {i}"))).collect()
    }

    #[test]
    fn round_trip_in_order_with_equal_bytes() {
        let folder = tempfile::tempdir().expect("a folder");
        let tensors = [named("zeta", &[2, 3], 0.5), named("alpha", &[4], -1.0), named("empty", &[0, 2], 0.0)];
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        write(&one, &tensors, &some_metadata()).expect("written");
        write(&two, &tensors, &some_metadata()).expect("written");
        let contents = read(&one).expect("read");
        assert_eq!(contents.metadata, some_metadata());
        let mut expected = tensors.to_vec();
        let mut found = contents.tensors;
        expected.sort_by(|a, b| a.name.cmp(&b.name));
        found.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(found, expected);
        assert_eq!(std::fs::read(&one).expect("bytes"), std::fs::read(&two).expect("bytes"));
    }

    #[test]
    fn safetensors_crate_reads_written_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        write(&path, &[named("b", &[3], 0.0), named("a", &[1, 2], 9.0)], &BTreeMap::new()).expect("written");
        let bytes = std::fs::read(&path).expect("bytes");
        let parsed = SafeTensors::deserialize(&bytes).expect("parsed");
        assert_eq!(parsed.tensor("a").expect("there").shape(), [1, 2]);
        assert_eq!(parsed.tensor("a").expect("there").data(), &*named("a", &[1, 2], 9.0).tensor.data().clone());
    }

    #[test]
    fn failed_write_keeps_previous_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        write(&path, &[named("a", &[1], 0.0)], &BTreeMap::new()).expect("written");
        let before = std::fs::read(&path).expect("bytes");
        let error = write(&path, &[named("a", &[1], 0.0), named("a", &[2], 0.0)], &BTreeMap::new());
        assert!(matches!(error, Err(WriteError::Layout { .. })));
        let NamedHostTensor { name, tensor } = named("a", &[1], 0.0);
        let error = write(&path, &[NamedHostTensor { name, tensor: tensor.to_q8() }], &BTreeMap::new());
        assert!(matches!(error, Err(WriteError::Layout { .. })), "q8 is for the wire alone");
        let full = write_atomically(&path, |_| Err(io::Error::new(io::ErrorKind::StorageFull, "no room")));
        assert_eq!(full.expect_err("must fail").kind(), io::ErrorKind::StorageFull);
        assert_eq!(std::fs::read(&path).expect("bytes"), before);
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "a temporary file is left");
    }

    #[test]
    fn streaming_writes_the_same_bytes() {
        let folder = tempfile::tempdir().expect("a folder");
        let (plain, streamed) = (folder.path().join("plain"), folder.path().join("streamed"));
        let tensors = [named("b", &[2, 3], 0.5), named("a", &[4], -1.0)];
        write(&plain, &tensors, &some_metadata()).expect("written");
        let layout = |name: &str, shape: &[usize]| TensorLayout {
            name: name.to_owned(),
            dtype: DType::F32,
            shape: shape.to_vec(),
        };
        let layouts = [layout("b", &[2, 3]), layout("a", &[4])];
        let find = |layout: &TensorLayout| {
            let found = tensors.iter().find(|named| named.name == layout.name);
            Ok(found.expect("known").tensor.clone())
        };
        write_streaming(&streamed, &layouts, &some_metadata(), find).expect("written");
        let before = std::fs::read(&plain).expect("bytes");
        assert_eq!(std::fs::read(&streamed).expect("bytes"), before);

        for wrong in [[layout("b", &[2, 3]), layout("a", &[2, 2])], [layout("b", &[3, 2]), layout("a", &[4])]] {
            let error = write_streaming(&plain, &wrong, &BTreeMap::new(), find).expect_err("another shape");
            assert!(matches!(error, WriteError::Tensor { .. }), "{error:?}");
        }
        let error = write_streaming(&plain, &layouts, &BTreeMap::new(), |_| Err("gone".into())).expect_err("no tensor");
        assert!(sepal_core::in_one_line(&error).ends_with("gone"), "{error:?}");
        assert_eq!(std::fs::read(&plain).expect("bytes"), before);
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 2, "no temporary file is left");
    }

    #[test]
    fn truncated_file_is_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        write(&path, &[named("a", &[8], 0.0)], &BTreeMap::new()).expect("written");
        let bytes = std::fs::read(&path).expect("bytes");
        for len in [0, 4, 20, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..len]).expect("cut");
            assert!(matches!(read(&path), Err(ReadError::Format { .. })), "{len} bytes were taken for a file");
        }
        assert!(matches!(read(&folder.path().join("none")), Err(ReadError::Io { .. })));
    }
}
