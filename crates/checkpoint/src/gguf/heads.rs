//! Beginnings of GGUF files that are not in the folder: metadata and the location of tensors.

use std::io::Cursor;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::config::FACTORS;
use super::parse::{Content, ParseError, parse};
use super::{GgufFile, is_big_endian, locate};
use crate::error::{BoxError, OpenError};
use crate::header::{FetchRanges, fetch_all};
use crate::layout::file_name;
use crate::outline::Outline;

/// Length of the first read of a model's first file, which has the vocabulary.
const FIRST_HEAD: u64 = 1 << 20;
/// Length of the first read of another part.
const HEAD: u64 = 1 << 16;
/// The longest beginning that is fetched.
const MAX_HEAD: usize = 32 << 20;
/// The most bytes of a tensor that belongs to the configuration.
const MAX_FACTORS: u64 = 1 << 16;
/// Versions of the format.
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=3;

/// Inserts the beginnings of the files of a model into an outline, and of missing files the tensors that the configuration
/// is read from. `fetch` reads those of missing files.
pub(crate) fn insert_heads(
    files: &[PathBuf],
    outline: &mut Outline,
    fetch: &mut FetchRanges<'_>,
) -> Result<(), OpenError> {
    for file in files.iter().filter(|file| file.is_file()) {
        let head = GgufFile::open(file, outline)?.head()?;
        outline.insert_header(file, hex::encode(head));
    }
    let missing: Vec<&PathBuf> = files.iter().filter(|file| !file.is_file()).collect();
    let Some(first) = files.first() else { return Ok(()) };
    insert_missing(first, &missing, outline, fetch)
        .map_err(|source| OpenError::Fetch { path: first.parent().unwrap_or(first).to_owned(), source })
}

fn insert_missing(
    first: &Path,
    missing: &[&PathBuf],
    outline: &mut Outline,
    fetch: &mut FetchRanges<'_>,
) -> Result<(), BoxError> {
    let start = |file: &&PathBuf| {
        let end = if **file == first { FIRST_HEAD } else { HEAD };
        (file_name(file), 0..end)
    };
    let starts: Vec<(String, Range<u64>)> = missing.iter().map(start).collect();
    let mut factors = Vec::new();
    for ((name, range), head) in starts.iter().zip(fetch_all(&starts, fetch)?) {
        let (head, content) = complete(name, head, range.end, fetch)?;
        outline.insert_header(Path::new(name), hex::encode(head));
        for (tensor, info) in content.tensors.iter().filter(|(tensor, _)| FACTORS.contains(&tensor.as_str())) {
            if let Some(stored) = locate(content.data_offset, info) {
                if stored.len > MAX_FACTORS {
                    let len = stored.len;
                    return Err(format!("`{tensor}` in {name} has {len} bytes, expected at most {MAX_FACTORS}").into());
                }
                factors.push((name.clone(), stored.offset..stored.offset + stored.len));
            }
        }
    }
    let fetched = fetch_all(&factors, fetch)?;
    for ((name, range), bytes) in factors.into_iter().zip(fetched) {
        if bytes.len() as u64 != range.end - range.start {
            return Err(format!("{name} ends before byte {}", range.end).into());
        }
        outline.insert_probe(name, range.start, &bytes);
    }
    Ok(())
}

/// Fetches more of a file until its beginning is complete. `requested` is the number of bytes that were requested for `head`.
fn complete(
    name: &str,
    mut head: Vec<u8>,
    mut requested: u64,
    fetch: &mut FetchRanges<'_>,
) -> Result<(Vec<u8>, Content), BoxError> {
    check_start(name, &head)?;
    loop {
        let parsed = parse(&mut Cursor::new(&head));
        match parsed {
            Ok(content) => {
                head.truncate(usize::try_from(content.data_offset).unwrap_or(usize::MAX));
                return Ok((head, content));
            }
            Err(error)
                if matches!(error, ParseError::Refused(_))
                    || (head.len() as u64) < requested
                    || head.len() >= MAX_HEAD =>
            {
                return Err(format!("the beginning of {name} cannot be parsed: {error}").into());
            }
            Err(_) => {
                let range = requested..2 * requested;
                requested = range.end;
                head.extend(fetch_all(&[(name.to_owned(), range)], fetch)?.concat());
            }
        }
    }
}

/// Refuses a file that is no GGUF file of a known version, before more of it is fetched.
fn check_start(name: &str, head: &[u8]) -> Result<(), BoxError> {
    if is_big_endian(head) {
        return Err(format!("{name} is a GGUF file for big-endian machines, which is not supported").into());
    }
    let version = head.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    if !head.starts_with(b"GGUF") || !version.is_some_and(|version| VERSIONS.contains(&version)) {
        return Err(format!("{name} is no GGUF file of a known version").into());
    }
    Ok(())
}
