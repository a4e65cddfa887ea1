//! Folders that are there whole or not at all.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A folder that could not be written; what was at its place before is still there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// Something is there already.
    #[error("write {path}: it is there already; give another place, or --overwrite")]
    Exists {
        /// The place.
        path: PathBuf,
    },
    /// The place holds something else than what would be written there.
    #[error("write {path} over what is there: it is no folder that holds `{expected}`")]
    Foreign {
        /// The place.
        path: PathBuf,
        /// A file that such a folder has.
        expected: &'static str,
    },
    /// Tensors cannot be written.
    #[error("write tensors")]
    Tensors(#[from] sepal_nn::file::WriteError),
    /// The disk refused.
    #[error("write {path}")]
    Io {
        /// The place.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A folder beside its place, until it is moved there.
pub(crate) struct Staged {
    folder: TempDir,
    place: PathBuf,
    mark: &'static str,
    overwrite: bool,
}

impl Staged {
    /// For `place`, which must be free unless `overwrite`: then it may be a folder with a file `mark`, so that nothing else
    /// is ever removed.
    pub(crate) fn new(place: &Path, mark: &'static str, overwrite: bool) -> Result<Self, FolderError> {
        check(place, mark, overwrite)?;
        let io = |source| FolderError::Io { path: place.to_owned(), source };
        let parent = place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent).map_err(io)?;
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        {
            // The usual mode of a new folder: the umask takes away what the user does not grant.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o777));
        }
        let folder = builder.prefix(".writing-").tempdir_in(parent).map_err(io)?;
        Ok(Self { folder, place: place.to_owned(), mark, overwrite })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file. The folder has its place only once all are written, so that nobody sees a half of one.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> Result<(), FolderError> {
        let write = || {
            let mut file = File::create(self.path().join(name))?;
            file.write_all(content)?;
            file.sync_all()
        };
        write().map_err(|source| FolderError::Io { path: self.place.join(name), source })
    }

    /// Moves it to its place. Files are on disk already; then the folder is, too.
    pub(crate) fn finish(self) -> Result<(), FolderError> {
        check(&self.place, self.mark, self.overwrite)?;
        let io = |source| FolderError::Io { path: self.place.clone(), source };
        sync(self.folder.path());
        let parent = self.folder.path().parent().unwrap_or(Path::new(".")).to_owned();
        // What was there before is beside its place until the new one has it, and comes back if that fails.
        let aside = tempfile::Builder::new().prefix(".replaced-").tempdir_in(&parent).map_err(io)?;
        let before = aside.path().join("before");
        let replaces = self.place.exists();
        if replaces {
            std::fs::rename(&self.place, &before).map_err(io)?;
        }
        if let Err(error) = std::fs::rename(self.folder.path(), &self.place) {
            if replaces && let Err(source) = std::fs::rename(&before, &self.place) {
                // It is not removed with its place.
                let kept = aside.keep().join("before");
                return Err(FolderError::Io { path: kept, source });
            }
            return Err(io(error));
        }
        // Its place is another now: there is nothing left to remove.
        let _ = self.folder.keep();
        sync(&parent);
        Ok(())
    }
}

fn check(place: &Path, mark: &'static str, overwrite: bool) -> Result<(), FolderError> {
    let path = place.to_owned();
    match std::fs::symlink_metadata(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(FolderError::Io { path, source }),
        Ok(_) if !overwrite => Err(FolderError::Exists { path }),
        Ok(found) if found.is_dir() && place.join(mark).is_file() => Ok(()),
        Ok(_) => Err(FolderError::Foreign { path, expected: mark }),
    }
}

/// Not every file system can sync a folder.
fn sync(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        folder.sync_all().ok();
    }
}

/// A value as a file of JSON.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(text)
}
