//! Folders that are written completely or not at all.

use std::io;
use std::path::{Path, PathBuf};

use sepal_machine::durable;
use tempfile::TempDir;

/// Error of writing a folder. A previous folder at its path is unchanged.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum FolderError {
    /// The path exists.
    #[error("write {path}: it exists")]
    Exists { path: PathBuf },
    /// The path exists and is another kind of folder.
    #[error("replace {path}: it is not a folder with `{expected}`")]
    Foreign { path: PathBuf, expected: &'static str },
    /// Tensors cannot be written.
    #[error("write tensors")]
    Tensors(#[from] sepal_nn::file::WriteError),
    /// The file system failed.
    #[error("write {path}")]
    Io { path: PathBuf, source: io::Error },
}

/// Folder beside its target, until it is moved there.
pub(crate) struct Staged {
    folder: TempDir,
    target: PathBuf,
    marker: &'static str,
    overwrite: bool,
}

impl Staged {
    /// Creates a folder for `target`, which must not exist. With `overwrite` it may be a folder with the file `marker`; no
    /// other folder is ever removed.
    pub(crate) fn new(target: &Path, marker: &'static str, overwrite: bool) -> Result<Self, FolderError> {
        check(target, marker, overwrite)?;
        let io = |source| FolderError::Io { path: target.to_owned(), source };
        let parent = durable::folder_of(target);
        durable::create_folders(parent).map_err(io)?;
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        {
            // Usual mode of a new folder; the umask restricts it.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o777));
        }
        let folder = builder.prefix(durable::TEMPORARY_PREFIX).tempdir_in(parent).map_err(io)?;
        Ok(Self { folder, target: target.to_owned(), marker, overwrite })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn write(&self, name: &str, content: &[u8]) -> Result<(), FolderError> {
        let written = durable::write(&self.path().join(name), content);
        written.map_err(|source| FolderError::Io { path: self.target.join(name), source })
    }

    /// Moves the folder to its target and syncs it. Its files are synced already.
    #[expect(clippy::disallowed_methods, reason = "the folder is synced after the last of several renames")]
    pub(crate) fn finish(self) -> Result<(), FolderError> {
        check(&self.target, self.marker, self.overwrite)?;
        let io = |source| FolderError::Io { path: self.target.clone(), source };
        durable::sync_folder(self.folder.path()).map_err(io)?;
        let parent = durable::folder_of(&self.target);
        // The previous folder is set aside until the new one is in place, and restored if that fails.
        let aside = tempfile::Builder::new().prefix(".replaced-").tempdir_in(parent).map_err(io)?;
        let before = aside.path().join("before");
        let replaces = self.target.exists();
        if replaces {
            std::fs::rename(&self.target, &before).map_err(io)?;
        }
        if let Err(error) = std::fs::rename(self.folder.path(), &self.target) {
            if replaces && let Err(source) = std::fs::rename(&before, &self.target) {
                // The previous folder must not be deleted with `aside`.
                let path = aside.keep().join("before");
                return Err(FolderError::Io { path, source });
            }
            return Err(io(error));
        }
        // The folder has moved, so that there is nothing to delete.
        let _ = self.folder.keep();
        durable::sync_folder(parent).map_err(io)
    }
}

fn check(target: &Path, marker: &'static str, overwrite: bool) -> Result<(), FolderError> {
    let path = target.to_owned();
    match std::fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(FolderError::Io { path, source }),
        Ok(_) if !overwrite => Err(FolderError::Exists { path }),
        Ok(found) if found.is_dir() && target.join(marker).is_file() => Ok(()),
        Ok(_) => Err(FolderError::Foreign { path, expected: marker }),
    }
}

pub(crate) fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(text)
}
