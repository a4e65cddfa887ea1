use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Zoned;

use crate::records::MetricsLog;

/// Something that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("write {}", path.display())]
pub struct WriteError {
    /// What was to be written.
    pub path: PathBuf,
    /// What the system said: no space, no permission.
    #[source]
    pub source: io::Error,
}

/// The folder of one run: `PARENT/NAME-TIME/`.
#[derive(Debug, Clone)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Makes a folder that did not exist before.
    ///
    /// # Errors
    /// [`WriteError`] if the system refuses.
    pub fn create(parent: &Path, name: &str) -> Result<Self, WriteError> {
        let stamp = Zoned::now().strftime("%Y%m%d-%H%M%S").to_string();
        std::fs::create_dir_all(parent).map_err(|source| WriteError { path: parent.to_owned(), source })?;
        for attempt in 0.. {
            let suffix = if attempt == 0 { String::new() } else { format!("-{attempt}") };
            let path = parent.join(format!("{name}-{stamp}{suffix}"));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 1000 => {}
                Err(source) => return Err(WriteError { path, source }),
            }
        }
        unreachable!("the loop above returns")
    }

    /// A folder that is there.
    ///
    /// # Errors
    /// [`WriteError`] if it is not there.
    pub fn open(path: &Path) -> Result<Self, WriteError> {
        std::fs::read_dir(path).map_err(|source| WriteError { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file of the folder whole.
    ///
    /// # Errors
    /// [`WriteError`] if the system refuses; what was there before stays.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), WriteError> {
        write_whole(&self.path.join(name), content)
    }

    /// Opens `metrics.jsonl` for appending. No other process can as long as this one has it.
    ///
    /// # Errors
    /// [`WriteError`] if the system refuses, or another process has it.
    pub fn metrics(&self) -> Result<MetricsLog, WriteError> {
        MetricsLog::open(self.path.join("metrics.jsonl"))
    }
}

/// What begins the name of a file until it is whole.
const WRITING: &str = ".writing-";

/// Removes what processes that were killed left of files that they were about to write into `folder`.
///
/// # Errors
/// If the folder cannot be listed.
pub fn remove_unfinished(folder: &Path) -> io::Result<()> {
    // What other writers of this program name them.
    let is_left = |name: &str| name.starts_with(WRITING) || name.starts_with(".tmp");
    for entry in std::fs::read_dir(folder)?.flatten() {
        if entry.file_name().to_str().is_some_and(is_left) {
            // One that stays is in nobody's way.
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// The time now, RFC 3339 with the local zone.
pub fn now() -> String {
    Zoned::now().strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// Writes a file whole or not at all: beside its place, synced, renamed.
///
/// # Errors
/// [`WriteError`] if the system refuses; what was there before stays.
pub fn write_whole(path: &Path, content: &[u8]) -> Result<(), WriteError> {
    let write = || {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(WRITING);
        #[cfg(unix)]
        {
            // The usual mode of a new file: the umask takes away what the user does not grant.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let mut file = builder.tempfile_in(parent)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(|source| WriteError { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_never_collide() {
        let parent = tempfile::tempdir().expect("a folder");
        let runs: Vec<RunFolder> =
            (0..3).map(|_| RunFolder::create(parent.path(), "sst2").expect("a run folder")).collect();
        assert!(runs.iter().all(|run| run.path().is_dir()));
        assert!(runs[0].path() != runs[1].path() && runs[1].path() != runs[2].path());
    }

    #[test]
    fn a_failed_write_leaves_what_was_there() {
        let parent = tempfile::tempdir().expect("a folder");
        let path = parent.path().join("manifest.json");
        write_whole(&path, b"old").expect("written");
        write_whole(&path, b"new").expect("written");
        assert_eq!(std::fs::read(&path).expect("read"), b"new");
        let nowhere = parent.path().join("missing").join("manifest.json");
        let error = write_whole(&nowhere, b"x").expect_err("no such folder");
        assert_eq!(error.path, nowhere);
        let left: Vec<_> = std::fs::read_dir(parent.path()).expect("listed").collect();
        assert_eq!(left.len(), 1, "no temporary file is left");
    }
}
