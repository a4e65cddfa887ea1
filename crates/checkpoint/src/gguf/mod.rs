//! GGUF files, read through candle: metadata, where the tensors lie, and the vocabulary.

mod config;
mod names;
mod vocab;

use std::collections::{BTreeMap, HashMap};

use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};
use sepal_core::ModelConfig;
use sepal_tokenize::GgufVocab;
use serde_json::Map;

use crate::error::OpenError;
use crate::file::WeightsFile;
use crate::keys::Keys;
use crate::store::{Encoding, Store, Stored};

/// Arrays longer than this are vocabularies and have no place in a configuration.
const LONGEST_LIST: usize = 4096;

/// Reads the metadata and checks that every tensor lies within the file.
pub(crate) fn open(file: WeightsFile) -> Result<(ModelConfig, Store), OpenError> {
    let content = content(&file)?;
    let metadata = scalars(&content.metadata);
    let keys = Keys::new(file.path(), &metadata);
    if keys.optional_count("split.count")?.is_some_and(|count| count > 1) {
        return Err(keys.unsupported("split.count", "one file"));
    }
    let architecture = config::architecture(keys)?;
    let mut stored = BTreeMap::new();
    for (name, info) in &content.tensor_infos {
        stored.insert(name.clone(), locate(&file, content.tensor_data_offset, info)?);
    }
    complete(&file, &stored)?;
    let (store, config) = config::with_tensors(keys, architecture, file, stored, tokens(&content.metadata))?;
    Ok((config, store))
}

/// The vocabulary inside the file.
pub(crate) fn vocab(file: &WeightsFile) -> Result<GgufVocab, OpenError> {
    vocab::vocab(file.path(), content(file)?.metadata)
}

fn content(file: &WeightsFile) -> Result<Content, OpenError> {
    Content::read(&mut file.reader()).map_err(|source| file.header(source))
}
