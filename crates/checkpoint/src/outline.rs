//! The outline of a model: the headers of all weights files, and the bytes that enter the digest. With it a model can be
//! opened that has only some of its files, or only pieces of them.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use sepal_machine::durable;
use serde::{Deserialize, Serialize};

use crate::layout::file_name;

/// Name of the file in a folder in the HF layout.
pub(crate) const OUTLINE: &str = ".sepal-outline.json";

/// Version of the file's layout; files of other versions are ignored.
const VERSION: u32 = 2;

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outline {
    version: u32,
    shards: BTreeMap<String, Shard>,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Shard {
    /// Header as it is in the file, without its length; of a GGUF file all bytes before the tensors, in hexadecimal.
    header: String,
    /// Bytes that enter the digest or the configuration, in hexadecimal, by their offset in the file.
    probes: BTreeMap<u64, String>,
}

impl Outline {
    pub(crate) fn new() -> Self {
        Self { version: VERSION, shards: BTreeMap::new() }
    }

    /// Reads an outline; an empty one if there is none that can be read.
    pub(crate) fn read(path: &Path) -> Self {
        let read = || serde_json::from_slice::<Self>(&sepal_machine::regular::read(path).ok()?).ok();
        read().filter(|outline| outline.version == VERSION).unwrap_or_default()
    }

    pub(crate) fn header(&self, path: &Path) -> Option<&[u8]> {
        self.shards.get(&file_name(path)).map(|shard| shard.header.as_bytes())
    }

    /// The bytes of a GGUF file before its tensors.
    pub(crate) fn gguf_head(&self, path: &Path) -> Option<Vec<u8>> {
        hex::decode(self.header(path)?).ok()
    }

    /// Bytes of a file that enter the digest or the configuration, by their offset.
    pub(crate) fn known(&self, path: &Path) -> BTreeMap<u64, Vec<u8>> {
        let probes = self.shards.get(&file_name(path)).map(|shard| shard.probes.iter());
        probes.into_iter().flatten().filter_map(|(&offset, bytes)| Some((offset, hex::decode(bytes).ok()?))).collect()
    }

    pub(crate) fn insert_header(&mut self, path: &Path, header: String) {
        self.shards.insert(file_name(path), Shard { header, probes: BTreeMap::new() });
    }

    pub(crate) fn insert_probe(&mut self, shard: String, offset: u64, bytes: &[u8]) {
        self.shards.entry(shard).or_default().probes.insert(offset, hex::encode(bytes));
    }

    /// Writes the file completely or not at all, also if several processes do it.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        durable::write(path, &serde_json::to_vec(self)?)
    }
}
