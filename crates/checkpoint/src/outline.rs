//! The outline of a model in shards: the headers of all shards, and the bytes that enter the digest. With it a model can
//! be opened that has only some of its shards.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::layout::file_name;

/// Name of the file in a model's folder.
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
    /// Header as it is in the file, without its length.
    header: String,
    /// Bytes that enter the digest, in hexadecimal, by their offset in the file.
    probes: BTreeMap<u64, String>,
}

impl Outline {
    pub(crate) fn new() -> Self {
        Self { version: VERSION, shards: BTreeMap::new() }
    }

    /// Reads the outline of a folder; an empty one if there is none that can be read.
    pub(crate) fn read(folder: &Path) -> Self {
        let read = || serde_json::from_slice::<Self>(&fs::read(folder.join(OUTLINE)).ok()?).ok();
        read().filter(|outline| outline.version == VERSION).unwrap_or_default()
    }

    pub(crate) fn header(&self, path: &Path) -> Option<&[u8]> {
        self.shards.get(&file_name(path)).map(|shard| shard.header.as_bytes())
    }

    /// Bytes of a shard that enter the digest.
    pub(crate) fn probe(&self, path: &Path, offset: u64) -> Option<Vec<u8>> {
        hex::decode(self.shards.get(&file_name(path))?.probes.get(&offset)?).ok()
    }

    pub(crate) fn insert_header(&mut self, path: &Path, header: String) {
        self.shards.insert(file_name(path), Shard { header, probes: BTreeMap::new() });
    }

    pub(crate) fn insert_probe(&mut self, shard: String, offset: u64, bytes: &[u8]) {
        self.shards.entry(shard).or_default().probes.insert(offset, hex::encode(bytes));
    }

    /// Writes the file completely or not at all, also if several processes do it.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let temporary = path.with_file_name(format!("{OUTLINE}.{}", std::process::id()));
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(temporary, path)
    }
}
