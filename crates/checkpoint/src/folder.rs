//! The HF layout: `config.json` beside `model.safetensors`, or beside an index and its shards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata};
use sepal_core::ModelConfig;
use serde_json::{Map, Value};

use crate::config::{check_weights, model_config};
use crate::error::OpenError;
use crate::file::WeightsFile;
use crate::outline::{Elsewhere, OUTLINE, Outline, headers};
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
    let file = ConfigFile::read(folder)?;
    let store = store(folder, outline)?;
    file.check_weights(folder, store.tensors.iter().filter_map(|(name, stored)| Some((&**name, stored.dtype()?))))?;
    file.check_sizes(&store)?;
    Ok((file.config, store))
}

/// Refuses a model before its weights are in `folder`, where [`Checkpoint::open`](crate::Checkpoint::open) would refuse it
/// once they are there: by its configuration and, of weights in one file, by the names and types of its tensors. Of weights
/// in shards [`outline`](crate::outline) does the latter. `elsewhere` shows the beginning of the file; where it cannot, the
/// configuration alone is looked at.
///
/// # Errors
/// [`OpenError`] if the configuration cannot be read or is not supported, or the weights are quantized.
pub fn screen(folder: impl AsRef<Path>, elsewhere: &mut Elsewhere<'_>) -> Result<(), OpenError> {
    let (folder, single) = (folder.as_ref(), folder.as_ref().join(SINGLE));
    let file = ConfigFile::read(folder)?;
    if single.is_file() || is_sharded(folder) {
        return Ok(());
    }
    let header = headers(&[SINGLE.to_owned()], elsewhere).ok().and_then(|headers| headers.into_iter().next());
    let Some(metadata) = header.and_then(|header| serde_json::from_slice::<Metadata>(&header).ok()) else {
        return Ok(());
    };
    let tensors = metadata.tensors();
    file.check_weights(&single, tensors.iter().map(|(name, info)| (&**name, info.dtype)))
}

/// `config.json`, as it was written and as it was understood.
struct ConfigFile {
    path: PathBuf,
    json: Map<String, Value>,
    config: ModelConfig,
}

impl ConfigFile {
    fn read(folder: &Path) -> Result<Self, OpenError> {
        let path = folder.join(CONFIG);
        let json = object(&path)?;
        let config = model_config(&path, &json)?;
        Ok(Self { path, json, config })
    }

    fn check_weights<'a>(&self, path: &Path, tensors: impl Iterator<Item = (&'a str, Dtype)>) -> Result<(), OpenError> {
        check_weights(path, (&self.path, &self.json), self.config.family, tensors)
    }

    /// Refuses the class's default for a size that the file leaves out, if the weights are of another size.
    fn check_sizes(&self, store: &Store) -> Result<(), OpenError> {
        let ModelConfig { family, n_blocks, hidden, vocab_size, .. } = self.config;
        let has_block = |block_idx: usize| {
            let name = family.block_prefix(block_idx);
            let bare = name.strip_prefix(family.prefix()).unwrap_or(&name);
            store.tensors.keys().any(|tensor| tensor.starts_with(&name) || tensor.starts_with(bare))
        };
        if has_block(0) && (!has_block(n_blocks - 1) || has_block(n_blocks)) {
            self.stated(&["num_hidden_layers", "n_layer"])?;
        }
        let ends = ["embed_tokens.weight", "word_embeddings.weight", "wte.weight", "embed_in.weight"];
        let is_embedding = |name: &&String| ends.iter().any(|end| name.ends_with(end));
        let embedding = store.tensors.keys().find(is_embedding).map(|name| store.tensors[name].shape.as_slice());
        if let Some([rows, width]) = embedding {
            if *width != hidden {
                self.stated(&["hidden_size", "n_embd", "n_embed"])?;
            }
            if *rows != vocab_size {
                self.stated(&["vocab_size"])?;
            }
        }
        Ok(())
    }

    /// Errors if a size is not in the file, under any of its names.
    fn stated(&self, names: &[&str]) -> Result<(), OpenError> {
        if names.iter().any(|name| self.json.contains_key(*name)) {
            return Ok(());
        }
        Err(OpenError::MissingKey { path: self.path.clone(), key: names[0].to_owned() })
    }
}

/// The tensors of all shards.
fn store(folder: &Path, outline: &Outline) -> Result<Store, OpenError> {
    let mut store = Store { files: Vec::new(), tensors: BTreeMap::new() };
    let single = folder.join(SINGLE);
    if single.is_file() {
        store.tensors.extend(shard(&mut store.files, &single, outline)?);
        return Ok(store);
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
    Ok(store)
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
