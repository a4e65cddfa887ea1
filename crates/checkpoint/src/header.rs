//! Headers of safetensors files, local and remote.

use std::error::Error;
use std::ops::Range;

use safetensors::tensor::Metadata;

use crate::error::{BoxError, OpenError};
use crate::file::WeightsFile;

/// The longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;

/// Length of the first read of a remote file. Headers of shards are seldom longer.
const HEAD: u64 = 1 << 15;

/// Reads byte ranges of files that are not in the folder, each given by the file's name and the range. `Ok` has one
/// answer for each range, shorter than the range only where the file ends.
pub type FetchRanges<'a> =
    dyn FnMut(&[(String, Range<u64>)]) -> Result<Vec<Vec<u8>>, Box<dyn Error + Send + Sync>> + 'a;

/// Reads the header of a file, without its length.
pub(crate) fn read_header(file: &WeightsFile) -> Result<Vec<u8>, OpenError> {
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

/// Parses a header; the safetensors crate checks its offsets.
pub(crate) fn parse_header(file: &WeightsFile, header: &[u8]) -> Result<Metadata, OpenError> {
    serde_json::from_slice(header).map_err(|source| file.header(source))
}

/// Fetches the headers of files that are not in the folder.
pub(crate) fn fetch_headers(shards: &[String], fetch: &mut FetchRanges<'_>) -> Result<Vec<Vec<u8>>, BoxError> {
    let heads: Vec<(String, Range<u64>)> = shards.iter().map(|shard| (shard.clone(), 0..HEAD)).collect();
    let mut heads = fetch_all(&heads, fetch)?;
    let mut tails = Vec::new();
    for (shard, head) in shards.iter().zip(&heads) {
        let length = head.first_chunk().map(|length| u64::from_le_bytes(*length));
        let end = length.filter(|length| *length <= MAX_HEADER).map(|length| 8 + length);
        let end = end.ok_or_else(|| format!("{shard} is no safetensors file"))?;
        tails.push((shard.clone(), (head.len() as u64).min(end)..end));
    }
    let fetched = fetch_all(&tails, fetch)?;
    for (((shard, tail), more), head) in tails.into_iter().zip(fetched).zip(&mut heads) {
        head.extend(more);
        if (head.len() as u64) < tail.end {
            return Err(format!("{shard} ends in its header").into());
        }
        head.truncate(tail.end as usize);
        head.drain(..8);
    }
    Ok(heads)
}

/// Fetches ranges and checks the number of answers. Empty ranges are answered without a request.
pub(crate) fn fetch_all(
    ranges: &[(String, Range<u64>)],
    fetch: &mut FetchRanges<'_>,
) -> Result<Vec<Vec<u8>>, BoxError> {
    let wanted: Vec<(String, Range<u64>)> = ranges.iter().filter(|(_, range)| !range.is_empty()).cloned().collect();
    let answers = if wanted.is_empty() { Vec::new() } else { fetch(&wanted)? };
    if answers.len() != wanted.len() {
        return Err(format!("{} byte ranges were requested and {} came", wanted.len(), answers.len()).into());
    }
    let mut answers = answers.into_iter();
    let answer = |(_, range): &(String, Range<u64>)| if range.is_empty() { None } else { answers.next() };
    Ok(ranges.iter().map(answer).map(Option::unwrap_or_default).collect())
}
