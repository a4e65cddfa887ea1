//! Atomic writes into the cache, and a record of the digest and size of each file.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sepal_machine::durable::{self, PendingFile};
use sha2::{Digest, Sha256};

use crate::FetchError;

/// Digest and size of a file, stored beside it as `NAME.sha256`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) sha256: String,
    pub(crate) size: u64,
}

impl Record {
    /// Returns the record of a cached file. The file is hashed only if it has no record.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>, FetchError> {
        let size = match fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => metadata.len(),
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FetchError::io("look at", path)(error)),
        };
        let read = || fs::read_to_string(record_path(path)).ok().and_then(|text| Self::parse(&text));
        match read() {
            Some(record) if record.size == size => Ok(Some(record)),
            // A size that differs from the record means damage.
            Some(_) => Ok(None),
            None => {
                let file = File::open(path).map_err(FetchError::io("open", path))?;
                let mut hash = Sha256::new();
                let size = copy(file, &mut hash, &mut io::sink()).map_err(FetchError::io("read", path))?;
                let record = Record { sha256: hex::encode(hash.finalize()), size };
                record.save(path)?;
                Ok(Some(record))
            }
        }
    }

    fn save(&self, path: &Path) -> Result<(), FetchError> {
        write_atomic(&record_path(path), format!("{}  {}\n", self.sha256, self.size).as_bytes())
    }

    fn parse(text: &str) -> Option<Self> {
        let (sha256, size) = text.trim().split_once("  ")?;
        Some(Self { sha256: (sha256.len() == 64).then(|| sha256.to_owned())?, size: size.parse().ok()? })
    }
}

fn record_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".sha256");
    name.into()
}

/// Temporary file that becomes a cached file, removed on drop unless persisted.
#[derive(Debug)]
pub(crate) struct Incoming {
    file: PendingFile,
    hash: Sha256,
    size: u64,
}

impl Incoming {
    pub(crate) fn create(path: &Path) -> Result<Self, FetchError> {
        Ok(Self { file: create_pending(path)?, hash: Sha256::new(), size: 0 })
    }

    /// Appends all of `content` and returns its size in bytes.
    pub(crate) fn append(&mut self, content: impl Read) -> Result<u64, FetchError> {
        let size = copy(content, &mut self.hash, &mut self.file);
        let size = size.map_err(FetchError::io("write", self.file.path()))?;
        self.size += size;
        Ok(size)
    }

    /// Size so far in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn sha256(&self) -> String {
        hex::encode(self.hash.clone().finalize())
    }

    pub(crate) fn persist(self) -> Result<Record, FetchError> {
        let record = Record { sha256: self.sha256(), size: self.size };
        let path = self.file.path().to_owned();
        self.file.publish().map_err(FetchError::io("write", &path))?;
        record.save(&path)?;
        Ok(record)
    }
}

pub(crate) fn write_atomic(path: &Path, content: &[u8]) -> Result<(), FetchError> {
    let mut file = create_pending(path)?;
    file.write_all(content).map_err(FetchError::io("write", path))?;
    file.publish().map_err(FetchError::io("write", path))
}

/// Removes folders and files that a killed process left more than a day ago.
pub(crate) fn remove_stale(folder: &Path, prefix: &str) {
    const OLD: Duration = Duration::from_secs(24 * 60 * 60);
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)) {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        if modified.is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age > OLD)) {
            // Another process may remove it at the same time.
            let _ = match entry.file_type() {
                Ok(found) if found.is_dir() => fs::remove_dir_all(entry.path()),
                _ => fs::remove_file(entry.path()),
            };
        }
    }
}

fn create_pending(path: &Path) -> Result<PendingFile, FetchError> {
    let folder = durable::folder_of(path);
    durable::create_folders(folder).map_err(FetchError::io("make the folder", folder))?;
    PendingFile::create(path).map_err(FetchError::io("write in", folder))
}

/// Copies and hashes all of `from` and returns its size in bytes.
fn copy(mut from: impl Read, hash: &mut Sha256, to: &mut impl Write) -> io::Result<u64> {
    let mut size = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(size),
            Ok(n) => {
                hash.update(&buffer[..n]);
                to.write_all(&buffer[..n])?;
                size += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_is_hashed_once_and_detects_changed_size() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a/b.bin");
        assert_eq!(Record::load(&path).expect("nothing there"), None);
        let mut incoming = Incoming::create(&path).expect("created");
        assert_eq!(incoming.append(&b"ab"[..]).expect("appended"), 2);
        incoming.append(&b"c"[..]).expect("appended");
        let record = incoming.persist().expect("persisted");
        assert_eq!(record.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(Record::load(&path).expect("a record"), Some(record.clone()));
        // The file is not hashed again while the size is the same.
        fs::write(&path, "xyz").expect("written");
        assert_eq!(Record::load(&path).expect("a record"), Some(record.clone()));
        fs::write(&path, "longer").expect("written");
        assert_eq!(Record::load(&path).expect("damaged"), None);
        // A lost record is made again.
        fs::write(&path, "abc").expect("written");
        fs::remove_file(record_path(&path)).expect("removed");
        assert_eq!(Record::load(&path).expect("a record"), Some(record));
        assert!(record_path(&path).exists());
    }

    #[test]
    fn incoming_dropped_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut incoming = Incoming::create(&folder.path().join("x")).expect("created");
        incoming.append(&b"abc"[..]).expect("appended");
        drop(incoming);
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
    }
}
