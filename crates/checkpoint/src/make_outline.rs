use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::OpenError;
use crate::file::WeightsFile;
use crate::folder;
use crate::header::{FetchRanges, fetch_all, fetch_headers, read_header};
use crate::layout::{file_name, is_sharded, shards};
use crate::outline::{OUTLINE, Outline};
use crate::probe::{Probe, probes};

/// Writes the outline of a model in shards into its folder, so that a [`Checkpoint`](crate::Checkpoint) can be opened
/// with only some of the shards. Returns its path, or `None` if the model is not in shards. An existing outline is kept if
/// shards are missing and it describes them.
///
/// `fetch` reads about 32 KiB of each missing shard and 4 KiB of each block. The outline of a complete folder can be
/// copied to a folder that has only some of the shards.
///
/// # Errors
/// [`OpenError`] if a file cannot be read, `fetch` fails, or the model is not supported.
pub fn write_outline(folder: impl AsRef<Path>, fetch: &mut FetchRanges<'_>) -> Result<Option<PathBuf>, OpenError> {
    let (folder, path) = (folder.as_ref(), folder.as_ref().join(OUTLINE));
    if !is_sharded(folder) {
        return Ok(None);
    }
    let old = Outline::read(folder);
    let shards: Vec<PathBuf> = shards(folder)?.into_keys().collect();
    let (present, missing): (Vec<PathBuf>, Vec<PathBuf>) = shards.iter().cloned().partition(|shard| shard.is_file());
    if !missing.is_empty() && shards.iter().all(|shard| old.header(shard).is_some()) {
        return Ok(Some(path));
    }
    let failed = |source| OpenError::Fetch { path: folder.to_owned(), source };
    let text = |header: Vec<u8>| String::from_utf8(header).map_err(|error| failed(error.into()));
    let mut outline = Outline::new();
    for shard in &present {
        outline.insert_header(shard, text(read_header(&WeightsFile::open(shard)?)?)?);
    }
    let missing: Vec<String> = missing.iter().map(|shard| file_name(shard)).collect();
    for (shard, header) in missing.iter().zip(fetch_headers(&missing, fetch).map_err(failed)?) {
        outline.insert_header(Path::new(shard), text(header)?);
    }
    insert_probes(&mut outline, folder, fetch)?;
    match outline.write(&path) {
        Ok(()) => Ok(Some(path)),
        Err(source) => Err(OpenError::Io { path, source }),
    }
}

/// Reads the bytes that enter the digest; the outline has all headers.
fn insert_probes(outline: &mut Outline, folder: &Path, fetch: &mut FetchRanges<'_>) -> Result<(), OpenError> {
    let (_, store) = folder::open(folder, outline)?;
    let shard = |probe: &Probe| file_name(store.files[probe.file].path());
    let (present, missing): (Vec<Probe>, Vec<Probe>) =
        probes(&store.tensors).into_iter().partition(|probe| store.files[probe.file].is_present());
    for probe in present {
        outline.insert_probe(shard(&probe), probe.offset, &probe.read(&store.files[probe.file])?);
    }
    let ranges: Vec<(String, Range<u64>)> =
        missing.iter().map(|probe| (shard(probe), probe.offset..probe.offset + probe.len)).collect();
    let failed = |source| OpenError::Fetch { path: folder.to_owned(), source };
    let fetched = fetch_all(&ranges, fetch).map_err(failed)?;
    for ((shard, range), bytes) in ranges.into_iter().zip(fetched) {
        if bytes.len() as u64 != range.end - range.start {
            return Err(failed(format!("{shard} ends before byte {}", range.end).into()));
        }
        outline.insert_probe(shard, range.start, &bytes);
    }
    Ok(())
}
