//! File names of the HF layout: `config.json` beside `model.safetensors`, or beside an index and its shards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::OpenError;

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// True if the folder has weights in this layout, or pieces of them are fetched into it.
pub(crate) fn has_weights(folder: &Path) -> bool {
    let has_pieces = || folder.join(format!("{SINGLE}.pieces")).is_dir();
    folder.join(SINGLE).is_file() || folder.join(INDEX).is_file() || has_pieces()
}

/// True if the weights are in shards.
pub(crate) fn is_sharded(folder: &Path) -> bool {
    !folder.join(SINGLE).is_file() && folder.join(INDEX).is_file()
}

/// The shards that the index lists, each with its tensors.
pub(crate) fn shards(folder: &Path) -> Result<BTreeMap<PathBuf, Vec<String>>, OpenError> {
    let index = folder.join(INDEX);
    let json = read_object(&index)?;
    let wrong = |key: String, expected: &str, found: &Value| {
        let (expected, found) = (expected.to_owned(), found.to_string());
        OpenError::WrongKey { path: index.clone(), key, expected, found }
    };
    let missing = || OpenError::MissingKey { path: index.clone(), key: "weight_map".to_owned() };
    let weight_map = json.get("weight_map").ok_or_else(missing)?;
    let entries = weight_map.as_object().ok_or_else(|| wrong("weight_map".to_owned(), "an object", weight_map))?;
    let mut shards: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    for (name, file) in entries {
        let plain = file.as_str().filter(|file| Path::new(file).file_name().is_some_and(|name| name == *file));
        let file = plain.ok_or_else(|| wrong(format!("weight_map.{name}"), "the name of a file beside it", file))?;
        shards.entry(folder.join(file)).or_default().push(name.clone());
    }
    Ok(shards)
}

/// Reads a JSON file that holds an object.
pub(crate) fn read_object(path: &Path) -> Result<Map<String, Value>, OpenError> {
    let bytes = sepal_machine::regular::read(path).map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| OpenError::Header { path: path.to_owned(), source: source.into() })
}

/// The last part of a path.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
