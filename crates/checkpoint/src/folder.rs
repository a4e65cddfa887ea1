//! The HF layout: `config.json` beside `model.safetensors`, or beside an index and its shards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::Metadata;
use sepal_core::ModelConfig;
use serde_json::{Map, Value};

use crate::config::model_config;
use crate::error::OpenError;
use crate::file::WeightsFile;
use crate::rows::Rows;
use crate::store::{Encoding, Store, Stored};

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;

/// Whether the folder has weights in this layout.
pub(crate) fn has_weights(folder: &Path) -> bool {
    folder.join(SINGLE).is_file() || folder.join(INDEX).is_file()
}

/// Reads the configuration and the headers of all shards.
pub(crate) fn open(folder: &Path) -> Result<(ModelConfig, Store), OpenError> {
    let config_path = folder.join(CONFIG);
    let config = model_config(&config_path, &object(&config_path)?)?;
    let mut store = Store { files: Vec::new(), tensors: BTreeMap::new() };
    let single = folder.join(SINGLE);
    if single.is_file() {
        store.tensors.extend(shard(&mut store.files, &single)?);
        return Ok((config, store));
    }
    let index = folder.join(INDEX);
    if !index.is_file() {
        let problem =
            format!("it holds {CONFIG} but neither {SINGLE} nor {INDEX}; other formats of weights are not read");
        return Err(OpenError::Layout { path: folder.to_owned(), problem });
    }
    for (path, names) in shards(folder, &index)? {
        let mut tensors = shard(&mut store.files, &path)?;
        for name in names {
            let stored = tensors.remove(&name);
            let stored = stored.ok_or_else(|| OpenError::NotInShard { path: path.clone(), name: name.clone() })?;
            store.tensors.insert(name, stored);
        }
    }
    Ok((config, store))
}

/// The shards that the index names, each with its tensors.
fn shards(folder: &Path, index: &Path) -> Result<BTreeMap<PathBuf, Vec<String>>, OpenError> {
    let json = object(index)?;
    let wrong = |key: String, expected: &str, found: &Value| OpenError::WrongKey {
        path: index.to_owned(),
        key,
        expected: expected.to_owned(),
        found: found.to_string(),
    };
    let weight_map = json
        .get("weight_map")
        .ok_or_else(|| OpenError::MissingKey { path: index.to_owned(), key: "weight_map".to_owned() })?;
    let entries = weight_map.as_object().ok_or_else(|| wrong("weight_map".to_owned(), "an object", weight_map))?;
    let mut shards: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    for (name, file) in entries {
        let plain = file.as_str().filter(|file| Path::new(file).file_name().is_some_and(|name| name == *file));
        let file = plain.ok_or_else(|| wrong(format!("weight_map.{name}"), "the name of a file beside it", file))?;
        shards.entry(folder.join(file)).or_default().push(name.clone());
    }
    Ok(shards)
}

/// Opens one safetensors file and reads its header.
fn shard(files: &mut Vec<WeightsFile>, path: &Path) -> Result<BTreeMap<String, Stored>, OpenError> {
    let file = WeightsFile::open(path)?;
    let (start, metadata) = header(&file)?;
    let expected = start + metadata.data_len() as u64;
    if expected != file.len() {
        return Err(OpenError::Length { path: path.to_owned(), expected, found: file.len() });
    }
    let stored = |info: &safetensors::tensor::TensorInfo| Stored {
        file: files.len(),
        encoding: Encoding::Plain(info.dtype),
        shape: info.shape.clone(),
        offset: start + info.data_offsets.0 as u64,
        len: (info.data_offsets.1 - info.data_offsets.0) as u64,
        rows: Rows::Same,
    };
    let tensors = metadata.tensors().into_iter().map(|(name, info)| (name, stored(info))).collect();
    files.push(file);
    Ok(tensors)
}

/// The header, whose offsets the safetensors crate has checked, and where the data begins.
fn header(file: &WeightsFile) -> Result<(u64, Metadata), OpenError> {
    let truncated = |expected| OpenError::Length { path: file.path().to_owned(), expected, found: file.len() };
    if file.len() < 8 {
        return Err(truncated(8));
    }
    let mut length = [0; 8];
    file.read_at(0, &mut length).map_err(|source| file.io(source))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(file.header(format!("a header of {length} bytes is longer than the format allows")));
    }
    if 8 + length > file.len() {
        return Err(truncated(8 + length));
    }
    let mut bytes = vec![0; length as usize];
    file.read_at(8, &mut bytes).map_err(|source| file.io(source))?;
    let metadata = serde_json::from_slice(&bytes).map_err(|source| file.header(source))?;
    Ok((8 + length, metadata))
}

/// A JSON file that holds an object.
fn object(path: &Path) -> Result<Map<String, Value>, OpenError> {
    let bytes = std::fs::read(path).map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| OpenError::Header { path: path.to_owned(), source: source.into() })
}
