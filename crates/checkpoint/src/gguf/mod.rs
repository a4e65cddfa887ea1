//! GGUF files, read with candle: metadata, location of the tensors, and vocabulary.

mod config;
mod names;
mod vocab;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};
use sepal_core::ModelConfig;
use sepal_tokenize::GgufVocab;
use serde_json::{Map, Number};

use crate::error::OpenError;
use crate::file::WeightsFile;
use crate::keys::Keys;
use crate::rows::Rows;
use crate::store::{Encoding, Store, Stored};

/// Longest list of a configuration. Longer lists are vocabularies.
const LONGEST_LIST: usize = 4096;

/// Reads the metadata and checks that every tensor lies within the file.
pub(crate) fn open(path: &Path) -> Result<(ModelConfig, Store), OpenError> {
    let file = WeightsFile::open(path)?;
    if is_big_endian(&file) {
        return Err(OpenError::BigEndian { path: path.to_owned() });
    }
    let content = content(&file)?;
    let metadata = scalars(&content.metadata);
    let keys = Keys::new(path, &metadata);
    // Joined files state 0 parts.
    if keys.optional_index("split.count")?.is_some_and(|count| count > 1) {
        let join = "a model in one file; join the parts: `llama-gguf-split --merge FIRST-PART.gguf JOINED.gguf`";
        return Err(keys.unsupported("split.count", join));
    }
    let mut store = Store { tensors: tensors(&file, &content)?, files: vec![file] };
    let model = config::read_model(keys, &store)?;
    store.tensors = names::to_hf(path, &model, store.tensors)?;
    Ok((model.config, store))
}

/// The vocabulary inside the file.
pub(crate) fn vocab(file: &WeightsFile) -> Result<GgufVocab, OpenError> {
    vocab::vocab(file.path(), &content(file)?.metadata)
}

/// True if the version after the magic number, or both, are big-endian. Versions are small numbers.
fn is_big_endian(file: &WeightsFile) -> bool {
    let mut start = [0; 8];
    if file.len() < 8 || file.read_at(0, &mut start).is_err() {
        return false;
    }
    let (magic, version) = start.split_at(4);
    magic == b"FUGG" || (magic == b"GGUF" && version[..2] == [0, 0] && version[3] != 0)
}

fn content(file: &WeightsFile) -> Result<Content, OpenError> {
    Content::read(&mut file.reader()).map_err(|source| file.header(source))
}

/// Location of the tensors, by the names of the file.
fn tensors(file: &WeightsFile, content: &Content) -> Result<BTreeMap<String, Stored>, OpenError> {
    let mut tensors = BTreeMap::new();
    for (name, info) in &content.tensor_infos {
        let stored = locate(content.tensor_data_offset, info)
            .ok_or_else(|| file.header(format!("the size of tensor `{name}` is invalid")))?;
        tensors.insert(name.clone(), stored);
    }
    let end = tensors.values().map(|stored| stored.offset + stored.len).max().unwrap_or(0);
    if end > file.len() {
        return Err(OpenError::Length { path: file.path().to_owned(), expected: end, found: file.len() });
    }
    Ok(tensors)
}

fn locate(data: u64, info: &TensorInfo) -> Option<Stored> {
    let shape = info.shape.dims().to_vec();
    let count = shape.iter().try_fold(1_usize, |count, &dim| count.checked_mul(dim))?;
    let (block_len, block_size) = (info.ggml_dtype.block_size(), info.ggml_dtype.type_size());
    let whole_rows = shape.last().is_none_or(|width| width.is_multiple_of(block_len));
    let len = u64::try_from((count / block_len).checked_mul(block_size)?).ok()?;
    let offset = data.checked_add(info.offset)?;
    offset.checked_add(len)?;
    let encoding = Encoding::Ggml(info.ggml_dtype);
    whole_rows.then_some(Stored { file: 0, encoding, shape, offset, len, rows: Rows::Same })
}

/// The metadata without the vocabulary, as a configuration.
fn scalars(metadata: &HashMap<String, Value>) -> Map<String, serde_json::Value> {
    metadata.iter().filter_map(|(key, value)| Some((key.clone(), scalar(value)?))).collect()
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
