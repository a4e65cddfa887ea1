use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::error::{BoxError, OpenError};

/// A weights file. Reads are positioned, so that threads can share it. It stays the file that was opened, even if another
/// is moved into its place. It may arrive after it is named.
#[derive(Debug)]
pub(crate) struct WeightsFile {
    path: PathBuf,
    file: OnceLock<File>,
    len: u64,
    /// Bytes that a file that arrives later must begin with.
    head: Vec<u8>,
}

impl WeightsFile {
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        Ok(Self { path: path.to_owned(), file: OnceLock::from(file), len, head: Vec::new() })
    }

    /// A file that is not there yet, with this length and beginning.
    pub(crate) fn absent(path: &Path, head: Vec<u8>, len: u64) -> Self {
        Self { path: path.to_owned(), file: OnceLock::new(), len, head }
    }

    /// True if the file can be read, also if it arrived after it was named.
    pub(crate) fn is_present(&self) -> bool {
        self.file.get().is_some() || self.path.is_file()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.open_file()?.read_exact_at(buffer, offset)
    }

    /// A reader of the whole file with a position of its own.
    pub(crate) fn reader(&self) -> impl Read + Seek + '_ {
        io::BufReader::with_capacity(1 << 16, Cursor { file: self, position: 0 })
    }

    /// The open file; opens it if it has arrived.
    fn open_file(&self) -> io::Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = File::open(&self.path)?;
        let mut head = vec![0; self.head.len()];
        if file.metadata()?.len() != self.len || file.read_exact_at(&mut head, 0).is_err() || head != self.head {
            let problem = "it is another file than the outline beside it describes";
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        Ok(self.file.get_or_init(|| file))
    }

    pub(crate) fn io(&self, source: io::Error) -> OpenError {
        OpenError::Io { path: self.path.clone(), source }
    }

    /// A header of this file that cannot be parsed.
    pub(crate) fn header(&self, source: impl Into<BoxError>) -> OpenError {
        OpenError::Header { path: self.path.clone(), source: source.into() }
    }
}

/// A position in a shared file.
struct Cursor<'a> {
    file: &'a WeightsFile,
    position: u64,
}

impl Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.open_file()?.read_at(buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Cursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.file.len.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}
