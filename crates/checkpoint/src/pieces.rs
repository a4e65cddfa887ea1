//! Weights files of which only pieces are in the folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Pieces of a file: the files `OFFSET-DIGEST` in the folder `NAME.pieces` beside it, each with the bytes from `OFFSET` on.
/// The program that writes a piece checks it by the digest.
#[derive(Debug)]
pub(crate) struct Pieces {
    folder: PathBuf,
    /// Path and length of each known piece, by its offset.
    found: Mutex<BTreeMap<u64, (PathBuf, u64)>>,
}

impl Pieces {
    /// The pieces of the file `path`, if there are any or when they arrive.
    pub(crate) fn new(path: &Path) -> Self {
        let mut folder = path.as_os_str().to_owned();
        folder.push(".pieces");
        Self { folder: folder.into(), found: Mutex::default() }
    }

    /// True if pieces with all of these bytes are there.
    pub(crate) fn has(&self, mut offset: u64, len: u64) -> bool {
        let Some(end) = offset.checked_add(len) else { return false };
        while offset < end {
            match self.piece(offset) {
                Ok((_, _, rest)) => offset = offset.saturating_add(rest),
                Err(_) => return false,
            }
        }
        true
    }

    /// Reads bytes of the complete file.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if a piece is missing.
    pub(crate) fn read_at(&self, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let (path, within, rest) = self.piece(offset)?;
            let len = buffer.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
            File::open(path)?.read_exact_at(&mut buffer[..len], within)?;
            offset += len as u64;
            buffer = &mut buffer[len..];
        }
        Ok(())
    }

    /// Path of the piece with the byte `offset`, the position of the byte in it, and the number of bytes from there on.
    fn piece(&self, offset: u64) -> io::Result<(PathBuf, u64, u64)> {
        let mut found = self.found();
        let find = |found: &BTreeMap<u64, (PathBuf, u64)>| {
            let (start, (path, len)) = found.range(..=offset).next_back()?;
            let within = offset - start;
            (within < *len).then(|| (path.clone(), within, len - within))
        };
        if let Some(piece) = find(&found) {
            return Ok(piece);
        }
        *found = self.list()?;
        find(&found).ok_or_else(|| {
            let problem = format!("the bytes from {offset} on are not in {}", self.folder.display());
            io::Error::new(io::ErrorKind::NotFound, problem)
        })
    }

    fn list(&self) -> io::Result<BTreeMap<u64, (PathBuf, u64)>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let offset =
                name.to_str().and_then(|name| name.split_once('-')).and_then(|(offset, _)| offset.parse().ok());
            if let Some(offset) = offset {
                found.insert(offset, (entry.path(), entry.metadata()?.len()));
            }
        }
        Ok(found)
    }

    fn found(&self) -> MutexGuard<'_, BTreeMap<u64, (PathBuf, u64)>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_across_their_borders_when_they_arrive() {
        let folder = tempfile::tempdir().expect("a folder");
        let pieces = Pieces::new(&folder.path().join("model.gguf"));
        let read = |offset: u64, len: usize| {
            let mut buffer = vec![0; len];
            pieces.read_at(offset, &mut buffer).map(|()| buffer)
        };
        let is_missing = |offset, len| read(offset, len).expect_err("missing").kind() == io::ErrorKind::NotFound;
        assert!(!pieces.has(0, 1) && is_missing(0, 1));
        let write = |name: &str, bytes: &[u8]| {
            fs::create_dir_all(folder.path().join("model.gguf.pieces")).expect("a folder");
            fs::write(folder.path().join("model.gguf.pieces").join(name), bytes).expect("written");
        };
        write("000-ab", &[0, 1, 2, 3]);
        write("008-cd", &[8, 9, 10, 11]);
        write("entry.json", b"{}");
        assert_eq!(read(1, 3).expect("read"), [1, 2, 3]);
        assert!(is_missing(2, 4) && is_missing(4, 1) && is_missing(12, 1));
        assert!(pieces.has(1, 3) && pieces.has(8, 4) && pieces.has(4, 0));
        assert!(!pieces.has(2, 4) && !pieces.has(4, 1) && !pieces.has(8, 5) && !pieces.has(1, u64::MAX));
        write("004-ef", &[4, 5, 6, 7]);
        assert!(pieces.has(0, 12) && !pieces.has(0, 13));
        assert_eq!(read(2, 9).expect("read"), [2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert!(read(99, 0).expect("nothing to read").is_empty());
    }
}
