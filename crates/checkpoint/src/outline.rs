//! What must be known of shards that are not here: their headers, and the bytes that the digest takes in.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::{Probe, probes};
use crate::error::OpenError;
use crate::file::WeightsFile;
use crate::folder::{self, MAX_HEADER, header, shards};

/// Its name in a model's folder.
pub(crate) const OUTLINE: &str = ".sepal-outline.json";

/// The version of its layout; others are written anew.
const VERSION: u32 = 2;

/// Bytes of a file that are asked for first. Headers of shards are seldom longer.
const HEAD: u64 = 1 << 15;

/// Bytes of files that are not here, each by the file's name and where they lie in it: `Ok` has as many answers as were
/// asked for, each shorter than asked for only where its file ends.
pub type Elsewhere<'a> = dyn FnMut(&[(String, Range<u64>)]) -> Result<Vec<Vec<u8>>, Box<dyn Error + Send + Sync>> + 'a;

/// The outline of a model in shards.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outline {
    version: u32,
    shards: BTreeMap<String, Shard>,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Shard {
    /// As it stands in the file, without its length.
    header: String,
    /// Bytes that the digest takes in, in hexadecimal, by where they lie in the file.
    probes: BTreeMap<u64, String>,
}

/// The shards of a model that are not in its folder, by name.
///
/// # Errors
/// [`OpenError`] if the index cannot be read.
pub fn missing_shards(folder: impl AsRef<Path>) -> Result<Vec<String>, OpenError> {
    let folder = folder.as_ref();
    if !folder::is_sharded(folder) {
        return Ok(Vec::new());
    }
    Ok(shards(folder)?.into_keys().filter(|path| !path.is_file()).map(|path| name(&path)).collect())
}

/// Writes the outline of a model in shards into its folder, so that a [`Checkpoint`](crate::Checkpoint) can be opened
/// where only some of the shards are. Where it is there already, and has shards that are not here, it is left as it is.
/// Says where it is, or nothing where the model is not in shards.
///
/// `elsewhere` shows bytes of shards that are not here: 32 KiB of each shard and 4 KiB of each block, about. The outline of a whole
/// folder can be copied to where only a part of it is.
///
/// # Errors
/// [`OpenError`] if a file cannot be read, `elsewhere` fails, or the model is not supported.
pub fn outline(folder: impl AsRef<Path>, elsewhere: &mut Elsewhere<'_>) -> Result<Option<PathBuf>, OpenError> {
    let (folder, place) = (folder.as_ref(), folder.as_ref().join(OUTLINE));
    if !folder::is_sharded(folder) {
        return Ok(None);
    }
    let old = Outline::read(folder);
    let paths: Vec<PathBuf> = shards(folder)?.into_keys().collect();
    let (here, missing): (Vec<PathBuf>, Vec<PathBuf>) = paths.iter().cloned().partition(|path| path.is_file());
    if !missing.is_empty() && paths.iter().all(|path| old.header(path).is_some()) {
        return Ok(Some(place));
    }
    let failed = |source| OpenError::Elsewhere { path: folder.to_owned(), source };
    let mut outline = Outline { version: VERSION, shards: BTreeMap::new() };
    for path in &here {
        let header = header(&WeightsFile::open(path)?)?;
        outline.insert(path, header).map_err(failed)?;
    }
    let missing: Vec<String> = missing.iter().map(|path| name(path)).collect();
    for (shard, header) in missing.iter().zip(headers(&missing, elsewhere).map_err(failed)?) {
        outline.insert(Path::new(shard), header).map_err(failed)?;
    }
    outline.look(folder, elsewhere)?;
    match outline.write(&place) {
        Ok(()) => Ok(Some(place)),
        Err(source) => Err(OpenError::Io { path: place, source }),
    }
}

impl Outline {
    /// That of a folder; an empty one if there is none that can be read.
    pub(crate) fn read(folder: &Path) -> Self {
        let read = || serde_json::from_slice::<Self>(&fs::read(folder.join(OUTLINE)).ok()?).ok();
        read().filter(|outline| outline.version == VERSION).unwrap_or_default()
    }

    /// The header of a shard.
    pub(crate) fn header(&self, path: &Path) -> Option<&[u8]> {
        self.shards.get(&name(path)).map(|shard| shard.header.as_bytes())
    }

