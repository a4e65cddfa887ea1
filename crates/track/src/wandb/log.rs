//! The log that `.wandb` files are: LevelDB's, after a header.
//!
//! The file is cut into blocks of 32 KiB, of which the first begins with the 7 bytes of [`HEADER`]. Blocks are filled with
//! chunks: CRC-32 of type and payload (u32, little endian), length of the payload (u16), type (u8), payload. A record is
//! one whole chunk, or a first, some middle and a last one; where a block has no room for another chunk's head, zeros are.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{WriteError, write_whole};

/// `:W&B`, 0xBEE1 in little endian, version 0.
const HEADER: [u8; 7] = *b":W&B\xe1\xbe\x00";
const BLOCK: usize = 32 * 1024;
const HEAD: usize = 7;

const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// A log that grows.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    position: usize,
}

impl Log {
    /// A log of these records instead of what was in the file.
    pub(super) fn create<'a>(path: &Path, records: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, WriteError> {
        let mut content = HEADER.to_vec();
        for record in records {
            let chunks = chunks(record, content.len());
            content.extend_from_slice(&chunks);
        }
        write_whole(path, &content)?;
        let file = File::options().append(true).open(path);
        let file = file.map_err(|source| WriteError { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file, position: content.len() })
    }

    /// Appends a record, in one write.
    pub(super) fn append(&mut self, record: &[u8]) -> Result<(), WriteError> {
        let chunks = chunks(record, self.position);
        self.file.write_all(&chunks).map_err(|source| WriteError { path: self.path.clone(), source })?;
        self.position += chunks.len();
        Ok(())
    }
}

/// A record as it stands in a file that is `position` bytes long.
fn chunks(record: &[u8], mut position: usize) -> Vec<u8> {
    let mut chunks = Vec::with_capacity(record.len() + 2 * HEAD);
    let (mut rest, mut is_first) = (record, true);
    loop {
        let room = BLOCK - position % BLOCK;
        if room < HEAD {
            chunks.resize(chunks.len() + room, 0);
            position += room;
            continue;
        }
        let (payload, after) = rest.split_at(rest.len().min(room - HEAD));
        let kind = match (is_first, after.is_empty()) {
            (true, true) => FULL,
            (true, false) => FIRST,
            (false, false) => MIDDLE,
            (false, true) => LAST,
        };
        chunks.extend_from_slice(&crc(kind, payload).to_le_bytes());
        chunks.extend_from_slice(&(payload.len() as u16).to_le_bytes());
        chunks.push(kind);
        chunks.extend_from_slice(payload);
        if after.is_empty() {
            return chunks;
        }
        position += HEAD + payload.len();
        (rest, is_first) = (after, false);
    }
}

fn crc(kind: u8, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(payload);
    hasher.finalize()
}

/// The records of a log up to the first that is not whole: a process may have died while it wrote.
pub(super) fn records(content: &[u8]) -> Vec<Vec<u8>> {
    let (mut records, mut record, mut position) = (Vec::new(), Vec::new(), HEAD);
    if !content.starts_with(&HEADER) {
        return records;
    }
    loop {
        let room = BLOCK - position % BLOCK;
        if room < HEAD {
            position += room;
        }
        let Some((kind, payload)) = chunk(content, position) else { return records };
        record.extend_from_slice(payload);
        position += HEAD + payload.len();
        if [FULL, LAST].contains(&kind) {
            records.push(std::mem::take(&mut record));
        }
    }
}

/// The chunk at a position, if it is whole.
fn chunk(content: &[u8], position: usize) -> Option<(u8, &[u8])> {
    let (head, rest) = content.get(position..)?.split_first_chunk::<HEAD>()?;
    let [a, b, c, d, low, high, kind] = *head;
    let payload = rest.get(..usize::from(u16::from_le_bytes([low, high])))?;
    (crc(kind, payload) == u32::from_le_bytes([a, b, c, d])).then_some((kind, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records that end before, at and after the end of a block, and in the room where no head fits.
    fn lengths() -> Vec<usize> {
        let to_end = BLOCK - HEAD - HEAD;
        let mut lengths = vec![0, 1, 100, 3 * BLOCK];
        lengths.extend((0..=2 * HEAD + 1).map(|n| to_end - n));
        lengths
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run-x.wandb");
        for length in lengths() {
            let written: Vec<Vec<u8>> = vec![vec![7; length], b"after".to_vec(), vec![8; length], Vec::new()];
            let mut log = Log::create(&path, written[..2].iter().map(Vec::as_slice)).expect("made");
            written[2..].iter().for_each(|record| log.append(record).expect("appended"));
            let content = std::fs::read(&path).expect("read");
            assert!(records(&content) == written, "{length}");
            // Of a file that was cut, what is whole.
            let left = records(&content[..content.len() - 1]);
            assert!(left == written[..3], "{length}");
        }
        assert!(records(b"something else").is_empty());
    }

    #[test]
    fn chunks_are_leveldb_s() {
        assert_eq!(chunks(b"abc", HEAD)[4..], *b"\x03\x00\x01abc");
        assert_eq!(crc(FULL, b""), 0xa505_df1b, "CRC-32 of the byte 1");
        let split = chunks(b"abc", BLOCK - HEAD - 2);
        assert_eq!((&split[4..9], &split[13..]), (&b"\x02\x00\x02ab"[..], &b"\x01\x00\x04c"[..]));
        assert_eq!(chunks(b"abc", BLOCK - 3)[..3], [0, 0, 0]);
    }
}
