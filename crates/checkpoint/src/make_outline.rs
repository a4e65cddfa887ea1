use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::OpenError;
use crate::file::WeightsFile;
use crate::folder::Folder;
use crate::gguf;
use crate::header::{FetchRanges, fetch_all, fetch_headers, read_header};
use crate::layout::file_name;
use crate::model_path::ModelPath;
use crate::outline::Outline;
use crate::probe::{Probe, probes};

/// Writes the outline of a model in shards, or in parts of a GGUF file, beside them, so that a
/// [`Checkpoint`](crate::Checkpoint) can be opened with only some of them; likewise of a model in one file that is not there,
/// of which only pieces will be brought. Returns the outline's path, or `None` if the model is in one file that is there. An
/// existing outline is kept if files are missing and it describes them.
///
/// `fetch` reads about 32 KiB of each missing shard, the vocabulary of a GGUF file, and 4 KiB of each block. The outline of a
/// complete model can be copied to a folder that has only some of its files.
///
/// # Errors
/// [`OpenError`] if a file cannot be read, `fetch` fails, or the model is not supported.
pub fn write_outline(path: impl AsRef<Path>, fetch: &mut FetchRanges<'_>) -> Result<Option<PathBuf>, OpenError> {
    let model = ModelPath::find(path.as_ref())?;
    let (files, missing, path) = (model.files()?, model.missing()?, model.outline());
    if files.len() == 1 && missing.is_empty() {
        return Ok(None);
    }
    let old = Outline::read(&path);
    if !missing.is_empty() && files.iter().all(|file| old.header(file).is_some()) {
        return Ok(Some(path));
    }
    let mut outline = Outline::new();
    match &model {
        ModelPath::Folder(folder) => insert_headers(folder, &files, &mut outline, fetch)?,
        ModelPath::Gguf(_) => gguf::insert_heads(&files, &mut outline, fetch)?,
    }
    insert_probes(&mut outline, &model, fetch)?;
    match outline.write(&path) {
        Ok(()) => Ok(Some(path)),
        Err(source) => Err(OpenError::Io { path, source }),
    }
}

/// Reads the headers of safetensors files.
fn insert_headers(
    folder: &Path,
    files: &[PathBuf],
    outline: &mut Outline,
    fetch: &mut FetchRanges<'_>,
) -> Result<(), OpenError> {
    let failed = |source| OpenError::Fetch { path: folder.to_owned(), source };
    let text = |header: Vec<u8>| String::from_utf8(header).map_err(|error| failed(error.into()));
    let (present, missing): (Vec<&PathBuf>, Vec<&PathBuf>) = files.iter().partition(|file| file.is_file());
    for shard in present {
        outline.insert_header(shard, text(read_header(&WeightsFile::open(shard)?)?)?);
    }
    let missing: Vec<String> = missing.into_iter().map(|shard| file_name(shard)).collect();
    for (shard, header) in missing.iter().zip(fetch_headers(&missing, fetch).map_err(failed)?) {
        outline.insert_header(Path::new(shard), text(header)?);
    }
    Ok(())
}

/// Reads the bytes that enter the digest; the outline has all headers.
fn insert_probes(outline: &mut Outline, model: &ModelPath, fetch: &mut FetchRanges<'_>) -> Result<(), OpenError> {
    let Folder { store, .. } = model.open(outline)?;
    let file = |probe: &Probe| file_name(store.files[probe.file].path());
    // Those of empty tensors would replace others at the same offset.
    let probes = probes(&store.tensors).into_iter().filter(|probe| probe.len > 0);
    let (present, missing): (Vec<Probe>, Vec<Probe>) = probes.partition(|probe| store.files[probe.file].is_complete());
    for probe in present {
        outline.insert_probe(file(&probe), probe.offset, &probe.read(&store.files[probe.file])?);
    }
    let ranges: Vec<(String, Range<u64>)> =
        missing.iter().map(|probe| (file(probe), probe.offset..probe.offset + probe.len)).collect();
    let folder = || model.outline().parent().unwrap_or(Path::new("")).to_owned();
    let failed = |source| OpenError::Fetch { path: folder(), source };
    let fetched = fetch_all(&ranges, fetch).map_err(failed)?;
    for ((file, range), bytes) in ranges.into_iter().zip(fetched) {
        if bytes.len() as u64 != range.end - range.start {
            return Err(failed(format!("{file} ends before byte {}", range.end).into()));
        }
        outline.insert_probe(file, range.start, &bytes);
    }
    Ok(())
}
