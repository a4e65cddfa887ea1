//! Models in several GGUF files, as `llama-gguf-split` writes them: all parts have tensors, and only the first one has the
//! metadata of the model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::GgufFile;
use crate::error::OpenError;
use crate::keys::Keys;
use crate::layout::file_name;
use crate::outline::Outline;
use crate::store::Store;

const COUNT: &str = "split.count";
const NUMBER: &str = "split.no";
const N_TENSORS: &str = "split.tensors.count";

/// Name of a part, `NAME-00001-of-00003.gguf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartName {
    folder: PathBuf,
    stem: String,
    count: usize,
}

impl PartName {
    /// The name of one of several parts; `None` for another name.
    pub(crate) fn parse(path: &Path) -> Option<Self> {
        let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (head, count) = stem.rsplit_once("-of-")?;
        let (stem, number) = head.rsplit_once('-')?;
        let (number, count) = (five_digits(number)?, five_digits(count)?);
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        (count > 1 && (1..=count).contains(&number)).then(|| Self { folder, stem: stem.to_owned(), count })
    }

    /// Path of the first part of the model that the file belongs to: that of the file itself if its name is no part's.
    pub(crate) fn first(path: &Path) -> PathBuf {
        Self::parse(path).map_or_else(|| path.to_owned(), |name| name.path(1))
    }

    /// Paths of all parts.
    pub(crate) fn paths(&self) -> impl Iterator<Item = PathBuf> + '_ {
        (1..=self.count).map(|number| self.path(number))
    }

    fn path(&self, number: usize) -> PathBuf {
        self.folder.join(format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count))
    }
}

fn five_digits(text: &str) -> Option<usize> {
    let is_number = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

/// Paths of the parts by the metadata of the first one; the first file alone if it is the complete model.
pub(super) fn part_paths(first: &Path, keys: Keys<'_>) -> Result<Vec<PathBuf>, OpenError> {
    // Joined files state 0 parts.
    let count = match keys.optional_index(COUNT)? {
        None | Some(0 | 1) => return Ok(vec![first.to_owned()]),
        Some(count) => count,
    };
    match PartName::parse(first).filter(|name| name.count == count && name.path(1) == first) {
        Some(name) => Ok(name.paths().collect()),
        None => Err(keys.unsupported(
            COUNT,
            format!(
                "parts with the names that they had, NAME-00001-of-{count:05}.gguf and so on in one folder, or a model in \
                 one file: `llama-gguf-split --merge FIRST-PART.gguf JOINED.gguf`"
            ),
        )),
    }
}

/// Joins the tensors of the first part, whose keys are `keys`, and of the others.
pub(super) fn join(first: GgufFile, keys: Keys<'_>, outline: &Outline) -> Result<Store, OpenError> {
    let path = first.file.path().to_owned();
    let paths = part_paths(&path, keys)?;
    let expected = Expected { first: file_name(&path), count: paths.len(), tensors: keys.optional_index(N_TENSORS)? };
    let is_split = paths.len() > 1;
    if is_split {
        expected.check(0, keys)?;
    }
    let mut store = Store { files: Vec::new(), tensors: BTreeMap::new(), experts: BTreeMap::new(), layers: Vec::new() };
    add(&mut store, first)?;
    for (number, path) in paths.iter().enumerate().skip(1) {
        let part = GgufFile::open(path, outline)?;
        let metadata = part.scalars();
        expected.check(number, Keys::new(path, &metadata))?;
        add(&mut store, part)?;
    }
    match expected.tensors.filter(|&tensors| is_split && tensors != store.tensors.len()) {
        Some(_) => Err(keys.wrong(N_TENSORS, format!("{}, the tensors in all parts", store.tensors.len()))),
        None => Ok(store),
    }
}

fn add(store: &mut Store, part: GgufFile) -> Result<(), OpenError> {
    for (name, mut stored) in part.tensors {
        stored.file = store.files.len();
        if let Some(other) = store.tensors.insert(name.clone(), stored) {
            let other = file_name(store.files[other.file].path());
            return Err(part.file.header(format!("its tensor `{name}` is also in {other}")));
        }
    }
    store.files.push(part.file);
    Ok(())
}

/// Keys that the parts of one model have.
struct Expected {
    /// Name of the first part.
    first: String,
    count: usize,
    /// Number of tensors in all parts.
    tensors: Option<usize>,
}

impl Expected {
    /// Checks the keys of the part with this number, from 0.
    fn check(&self, number: usize, keys: Keys<'_>) -> Result<(), OpenError> {
        let Self { first, count, tensors } = self;
        if keys.optional_index(COUNT)? != Some(*count) {
            return Err(keys.wrong(COUNT, format!("{count}, as in {first}; the files are parts of different models")));
        }
        if keys.optional_index(NUMBER)? != Some(number) {
            let expected = format!("{number}, since its name says that it is part {} of {count}", number + 1);
            return Err(keys.wrong(NUMBER, expected));
        }
        let found = keys.optional_index(N_TENSORS)?;
        match tensors {
            Some(tensors) if found != Some(*tensors) => {
                let expected = format!("{tensors}, as in {first}; the files are parts of different models");
                Err(keys.wrong(N_TENSORS, expected))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_names_are_parsed() {
        let name = PartName::parse(Path::new("a/b-of-c-00002-of-00003.gguf")).expect("a part");
        let paths: Vec<PathBuf> = name.paths().collect();
        let expected = ["00001", "00002", "00003"].map(|part| PathBuf::from(format!("a/b-of-c-{part}-of-00003.gguf")));
        assert_eq!(paths, expected);
        assert_eq!(PartName::first(Path::new("m-00002-of-00002.gguf")), Path::new("m-00001-of-00002.gguf"));
        for other in [
            "m.gguf",
            "m-00001-of-00001.gguf",
            "m-00000-of-00002.gguf",
            "m-00003-of-00002.gguf",
            "m-1-of-2.gguf",
            "m-+0001-of-00002.gguf",
            "m-00001-of-00002.safetensors",
            "00001-of-00002.gguf",
        ] {
            assert_eq!(PartName::parse(Path::new(other)), None, "{other}");
            assert_eq!(PartName::first(Path::new(other)), Path::new(other));
        }
    }
}
