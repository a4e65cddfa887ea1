//! Pieces of a large file of the hub, in the folder `NAME.pieces` beside the place of the complete file: a file
//! `OFFSET-SHA256` for each piece, named after its own digest, and `entry.json`, the hub's listing of the complete file.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::FetchError;
use crate::cache::write_atomic;
use crate::hub::api::Entry;

/// Size of a piece in bytes. The last piece of a file is shorter.
pub(super) const PIECE: u64 = 8 << 20;

const ENTRY: &str = "entry.json";

#[derive(Debug)]
pub(super) struct Pieces {
    folder: PathBuf,
    entry: Entry,
}

/// Treatment of pieces that differ from their digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damaged {
    /// They count as missing and stay. Other processes may replace them meanwhile.
    Report,
    /// They are removed, which needs the lock of the file.
    Remove,
}

/// Offsets of the pieces that contain `ranges` of a file of `size` bytes, ascending.
pub(super) fn offsets(ranges: &[Range<u64>], size: u64) -> Vec<u64> {
    let mut offsets = Vec::new();
    for range in ranges.iter().filter(|range| !range.is_empty()) {
        offsets.extend((range.start / PIECE..range.end.min(size).div_ceil(PIECE)).map(|index| index * PIECE));
    }
    offsets.sort_unstable();
    offsets.dedup();
    offsets
}

impl Pieces {
    /// True if there may be pieces of the file at `path`.
    pub(super) fn exist(path: &Path) -> bool {
        folder(path).is_dir()
    }

    /// Opens the pieces of the file at `path`, if there are any.
    pub(super) fn open(path: &Path) -> Option<Self> {
        let folder = folder(path);
        let entry = serde_json::from_slice(&fs::read(folder.join(ENTRY)).ok()?).ok()?;
        Some(Self { folder, entry })
    }

    /// Opens the pieces of the file at `path`, or creates their folder. Pieces of another content are removed.
    pub(super) fn create(path: &Path, entry: &Entry) -> Result<Self, FetchError> {
        if let Some(pieces) = Self::open(path).filter(|pieces| pieces.entry == *entry) {
            return Ok(pieces);
        }
        Self::remove(path)?;
        let pieces = Self { folder: folder(path), entry: entry.clone() };
        let description = pieces.folder.join(ENTRY);
        let json = serde_json::to_vec(entry).map_err(|error| FetchError::io("write", &description)(error.into()))?;
        write_atomic(&description, &json)?;
        Ok(pieces)
    }

    /// Removes the pieces of the file at `path`, if there are any. Needs the lock of the file, as [`Pieces::create`] does.
    pub(super) fn remove(path: &Path) -> Result<(), FetchError> {
        let folder = folder(path);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FetchError::io("remove", &folder)(error)),
            _ => Ok(()),
        }
    }

    /// The hub's listing of the complete file.
    pub(super) fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Bytes of the piece at `offset`.
    pub(super) fn range(&self, offset: u64) -> Range<u64> {
        offset..offset.saturating_add(PIECE).min(self.entry.size)
    }

    /// Number of bytes of the pieces at `offsets`.
    pub(super) fn n_bytes(&self, offsets: &[u64]) -> u64 {
        offsets.iter().map(|&offset| self.range(offset)).map(|range| range.end - range.start).sum()
    }

    /// Returns those of `offsets` whose piece is missing. Pieces are read, and those that differ from their digest are
    /// treated as `damaged` says. `checked` is called after each piece with the number of bytes so far.
    pub(super) fn missing(
        &self,
        offsets: &[u64],
        damaged: Damaged,
        mut checked: impl FnMut(u64) -> Result<(), FetchError>,
    ) -> Result<Vec<u64>, FetchError> {
        let found = self.list()?;
        let (mut missing, mut n_bytes) = (Vec::new(), 0);
        for &offset in offsets {
            let (mut is_here, mut is_damaged) = (false, false);
            for path in found.get(&offset).into_iter().flatten() {
                match damaged {
                    _ if self.is_intact(path, offset) => is_here = true,
                    Damaged::Remove => remove_file(path)?,
                    Damaged::Report => is_damaged = true,
                }
            }
            if is_here && !is_damaged {
                n_bytes += self.n_bytes(&[offset]);
                checked(n_bytes)?;
            } else {
                missing.push(offset);
            }
        }
        Ok(missing)
    }

    /// Writes the piece at `offset` completely or not at all.
    pub(super) fn save(&self, offset: u64, bytes: &[u8]) -> Result<(), FetchError> {
        write_atomic(&self.folder.join(piece_name(offset, bytes)), bytes)
    }

    fn is_intact(&self, path: &Path, offset: u64) -> bool {
        let is_same = |bytes: Vec<u8>| {
            bytes.len() as u64 == self.n_bytes(&[offset])
                && path.file_name().is_some_and(|name| *name == *piece_name(offset, &bytes))
        };
        fs::read(path).is_ok_and(is_same)
    }

    /// Paths of all pieces by their offset.
    fn list(&self) -> Result<BTreeMap<u64, Vec<PathBuf>>, FetchError> {
        let mut found: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
        let entries = match fs::read_dir(&self.folder) {
            // The complete file may have replaced them meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries.map_err(FetchError::io("read", &self.folder))?,
        };
        for entry in entries {
            let entry = entry.map_err(FetchError::io("read", &self.folder))?;
            let name = entry.file_name();
            if let Some(offset) = name.to_str().and_then(offset_of) {
                found.entry(offset).or_default().push(entry.path());
            }
        }
        Ok(found)
    }
}

