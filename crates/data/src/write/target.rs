use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sepal_machine::durable::{PendingFile, folder_of};

use super::WriteError;

pub(super) enum Target {
    File { file: PendingFile, path: PathBuf, overwrite: bool },
    Stream(Box<dyn Write + Send>),
}

impl Target {
    /// Creates a file that gets its name in [`Target::finish`].
    pub(super) fn file(path: &Path, overwrite: bool) -> Result<Self, WriteError> {
        // A link stays, and its file is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        match fs::metadata(&path) {
            Ok(found) if !found.is_file() => return Err(WriteError::NotAFile { path }),
            Ok(_) if !overwrite => return Err(WriteError::Exists { path }),
            _ => {}
        }
        if path.file_name().is_none() {
            return Err(WriteError::NotAFile { path });
        }
        let folder = folder_of(&path);
        // The error's own text contains the temporary name. A missing folder is reported before.
        let folder_error = |source: io::Error| WriteError::Folder { folder: folder.to_owned(), source };
        fs::metadata(folder).map_err(folder_error)?;
        let file = PendingFile::create(&path).map_err(|source| folder_error(source.kind().into()))?;
        Ok(Target::File { file, path, overwrite })
    }

    pub(super) fn stream(out: impl Write + Send + 'static) -> Self {
        Target::Stream(Box::new(out))
    }

    pub(super) fn handle(&self) -> Result<Option<File>, WriteError> {
        let Target::File { file, path, .. } = self else { return Ok(None) };
        file.as_file().try_clone().map(Some).map_err(|source| write_error(path, source))
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        if bytes.is_empty() {
            return Ok(());
        }
        match self {
            Target::File { file, path, .. } => file.write_all(bytes).map_err(|source| write_error(path, source)),
            Target::Stream(out) => {
                let written = out.write_all(bytes).and_then(|()| out.flush());
                written.map_err(|source| write_error(Path::new("the stream"), source))
            }
        }
    }

    pub(super) fn finish(self) -> Result<(), WriteError> {
        let Target::File { file, path, overwrite } = self else { return Ok(()) };
        let published = if overwrite { file.publish() } else { file.publish_new() };
        match published {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(WriteError::Exists { path }),
            other => other.map_err(|source| write_error(&path, source)),
        }
    }
}

fn write_error(path: &Path, source: io::Error) -> WriteError {
    match source.kind() {
        io::ErrorKind::BrokenPipe => WriteError::Closed,
        _ => WriteError::Io { path: path.to_owned(), source },
    }
}