    /// Bytes of a shard that the digest takes in.
    pub(crate) fn probe(&self, path: &Path, offset: u64) -> Option<Vec<u8>> {
        hex::decode(self.shards.get(&name(path))?.probes.get(&offset)?).ok()
    }

    fn insert(&mut self, path: &Path, header: Vec<u8>) -> Result<(), Box<dyn Error + Send + Sync>> {
        let header = String::from_utf8(header)?;
        self.shards.insert(name(path), Shard { header, probes: BTreeMap::new() });
        Ok(())
    }

    /// Reads the bytes that the digest takes in; the headers are there.
    fn look(&mut self, folder: &Path, elsewhere: &mut Elsewhere<'_>) -> Result<(), OpenError> {
        let (_, store) = folder::open(folder, self)?;
        let shard = |probe: &Probe| store.files[probe.file].path();
        let (here, missing): (Vec<Probe>, Vec<Probe>) =
            probes(&store.tensors).into_iter().partition(|probe| store.files[probe.file].is_here());
        let mut found = Vec::new();
        for probe in here {
            let (file, mut bytes) = (&store.files[probe.file], vec![0; probe.len as usize]);
            file.read_at(probe.offset, &mut bytes).map_err(|source| file.io(source))?;
            found.push((name(shard(&probe)), probe.offset, bytes));
        }
        let wanted: Vec<(String, Range<u64>)> =
            missing.iter().map(|probe| (name(shard(probe)), probe.offset..probe.offset + probe.len)).collect();
        let failed = |source| OpenError::Elsewhere { path: folder.to_owned(), source };
        for ((shard, range), bytes) in wanted.iter().zip(ask(&wanted, elsewhere).map_err(failed)?) {
            if bytes.len() as u64 != range.end - range.start {
                return Err(failed(format!("{shard} ends before byte {}", range.end).into()));
            }
            found.push((shard.clone(), range.start, bytes));
        }
        for (shard, offset, bytes) in found {
            self.shards.entry(shard).or_default().probes.insert(offset, hex::encode(bytes));
        }
        Ok(())
    }

    /// Whole or not at all, also where several processes do it.
    fn write(&self, place: &Path) -> io::Result<()> {
        let beside = place.with_file_name(format!("{OUTLINE}.{}", std::process::id()));
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(beside, place)
    }
}

/// The headers of shards that are not here.
pub(crate) fn headers(
    shards: &[String],
    elsewhere: &mut Elsewhere<'_>,
) -> Result<Vec<Vec<u8>>, Box<dyn Error + Send + Sync>> {
    let heads: Vec<(String, Range<u64>)> = shards.iter().map(|shard| (shard.clone(), 0..HEAD)).collect();
    let mut heads = ask(&heads, elsewhere)?;
    let mut rests = Vec::new();
    for (shard, head) in shards.iter().zip(&heads) {
        let length = head.first_chunk().map(|length| u64::from_le_bytes(*length));
        let end = length.filter(|length| *length <= MAX_HEADER).map(|length| 8 + length);
        let end = end.ok_or_else(|| format!("{shard} is no safetensors file"))?;
        rests.push((shard.clone(), (head.len() as u64).min(end)..end));
    }
    let longer: Vec<(String, Range<u64>)> = rests.iter().filter(|(_, rest)| !rest.is_empty()).cloned().collect();
    let mut more = ask(&longer, elsewhere)?.into_iter();
    for ((shard, rest), head) in rests.into_iter().zip(&mut heads) {
        if !rest.is_empty() {
            head.extend(more.next().unwrap_or_default());
        }
        if (head.len() as u64) < rest.end {
            return Err(format!("{shard} ends in its header").into());
        }
        head.truncate(rest.end as usize);
        head.drain(..8);
    }
    Ok(heads)
}

fn ask(
    wanted: &[(String, Range<u64>)],
    elsewhere: &mut Elsewhere<'_>,
) -> Result<Vec<Vec<u8>>, Box<dyn Error + Send + Sync>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let answers = elsewhere(wanted)?;
    if answers.len() != wanted.len() {
        return Err(format!("{} answers came to {} questions", answers.len(), wanted.len()).into());
    }
    Ok(answers)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