fn remove_file(path: &Path) -> Result<(), FetchError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FetchError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The checkpoint reader knows these names.
fn folder(path: &Path) -> PathBuf {
    let mut folder = path.as_os_str().to_owned();
    folder.push(".pieces");
    folder.into()
}

fn piece_name(offset: u64, bytes: &[u8]) -> String {
    format!("{offset:015}-{}", hex::encode(Sha256::digest(bytes)))
}

fn offset_of(name: &str) -> Option<u64> {
    name.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_cover_the_ranges() {
        let size = 3 * PIECE + 5;
        let check = |ranges: &[Range<u64>], expected: &[u64]| {
            let expected: Vec<u64> = expected.iter().map(|index| index * PIECE).collect();
            assert_eq!(offsets(ranges, size), expected, "{ranges:?}");
        };
        check(&[], &[]);
        check(std::slice::from_ref(&(7..7)), &[]);
        check(&[0..1, 5..PIECE], &[0]);
        check(std::slice::from_ref(&(PIECE - 1..PIECE + 1)), &[0, 1]);
        check(&[3 * PIECE..size, 4..5], &[0, 3]);
        check(std::slice::from_ref(&(0..u64::MAX)), &[0, 1, 2, 3]);
    }

    #[test]
    fn damaged_pieces_and_pieces_of_another_file_are_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.safetensors");
        let entry = |size: u64, oid: &str| Entry { path: "model.safetensors".to_owned(), size, oid: oid.to_owned() };
        assert!(Pieces::open(&path).is_none());
        let pieces = Pieces::create(&path, &entry(PIECE + 3, "a")).expect("created");
        pieces.save(PIECE, b"abc").expect("saved");
        let checked = |pieces: &Pieces, damaged| pieces.missing(&[0, PIECE], damaged, |_| Ok(())).expect("checked");
        let missing = |pieces: &Pieces| checked(pieces, Damaged::Remove);
        assert_eq!(missing(&pieces), [0]);
        let pieces = Pieces::create(&path, &entry(PIECE + 3, "a")).expect("opened");
        assert_eq!((missing(&pieces), pieces.n_bytes(&[0, PIECE])), (vec![0], PIECE + 3));
        let stored = |pieces: &Pieces| pieces.list().expect("listed").into_values().flatten().collect::<Vec<_>>();
        fs::write(&stored(&pieces)[0], b"abd").expect("written");
        assert_eq!((checked(&pieces, Damaged::Report), stored(&pieces).len()), (vec![0, PIECE], 1));
        assert_eq!((missing(&pieces), stored(&pieces)), (vec![0, PIECE], Vec::new()));
        pieces.save(PIECE, b"abc").expect("saved");
        let other = Pieces::create(&path, &entry(PIECE + 3, "b")).expect("created");
        assert_eq!((stored(&other), Pieces::open(&path).expect("there").entry().oid.as_str()), (Vec::new(), "b"));
        Pieces::remove(&path).expect("removed");
        Pieces::remove(&path).expect("nothing to remove");
        remove_file(&path).expect("nothing to remove");
        assert!(Pieces::open(&path).is_none());
    }
}
