use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sepal_machine::regular;

use crate::error::{BoxError, OpenError, ReadError};
use crate::layout::file_name;
use crate::model_path::outline_of;
use crate::pieces::Pieces;

/// A weights file. Reads are positioned, so that threads can share it. It stays the file that was opened, even if another
/// is moved into its place. It may arrive after it is named, complete or in pieces.
#[derive(Debug)]
pub(crate) struct WeightsFile {
    path: PathBuf,
    file: OnceLock<File>,
    len: u64,
    /// Beginning of a file that was not there when it was named. A file that arrives must begin with it.
    head: Vec<u8>,
    /// Further bytes of such a file, by their offset.
    known: BTreeMap<u64, Vec<u8>>,
    pieces: Pieces,
}

impl WeightsFile {
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        let file = regular::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        Ok(Self { file: OnceLock::from(file), ..Self::absent(path, Vec::new(), len, BTreeMap::new()) })
    }

    /// A file that is not there yet, with this beginning and at least this length. `known` are further bytes of it.
    pub(crate) fn absent(path: &Path, head: Vec<u8>, len: u64, known: BTreeMap<u64, Vec<u8>>) -> Self {
        Self { path: path.to_owned(), file: OnceLock::new(), len, head, known, pieces: Pieces::new(path) }
    }

    /// True if the complete file is there, also if it arrived after it was named.
    pub(crate) fn is_complete(&self) -> bool {
        self.file.get().is_some() || self.path.is_file()
    }

    /// True if the complete file is there, or these bytes are known, or pieces with all of them are there.
    pub(crate) fn has(&self, offset: u64, len: u64) -> bool {
        self.is_complete() || self.is_outlined(offset, len) || self.pieces.has(offset, len)
    }

    /// Checks that these bytes of the tensor `name` are there, before memory for them is allocated. All tensors lie within a
    /// complete file, since its length is checked when it is opened.
    ///
    /// # Errors
    /// [`ReadError::MissingShard`] if some of them are not there; [`ReadError::Io`] for another file than the outline's.
    pub(crate) fn require(&self, name: &str, offset: u64, len: u64) -> Result<(), ReadError> {
        if self.is_outlined(offset, len) {
            return Ok(());
        }
        match self.open_file() {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.pieces.has(offset, len) => Ok(()),
            file => file.map(drop).map_err(|source| self.read_error(name, source)),
        }
    }

    /// Reads `count` numbers of the tensor `name`, as they are stored.
    ///
    /// # Errors
    /// As [`WeightsFile::require`], or [`ReadError::Io`] if the file cannot be read.
    pub(crate) fn read_tensor<T: bytemuck::Pod>(
        &self,
        name: &str,
        offset: u64,
        count: usize,
    ) -> Result<Vec<T>, ReadError> {
        self.require(name, offset, count as u64 * size_of::<T>() as u64)?;
        let mut numbers = vec![<T as bytemuck::Zeroable>::zeroed(); count];
        self.read_at(offset, bytemuck::cast_slice_mut(&mut numbers)).map_err(|source| self.read_error(name, source))?;
        Ok(numbers)
    }

    /// Error of reading the tensor `name`.
    pub(crate) fn read_error(&self, name: &str, source: io::Error) -> ReadError {
        let (name, path) = (name.to_owned(), self.path.clone());
        match source.kind() {
            io::ErrorKind::NotFound => ReadError::MissingShard { name, path },
            _ => ReadError::Io { name, path, source },
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Reads bytes.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if neither the file nor the pieces with these bytes are there.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if let Some(bytes) = self.outlined(offset, buffer.len()) {
            buffer.copy_from_slice(bytes);
            return Ok(());
        }
        match self.open_file() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.pieces.read_at(offset, buffer),
            file => file?.read_exact_at(buffer, offset),
        }
    }

    /// A reader of the whole file, or of the known beginning, with a position of its own.
    pub(crate) fn reader(&self) -> impl Read + Seek + '_ {
        io::BufReader::with_capacity(1 << 16, Cursor { file: self, position: 0 })
    }

    fn is_outlined(&self, offset: u64, len: u64) -> bool {
        usize::try_from(len).is_ok_and(|len| self.outlined(offset, len).is_some())
    }

    /// Bytes of an absent file that are known.
    fn outlined(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let slice = |start: u64, bytes: &[u8]| {
            let start = usize::try_from(offset - start).ok()?;
            Some(start..start.checked_add(len)?).filter(|range| range.end <= bytes.len())
        };
        if let Some(range) = slice(0, &self.head) {
            return self.head.get(range);
        }
        let (start, bytes) = self.known.range(..=offset).next_back()?;
        bytes.get(slice(*start, bytes)?)
    }

    /// The open file; opens it if it has arrived.
    fn open_file(&self) -> io::Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = regular::open(&self.path)?;
        let mut head = vec![0; self.head.len()];
        if file.metadata()?.len() < self.len || file.read_exact_at(&mut head, 0).is_err() || head != self.head {
            let outline = file_name(&outline_of(&self.path));
            let problem = format!(
                "it is another file than the outline beside it describes; remove {outline}, or fetch the file again"
            );
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
        let head =
            usize::try_from(self.position).ok().and_then(|start| self.file.head.get(start..)).unwrap_or_default();
        let read = match head {
            [] => self.file.open_file()?.read_at(buffer, self.position)?,
            mut head => head.read(buffer)?,
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_in_the_place_of_weights_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        let is_refused = |error: &io::Error| error.kind() == io::ErrorKind::InvalidInput;
        std::os::unix::fs::symlink("/dev/zero", &path).expect("a link");
        let opened = WeightsFile::open(&path);
        assert!(matches!(&opened, Err(OpenError::Io { source, .. }) if is_refused(source)), "{opened:?}");
        let arrived = WeightsFile::absent(&path, Vec::new(), 8, BTreeMap::new());
        assert!(arrived.open_file().is_err_and(|error| is_refused(&error)));
    }
}
