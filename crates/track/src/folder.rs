use std::io;
use std::path::{Path, PathBuf};

use chrono::Local;
use sepal_machine::durable;
use serde::de::DeserializeOwned;

use crate::records::MetricsLog;

/// Failed write to a run folder.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("write {}", path.display())]
pub struct WriteError {
    pub path: PathBuf,
    /// Cause, for example no space or no permission.
    pub source: io::Error,
}

/// Folder of one run: `PARENT/NAME-TIME/`.
#[derive(Debug, Clone)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Creates a new folder.
    ///
    /// # Errors
    /// [`WriteError`] if the folder cannot be created.
    pub fn create(parent: &Path, name: &str) -> Result<Self, WriteError> {
        let stamp = Local::now().format("%Y%m%d-%H%M%S").to_string();
        durable::create_folders(parent).map_err(|source| WriteError { path: parent.to_owned(), source })?;
        for attempt in 0.. {
            let suffix = if attempt == 0 { String::new() } else { format!("-{attempt}") };
            let path = parent.join(format!("{name}-{stamp}{suffix}"));
            match create_durably(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 1000 => {}
                Err(source) => return Err(WriteError { path, source }),
            }
        }
        unreachable!("the loop above returns")
    }

    /// Creates a new folder at `path`, whose parent exists.
    ///
    /// # Errors
    /// [`WriteError`] if the folder exists or cannot be created.
    pub fn create_at(path: &Path) -> Result<Self, WriteError> {
        create_durably(path).map_err(|source| WriteError { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned() })
    }

    /// Opens an existing folder.
    ///
    /// # Errors
    /// [`WriteError`] if the folder cannot be listed.
    pub fn open(path: &Path) -> Result<Self, WriteError> {
        std::fs::read_dir(path).map_err(|source| WriteError { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned() })
    }

    /// Returns the path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file of the folder atomically.
    ///
    /// # Errors
    /// [`WriteError`] if the write fails; the previous file stays.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), WriteError> {
        write_atomic(&self.path.join(name), content)
    }

    /// Opens `metrics.jsonl` for appending, with a lock against other processes.
    ///
    /// # Errors
    /// [`WriteError`] if the file cannot be opened, or another process holds the lock.
    pub fn metrics(&self) -> Result<MetricsLog, WriteError> {
        MetricsLog::open(self.path.join("metrics.jsonl"))
    }
}

/// Creates a folder, and syncs the one that contains it.
fn create_durably(path: &Path) -> io::Result<()> {
    std::fs::create_dir(path)?;
    durable::sync_folder(durable::folder_of(path))
}

/// Removes temporary files of killed processes from `folder`.
///
/// # Errors
/// [`io::Error`] if the folder cannot be listed.
pub fn remove_partial_files(folder: &Path) -> io::Result<()> {
    // `.tmp` is the prefix of earlier versions.
    let is_temporary = |name: &str| name.starts_with(durable::TEMPORARY_PREFIX) || name.starts_with(".tmp");
    for entry in std::fs::read_dir(folder)?.flatten() {
        if entry.file_name().to_str().is_some_and(is_temporary) {
            // Best effort: a file that stays does no harm.
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Returns the current time in RFC 3339 with the local zone.
pub fn timestamp() -> String {
    Local::now().format("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// Reads a JSON file; none if it is missing or invalid.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&sepal_machine::regular::read(path).ok()?).ok()
}

/// Writes a file atomically, so that it survives a loss of power.
///
/// # Errors
/// [`WriteError`] if the write fails; the previous file stays.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<(), WriteError> {
    durable::write(path, content).map_err(|source| WriteError { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn create_makes_distinct_folders() {
        let parent = tempfile::tempdir().expect("a folder");
        let runs: Vec<RunFolder> =
            (0..3).map(|_| RunFolder::create(parent.path(), "sst2").expect("a run folder")).collect();
        assert!(runs.iter().all(|run| run.path().is_dir()));
        assert!(runs[0].path() != runs[1].path() && runs[1].path() != runs[2].path());
    }

    #[test]
    fn write_atomic_failure_keeps_previous_file() {
        let parent = tempfile::tempdir().expect("a folder");
        let path = parent.path().join("manifest.json");
        write_atomic(&path, b"old").expect("written");
        write_atomic(&path, b"new").expect("written");
        assert_eq!(std::fs::read(&path).expect("read"), b"new");
        let nowhere = parent.path().join("missing").join("manifest.json");
        let error = write_atomic(&nowhere, b"x").expect_err("no such folder");
        assert_eq!(error.path, nowhere);
        let files: Vec<_> = std::fs::read_dir(parent.path()).expect("listed").collect();
        assert_eq!(files.len(), 1, "no temporary file is left");
    }
}
