//! The HF layout: `config.json` beside `model.safetensors`, or beside an index and its shards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::Metadata;
use sepal_core::ModelConfig;
use serde_json::{Map, Value};

use crate::config::model_config;
use crate::error::OpenError;
use crate::file::WeightsFile;
use crate::outline::{OUTLINE, Outline};
use crate::rows::Rows;
use crate::store::{Encoding, Store, Stored};

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The longest header that the format allows.
pub(crate) const MAX_HEADER: u64 = 100_000_000;

/// Whether the folder has weights in this layout.
pub(crate) fn has_weights(folder: &Path) -> bool {
    folder.join(SINGLE).is_file() || folder.join(INDEX).is_file()
}

/// Whether the weights are dealt out to shards.
pub(crate) fn is_sharded(folder: &Path) -> bool {
    !folder.join(SINGLE).is_file() && folder.join(INDEX).is_file()
}

/// Reads the configuration and the headers of all shards; `outline` has those of shards that are not here.
pub(crate) fn open(folder: &Path, outline: &Outline) -> Result<(ModelConfig, Store), OpenError> {
    let config_path = folder.join(CONFIG);
    let config = model_config(&config_path, &object(&config_path)?)?;
    let mut store = Store { files: Vec::new(), tensors: BTreeMap::new() };
    let single = folder.join(SINGLE);
    if single.is_file() {
        store.tensors.extend(shard(&mut store.files, &single, outline)?);
        return Ok((config, store));
    }
    if !folder.join(INDEX).is_file() {
        return Err(no_weights(folder));
    }
    for (path, names) in shards(folder)? {
        let mut tensors = shard(&mut store.files, &path, outline)?;
        for name in names {
            let stored = tensors.remove(&name);
            let stored = stored.ok_or_else(|| OpenError::NotInShard { path: path.clone(), name: name.clone() })?;
            store.tensors.insert(name, stored);
        }
    }
    Ok((config, store))
}

fn no_weights(folder: &Path) -> OpenError {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_pickled = |name: &String| {
        name.starts_with("pytorch_model") && [".bin", ".pt", ".pth"].iter().any(|ending| name.ends_with(ending))
    };
    let path = folder.to_owned();
    match names.filter(is_pickled).min() {
        Some(file) => OpenError::Pickled { path, file },
        None => {
            let problem =
                format!("it holds {CONFIG} but neither {SINGLE} nor {INDEX}; other formats of weights are not read");
            OpenError::Layout { path, problem }
        }
    }
}

/// The shards that the index names, each with its tensors.
pub(crate) fn shards(folder: &Path) -> Result<BTreeMap<PathBuf, Vec<String>>, OpenError> {
    let index = folder.join(INDEX);
    let json = object(&index)?;
    let wrong = |key: String, expected: &str, found: &Value| OpenError::WrongKey {
        path: index.clone(),
        key,
        expected: expected.to_owned(),
        found: found.to_string(),
    };
    let weight_map = json
        .get("weight_map")
        .ok_or_else(|| OpenError::MissingKey { path: index.clone(), key: "weight_map".to_owned() })?;
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
fn shard(files: &mut Vec<WeightsFile>, path: &Path, outline: &Outline) -> Result<BTreeMap<String, Stored>, OpenError> {
    let (file, metadata, start) = if path.is_file() { present(path)? } else { absent(path, outline)? };
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

/// A file that is here, its header, and where its data begins.
fn present(path: &Path) -> Result<(WeightsFile, Metadata, u64), OpenError> {
    let file = WeightsFile::open(path)?;
    let header = header(&file)?;
    let metadata = parse(&file, &header)?;
    let start = 8 + header.len() as u64;
    let expected = start + metadata.data_len() as u64;
    if expected != file.len() {
        return Err(OpenError::Length { path: path.to_owned(), expected, found: file.len() });
    }
    Ok((file, metadata, start))
}

/// The same of one that is not.
fn absent(path: &Path, outline: &Outline) -> Result<(WeightsFile, Metadata, u64), OpenError> {
    let no_outline = || OpenError::NoOutline { path: path.to_owned(), outline: OUTLINE };
    let header = outline.header(path).ok_or_else(no_outline)?;
    let head = [&(header.len() as u64).to_le_bytes(), header].concat();
    let start = head.len() as u64;
    let unknown = WeightsFile::absent(path, Vec::new(), 0);
    let metadata = parse(&unknown, header)?;
    let len = start + metadata.data_len() as u64;
    Ok((WeightsFile::absent(path, head, len), metadata, start))
}

/// The header as it stands in the file, without its length.
pub(crate) fn header(file: &WeightsFile) -> Result<Vec<u8>, OpenError> {
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
    Ok(bytes)
}

/// What a header says; its offsets are checked by the safetensors crate.
fn parse(file: &WeightsFile, header: &[u8]) -> Result<Metadata, OpenError> {
    serde_json::from_slice(header).map_err(|source| file.header(source))
}

/// A JSON file that holds an object.
fn object(path: &Path) -> Result<Map<String, Value>, OpenError> {
    let bytes = std::fs::read(path).map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| OpenError::Header { path: path.to_owned(), source: source.into() })
}
