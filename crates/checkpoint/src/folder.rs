//! Opening a folder in the HF layout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use sepal_core::ModelConfig;
use serde_json::{Map, Value};

use crate::config::check_weights;
use crate::error::OpenError;
use crate::families::{read_config, spec};
use crate::file::WeightsFile;
use crate::header::{FetchRanges, fetch_headers, parse_header, read_header};
use crate::layout::{CONFIG, INDEX, SINGLE, is_sharded, read_object, shards};
use crate::outline::{OUTLINE, Outline};
use crate::rows::Rows;
use crate::store::{Encoding, Store, Stored};

/// Reads the configuration and the headers of all shards; `outline` has the headers of missing shards.
pub(crate) fn open(folder: &Path, outline: &Outline) -> Result<(ModelConfig, Store), OpenError> {
    let file = ConfigFile::read(folder)?;
    let store = store(folder, outline)?;
    let tensors = store.tensors.iter().filter_map(|(name, stored)| match stored.encoding {
        Encoding::Plain(dtype) => Some((&**name, dtype)),
        Encoding::Ggml(_) => None,
    });
    file.check_weights(folder, tensors)?;
    file.check_sizes(&store)?;
    Ok((file.config, store))
}

/// Refuses a model before its weights are in `folder`, if [`Checkpoint::open`](crate::Checkpoint::open) would refuse it
/// afterwards: by its configuration and, for weights in one file, by the names and types of its tensors. For weights in
/// shards, [`write_outline`](crate::write_outline) checks the tensors. `fetch` reads the beginning of the file; if it fails,
/// only the configuration is checked.
///
/// # Errors
/// [`OpenError`] if the configuration cannot be read or is not supported, or the weights are quantized.
pub fn screen(folder: impl AsRef<Path>, fetch: &mut FetchRanges<'_>) -> Result<(), OpenError> {
    let (folder, single) = (folder.as_ref(), folder.as_ref().join(SINGLE));
    let file = ConfigFile::read(folder)?;
    if single.is_file() || is_sharded(folder) {
        return Ok(());
    }
    let header = fetch_headers(&[SINGLE.to_owned()], fetch).ok().and_then(|headers| headers.into_iter().next());
    let Some(metadata) = header.and_then(|header| serde_json::from_slice::<Metadata>(&header).ok()) else {
        return Ok(());
    };
    let tensors = metadata.tensors();
    file.check_weights(&single, tensors.iter().map(|(name, info)| (&**name, info.dtype)))
}

/// `config.json`, as JSON and as the model's shape.
struct ConfigFile {
    path: PathBuf,
    json: Map<String, Value>,
    config: ModelConfig,
}

impl ConfigFile {
    fn read(folder: &Path) -> Result<Self, OpenError> {
        let path = folder.join(CONFIG);
        let json = read_object(&path)?;
        let config = read_config(&path, &json)?;
        Ok(Self { path, json, config })
    }

    fn check_weights<'a>(&self, path: &Path, tensors: impl Iterator<Item = (&'a str, Dtype)>) -> Result<(), OpenError> {
        check_weights(path, (&self.path, &self.json), spec(self.config.family), tensors)
    }

    /// Refuses the default of a size that the file leaves out, if the weights have another size.
    fn check_sizes(&self, store: &Store) -> Result<(), OpenError> {
        let ModelConfig { family, n_blocks, hidden, vocab_size, .. } = self.config;
        let names = &spec(family).tensors;
        let has_block = |block_idx: usize| {
            let name = names.block_prefix(block_idx);
            let bare = name.strip_prefix(names.prefix).unwrap_or(&name);
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

    /// Error if a size is not in the file, under any of its names.
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

/// Opens one safetensors file and reads its header.
fn shard(files: &mut Vec<WeightsFile>, path: &Path, outline: &Outline) -> Result<BTreeMap<String, Stored>, OpenError> {
    let (file, metadata, start) = if path.is_file() { present(path)? } else { absent(path, outline)? };
    let stored = |info: &TensorInfo| {
        let ((begin, end), file, encoding) = (info.data_offsets, files.len(), Encoding::Plain(info.dtype));
        let (offset, len) = (start + begin as u64, (end - begin) as u64);
        Stored { file, encoding, shape: info.shape.clone(), offset, len, rows: Rows::Same }
    };
    let tensors = metadata.tensors().into_iter().map(|(name, info)| (name, stored(info))).collect();
    files.push(file);
    Ok(tensors)
}

/// A file in the folder, its header, and the offset of its data.
fn present(path: &Path) -> Result<(WeightsFile, Metadata, u64), OpenError> {
    let file = WeightsFile::open(path)?;
    let header = read_header(&file)?;
    let metadata = parse_header(&file, &header)?;
    let start = 8 + header.len() as u64;
    let expected = start + metadata.data_len() as u64;
    if expected != file.len() {
        return Err(OpenError::Length { path: path.to_owned(), expected, found: file.len() });
    }
    Ok((file, metadata, start))
}

/// A missing file, its header, and the offset of its data.
fn absent(path: &Path, outline: &Outline) -> Result<(WeightsFile, Metadata, u64), OpenError> {
    let no_outline = || OpenError::NoOutline { path: path.to_owned(), outline: OUTLINE };
    let header = outline.header(path).ok_or_else(no_outline)?;
    let head = [&(header.len() as u64).to_le_bytes(), header].concat();
    let start = head.len() as u64;
    let unknown = WeightsFile::absent(path, Vec::new(), 0);
    let metadata = parse_header(&unknown, header)?;
    let len = start + metadata.data_len() as u64;
    Ok((WeightsFile::absent(path, head, len), metadata, start))
}
