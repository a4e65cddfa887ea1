//! GGUF files, read with candle: metadata, location of the tensors, and vocabulary.

mod config;
mod heads;
mod names;
mod parse;
mod parts;
mod vocab;

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};
use sepal_core::ModelConfig;
use sepal_tokenize::GgufVocab;
use serde_json::{Map, Number};

use crate::error::OpenError;
use crate::file::WeightsFile;
use crate::keys::Keys;
use crate::layout::file_name;
use crate::model_path::ModelPath;
use crate::outline::Outline;
use crate::rows::Rows;
use crate::store::{Encoding, Store, Stored};

use self::parse::parse;
pub(crate) use heads::insert_heads;
pub(crate) use parts::PartName;

/// Longest list of a configuration. Longer lists are vocabularies.
const LONGEST_LIST: usize = 4096;

/// Reads the metadata and checks that every tensor lies within its file. `path` is the first file of a model in parts;
/// `outline` describes missing files.
pub(crate) fn open(path: &Path, outline: &Outline) -> Result<(ModelConfig, Store), OpenError> {
    let first = GgufFile::open(path, outline)?;
    let metadata = first.scalars();
    let keys = Keys::new(path, &metadata);
    let mut store = parts::join(first, keys, outline)?;
    store.check_size(path)?;
    let model = config::read_model(keys, &store)?;
    store.tensors = names::to_hf(path, &model, store.tensors)?;
    Ok((model.config, store))
}

/// The vocabulary inside the file.
pub(crate) fn vocab(file: &WeightsFile) -> Result<GgufVocab, OpenError> {
    vocab::vocab(file.path(), &content(file)?.metadata)
}

/// A file with its metadata.
struct GgufFile {
    file: WeightsFile,
    metadata: HashMap<String, Value>,
    /// Location of the tensors, by the names of the file.
    tensors: BTreeMap<String, Stored>,
    /// Offset of the first tensor's bytes, or the length of a file without tensors.
    data_offset: u64,
}

impl GgufFile {
    /// Opens a file, or its description in `outline` if it is missing.
    fn open(path: &Path, outline: &Outline) -> Result<Self, OpenError> {
        if path.is_file() {
            return Self::present(path);
        }
        match outline.gguf_head(path) {
            Some(head) => Self::outlined(path, head, outline.known(path)),
            None if PartName::parse(path).is_some() => {
                let outline = file_name(&ModelPath::Gguf(PartName::first(path)).outline());
                Err(OpenError::NoOutline { path: path.to_owned(), outline })
            }
            // Reports that it is missing.
            None => Self::present(path),
        }
    }

    fn present(path: &Path) -> Result<Self, OpenError> {
        let file = WeightsFile::open(path)?;
        let mut start = [0; 8];
        if file.len() >= 8 && file.read_at(0, &mut start).is_ok() && is_big_endian(&start) {
            return Err(OpenError::BigEndian { path: path.to_owned() });
        }
        let content = content(&file)?;
        let tensors = tensors(&file, &content)?;
        let expected = end(&tensors);
        if expected > file.len() {
            return Err(OpenError::Length { path: path.to_owned(), expected, found: file.len() });
        }
        Ok(Self { data_offset: content.tensor_data_offset.min(file.len()), metadata: content.metadata, file, tensors })
    }

    /// A missing file with these bytes before the tensors.
    fn outlined(path: &Path, head: Vec<u8>, known: BTreeMap<u64, Vec<u8>>) -> Result<Self, OpenError> {
        let unknown = WeightsFile::absent(path, Vec::new(), 0, BTreeMap::new());
        let content = parse(&mut Cursor::new(&head)).map_err(|source| unknown.header(source))?;
        let tensors = tensors(&unknown, &content)?;
        let len = end(&tensors).max(head.len() as u64);
        let file = WeightsFile::absent(path, head, len, known);
        Ok(Self { data_offset: content.tensor_data_offset, metadata: content.metadata, file, tensors })
    }

    /// The metadata without the vocabulary, as a configuration.
    fn scalars(&self) -> Map<String, serde_json::Value> {
        self.metadata.iter().filter_map(|(key, value)| Some((key.clone(), scalar(value)?))).collect()
    }

    /// The bytes before the tensors.
    fn head(&self) -> Result<Vec<u8>, OpenError> {
        let mut head = vec![0; self.data_offset as usize];
        self.file.read_at(0, &mut head).map_err(|source| self.file.io(source))?;
        Ok(head)
    }
}

/// True if the version after the magic number, or both, are big-endian. Versions are small numbers.
fn is_big_endian(start: &[u8]) -> bool {
    match start {
        [b'F', b'U', b'G', b'G', ..] => true,
        [b'G', b'G', b'U', b'F', 0, 0, _, last, ..] => *last != 0,
        _ => false,
    }
}

fn content(file: &WeightsFile) -> Result<Content, OpenError> {
    parse(&mut file.reader()).map_err(|source| file.header(source))
}

/// Location of the tensors, by the names of the file.
fn tensors(file: &WeightsFile, content: &Content) -> Result<BTreeMap<String, Stored>, OpenError> {
    let mut tensors = BTreeMap::new();
    for (name, info) in &content.tensor_infos {
        let stored = locate(content.tensor_data_offset, info)
            .ok_or_else(|| file.header(format!("the size of tensor `{name}` is invalid")))?;
        tensors.insert(name.clone(), stored);
    }
    Ok(tensors)
}

/// Offset of the byte after the last tensor.
fn end(tensors: &BTreeMap<String, Stored>) -> u64 {
    tensors.values().map(|stored| stored.offset + stored.len).max().unwrap_or(0)
}

/// Location of a tensor; `None` if its size is invalid. No tensor is empty.
fn locate(data: u64, info: &TensorInfo) -> Option<Stored> {
    let shape = info.shape.dims().to_vec();
    if shape.contains(&0) {
        return None;
    }
    let count = shape.iter().try_fold(1_usize, |count, &dim| count.checked_mul(dim))?;
    let (block_len, block_size) = (info.ggml_dtype.block_size(), info.ggml_dtype.type_size());
    let whole_rows = shape.last().is_none_or(|width| width.is_multiple_of(block_len));
    let len = u64::try_from((count / block_len).checked_mul(block_size)?).ok()?;
    let offset = data.checked_add(info.offset)?;
    offset.checked_add(len)?;
    let encoding = Encoding::Ggml(info.ggml_dtype);
    whole_rows.then_some(Stored { file: 0, encoding, shape, offset, len, rows: Rows::Same })
}

fn scalar(value: &Value) -> Option<serde_json::Value> {
    let float = |number: f64| Number::from_f64(number).map(serde_json::Value::Number);
    Some(match value {
        Value::U8(number) => (*number).into(),
        Value::I8(number) => (*number).into(),
        Value::U16(number) => (*number).into(),
        Value::I16(number) => (*number).into(),
        Value::U32(number) => (*number).into(),
        Value::I32(number) => (*number).into(),
        Value::U64(number) => (*number).into(),
        Value::I64(number) => (*number).into(),
        // Through the decimal text, so that 1e-5 as f32 becomes 1e-5.
        Value::F32(number) => float(number.to_string().parse().ok()?)?,
        Value::F64(number) => float(*number)?,
        Value::Bool(flag) => (*flag).into(),
        Value::String(text) => text.clone().into(),
        Value::Array(values) if values.len() <= LONGEST_LIST => values.iter().map(scalar).collect::<Option<_>>()?,
        Value::Array(_) => return None,
    })
}
