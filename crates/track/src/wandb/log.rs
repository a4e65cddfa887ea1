//! Log format of `.wandb` files: LevelDB's, after a header.
//!
//! The file consists of blocks of 32 KiB, of which the first begins with the 7 bytes of [`HEADER`]. A block holds
//! chunks: CRC-32 of type and payload (u32, little endian), length of the payload (u16), type (u8), payload. A record
//! is one full chunk, or a first, some middle and a last one; the end of a block without room for another chunk header
//! is filled with zeros.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{WriteError, write_atomic};

/// `:W&B`, 0xBEE1 in little endian, version 0.
const HEADER: [u8; 7] = *b":W&B\xe1\xbe\x00";
const BLOCK_SIZE: usize = 32 * 1024;
const CHUNK_HEADER: usize = 7;

const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    position: usize,
}

impl Log {
    /// Creates a log with these records and replaces the file.
    pub(super) fn create<'a>(path: &Path, records: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, WriteError> {
        let mut content = HEADER.to_vec();
        for record in records {
            let chunks = chunks(record, content.len());
            content.extend_from_slice(&chunks);
        }
        write_atomic(path, &content)?;
        let file = File::options().append(true).open(path);
        let file = file.map_err(|source| WriteError { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file, position: content.len() })
    }

    /// Appends a record in one write.
    pub(super) fn append(&mut self, record: &[u8]) -> Result<(), WriteError> {
        let chunks = chunks(record, self.position);
        self.file.write_all(&chunks).map_err(|source| WriteError { path: self.path.clone(), source })?;
        self.position += chunks.len();
        Ok(())
    }
}

/// Chunks of a record in a file of `position` bytes.
fn chunks(record: &[u8], mut position: usize) -> Vec<u8> {
    let mut chunks = Vec::with_capacity(record.len() + 2 * CHUNK_HEADER);
    let (mut rest, mut is_first) = (record, true);
    loop {
        let room = BLOCK_SIZE - position % BLOCK_SIZE;
        if room < CHUNK_HEADER {
            chunks.resize(chunks.len() + room, 0);
            position += room;
            continue;
        }
        let (payload, after) = rest.split_at(rest.len().min(room - CHUNK_HEADER));
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
        position += CHUNK_HEADER + payload.len();
        (rest, is_first) = (after, false);
    }
}

fn crc(kind: u8, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(payload);
    hasher.finalize()
}

/// Complete records of a log; a killed process may leave an incomplete last one.
pub(super) fn records(content: &[u8]) -> Vec<Vec<u8>> {
    let (mut records, mut record, mut position) = (Vec::new(), Vec::new(), CHUNK_HEADER);
    if !content.starts_with(&HEADER) {
        return records;
    }
    loop {
        let room = BLOCK_SIZE - position % BLOCK_SIZE;
        if room < CHUNK_HEADER {
            position += room;
        }
        let Some((kind, payload)) = chunk(content, position) else { return records };
        record.extend_from_slice(payload);
        position += CHUNK_HEADER + payload.len();
        if [FULL, LAST].contains(&kind) {
            records.push(std::mem::take(&mut record));
        }
    }
}

/// Complete chunk at a position.
fn chunk(content: &[u8], position: usize) -> Option<(u8, &[u8])> {
    let (head, rest) = content.get(position..)?.split_first_chunk::<CHUNK_HEADER>()?;
    let [a, b, c, d, low, high, kind] = *head;
    let payload = rest.get(..usize::from(u16::from_le_bytes([low, high])))?;
    (crc(kind, payload) == u32::from_le_bytes([a, b, c, d])).then_some((kind, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lengths of records that end before, at and after the end of a block, and where no chunk header fits.
    fn lengths() -> Vec<usize> {
        let to_end = BLOCK_SIZE - CHUNK_HEADER - CHUNK_HEADER;
        let mut lengths = vec![0, 1, 100, 3 * BLOCK_SIZE];
        lengths.extend((0..=2 * CHUNK_HEADER + 1).map(|n| to_end - n));
        lengths
    }

    #[test]
    fn records_returns_written_records() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run-x.wandb");
        for length in lengths() {
            let written: Vec<Vec<u8>> = vec![vec![7; length], b"after".to_vec(), vec![8; length], Vec::new()];
            let mut log = Log::create(&path, written[..2].iter().map(Vec::as_slice)).expect("made");
            written[2..].iter().for_each(|record| log.append(record).expect("appended"));
            let content = std::fs::read(&path).expect("read");
            assert!(records(&content) == written, "{length}");
            // A truncated file yields its complete records.
            let complete = records(&content[..content.len() - 1]);
            assert!(complete == written[..3], "{length}");
        }
        assert!(records(b"something else").is_empty());
    }

    #[test]
    fn chunks_equal_leveldb() {
        assert_eq!(chunks(b"abc", CHUNK_HEADER)[4..], *b"\x03\x00\x01abc");
        assert_eq!(crc(FULL, b""), 0xa505_df1b, "CRC-32 of the byte 1");
        let split = chunks(b"abc", BLOCK_SIZE - CHUNK_HEADER - 2);
        assert_eq!((&split[4..9], &split[13..]), (&b"\x02\x00\x02ab"[..], &b"\x01\x00\x04c"[..]));
        assert_eq!(chunks(b"abc", BLOCK_SIZE - 3)[..3], [0, 0, 0]);
    }
}
