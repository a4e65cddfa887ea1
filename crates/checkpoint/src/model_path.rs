//! Forms in which checkpoints lie on a disk.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::OpenError;
use crate::folder::{self, Folder};
use crate::gguf;
use crate::gguf::PartName;
use crate::layout::{CONFIG, SINGLE, file_name, has_weights, is_sharded, shards};
use crate::outline::{OUTLINE, Outline};

/// Path of a checkpoint, by its form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModelPath {
    /// A folder in the HF layout.
    Folder(PathBuf),
    /// A GGUF file; of a model in parts, the first one.
    Gguf(PathBuf),
}

/// Names of the weights files that the model at `path` consists of and that are not there: shards, parts of a GGUF file, or
/// the only file.
///
/// # Errors
/// [`OpenError`] if there is no model, or its index cannot be read.
pub fn missing_shards(path: impl AsRef<Path>) -> Result<Vec<String>, OpenError> {
    Ok(ModelPath::find(path.as_ref())?.missing()?.iter().map(|file| file_name(file)).collect())
}

impl ModelPath {
    /// Finds the model at a path. A GGUF file may be missing, since an outline can describe it.
    pub(crate) fn find(path: &Path) -> Result<Self, OpenError> {
        let layout = |problem: String| OpenError::Layout { path: path.to_owned(), problem };
        let metadata = match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_gguf(path) => return Ok(Self::of_gguf(path)),
            Err(source) => return Err(OpenError::Io { path: path.to_owned(), source }),
            Ok(metadata) => metadata,
        };
        if !metadata.is_dir() {
            let problem = "a file must be a .gguf; for safetensors give the folder that holds config.json";
            return if is_gguf(path) { Ok(Self::of_gguf(path)) } else { Err(layout(problem.to_owned())) };
        }
        if has_weights(path) {
            return Ok(Self::Folder(path.to_owned()));
        }
        let files = gguf_files(path)?;
        let mut models: BTreeSet<PathBuf> = files.iter().map(|file| PartName::first(file)).collect();
        match (models.pop_first(), models.is_empty()) {
            (Some(model), true) => Ok(Self::Gguf(model)),
            (Some(_), false) => {
                let parts = if models.len() + 1 < files.len() { ", of a model in parts the first one" } else { "" };
                Err(layout(format!("it holds {} .gguf files; name the one that is meant{parts}", files.len())))
            }
            (None, _) if path.join(CONFIG).is_file() => Ok(Self::Folder(path.to_owned())),
            (None, _) => Err(layout("it holds neither config.json with model.safetensors nor a .gguf file".to_owned())),
        }
    }

    fn of_gguf(path: &Path) -> Self {
        Self::Gguf(PartName::first(path))
    }

    /// Weights files, sorted, as far as the index and the names of parts tell.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>, OpenError> {
        match self {
            Self::Folder(folder) if is_sharded(folder) => Ok(shards(folder)?.into_keys().collect()),
            Self::Folder(folder) => Ok(vec![folder.join(SINGLE)]),
            Self::Gguf(first) => {
                Ok(PartName::parse(first).map_or_else(|| vec![first.clone()], |name| name.paths().collect()))
            }
        }
    }

    /// Weights files that are not there.
    pub(crate) fn missing(&self) -> Result<Vec<PathBuf>, OpenError> {
        Ok(self.files()?.into_iter().filter(|file| !file.is_file()).collect())
    }

    /// Path of the outline. A folder may hold several GGUF models.
    pub(crate) fn outline(&self) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(OUTLINE),
            Self::Gguf(first) => first.with_file_name(format!(".sepal-outline.{}.json", file_name(first))),
        }
    }

    /// Reads the configuration and the location of the tensors; `outline` describes missing files.
    pub(crate) fn open(&self, outline: &Outline) -> Result<Folder, OpenError> {
        match self {
            Self::Folder(folder) => folder::open(folder, outline),
            Self::Gguf(first) => {
                let (config, store) = gguf::open(first, outline)?;
                Ok(Folder { config, store, multimodal: None })
            }
        }
    }
}

/// Path of the outline that describes a weights file.
pub(crate) fn outline_of(file: &Path) -> PathBuf {
    if is_gguf(file) { ModelPath::of_gguf(file).outline() } else { file.with_file_name(OUTLINE) }
}

fn gguf_files(folder: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let io = |source| OpenError::Io { path: folder.to_owned(), source };
    let entries = std::fs::read_dir(folder).map_err(io)?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(io)?;
    Ok(paths.into_iter().filter(|path| is_gguf(path)).collect())
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}
