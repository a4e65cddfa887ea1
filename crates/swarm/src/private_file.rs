use std::fs;
use std::io::{self, Write};
use std::path::Path;

use sepal_machine::durable::{self, PendingFile};

/// Writes a line to a file that only its owner can read, from its creation on. An existing file is replaced at once.
///
/// # Errors
/// Error of the operating system.
pub fn replace_private_file(path: &Path, line: &str) -> io::Result<()> {
    // A link stays, and its file is replaced.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    private_file(&path, line)?.publish()
}

/// Writes a line to a new file that only its owner can read.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], which leaves the file as it is, or another error of the operating system.
pub fn create_private_file(path: &Path, line: &str) -> io::Result<()> {
    private_file(path, line)?.publish_new()
}

fn private_file(path: &Path, line: &str) -> io::Result<PendingFile> {
    durable::create_folders(durable::folder_of(path))?;
    let mut file = PendingFile::create_private(path)?;
    file.write_all(line.as_bytes())?;
    file.write_all(b"\n")?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn private_file_is_readable_by_its_owner_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state").join("file");
        let content = || fs::read_to_string(&path).expect("a file");
        create_private_file(&path, "one").expect("created");
        let error = create_private_file(&path, "two").expect_err("it exists");
        assert_eq!((error.kind(), content().as_str()), (io::ErrorKind::AlreadyExists, "one\n"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("changed");
        replace_private_file(&path, "three").expect("replaced");
        assert_eq!(content(), "three\n");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path().join("state")).expect("a folder").count(), 1, "no temporary file");
    }
}
