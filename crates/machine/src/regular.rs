//! Reading of regular files. A folder of a stranger may have a pipe or a device under any name, and reading one may never end.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Opens a file.
///
/// # Errors
/// [`io::Error`] of opening it, or of the kind `InvalidInput` for a pipe, a socket or a device.
pub fn open(path: &Path) -> io::Result<File> {
    check(path)?;
    File::open(path)
}

/// Reads the bytes of a file.
///
/// # Errors
/// [`io::Error`] of reading it, or of the kind `InvalidInput` for a pipe, a socket or a device.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    check(path)?;
    fs::read(path)
}

/// Reads the text of a file.
///
/// # Errors
/// [`io::Error`] of reading it, or of the kind `InvalidInput` for a pipe, a socket or a device.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    check(path)?;
    fs::read_to_string(path)
}

/// Refuses a path that is neither a file nor a folder, whose error is that of reading. The kind is looked up before opening,
/// since opening a pipe waits for a writer.
fn check(path: &Path) -> io::Result<()> {
    let kind = fs::metadata(path)?.file_type();
    match kind.is_file() || kind.is_dir() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a pipe, a socket or a device, and no file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        fs::write(&path, "text").expect("written");
        assert_eq!(read(&path).expect("read"), b"text");
        assert_eq!(read_to_string(&path).expect("read"), "text");
        assert!(open(&path).is_ok());
        let missing = read(&folder.path().join("missing")).expect_err("missing");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert!(read(folder.path()).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn devices_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("manifest.json");
        std::os::unix::fs::symlink("/dev/zero", &path).expect("a link");
        for error in [read(&path).err(), read_to_string(&path).err(), open(&path).err()] {
            assert_eq!(error.map(|error| error.kind()), Some(io::ErrorKind::InvalidInput));
        }
    }
}
