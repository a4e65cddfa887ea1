//! Files that are complete or absent, also after a loss of power.
//!
//! A file is written under a temporary name in its folder, synced, renamed, and the folder is synced: without the last step the
//! name can be lost although the bytes are on the disk. All files of the project that must survive are written by this module.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Prefix of the names of temporary files, by which those of killed processes are found.
pub const TEMPORARY_PREFIX: &str = ".writing-";

/// File with a temporary name, which is removed on drop unless it is published.
#[derive(Debug)]
pub struct PendingFile {
    file: NamedTempFile,
    path: PathBuf,
}

impl PendingFile {
    /// Creates a file for `path` in its folder. The umask restricts who can read it.
    ///
    /// # Errors
    /// [`io::Error`] if the folder is missing or takes no new file.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::with_mode(path, 0o666)
    }

    /// Creates a file for `path` that only its owner can read.
    ///
    /// # Errors
    /// [`io::Error`] if the folder is missing or takes no new file.
    pub fn create_private(path: &Path) -> io::Result<Self> {
        Self::with_mode(path, 0o600)
    }

    #[cfg_attr(not(unix), expect(unused_variables, reason = "modes belong to Unix"))]
    fn with_mode(path: &Path, mode: u32) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(TEMPORARY_PREFIX);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(mode));
        }
        Ok(Self { file: builder.tempfile_in(folder_of(path))?, path: path.to_owned() })
    }

    /// Returns the open file.
    pub fn as_file(&self) -> &File {
        self.file.as_file()
    }

    /// Returns the path that the file gets when it is published.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs the file and moves it to its path, where it replaces another one.
    ///
    /// # Errors
    /// [`io::Error`] if the disk fails. Unless only the folder could not be synced, the previous file stays.
    pub fn publish(self) -> io::Result<()> {
        self.file.as_file().sync_all()?;
        self.file.persist(&self.path)?;
        sync_folder(folder_of(&self.path))
    }

    /// Syncs the file and moves it to its path, where it replaces nothing.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if a file is there; another [`io::Error`] if the disk fails.
    pub fn publish_new(self) -> io::Result<()> {
        self.file.as_file().sync_all()?;
        self.file.persist_noclobber(&self.path)?;
        sync_folder(folder_of(&self.path))
    }
}

impl Write for PendingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_file_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_file_mut().flush()
    }
}

/// Writes a file completely or not at all. A link stays, and its file is replaced; pipes and devices are written to.
///
/// # Errors
/// [`io::Error`] if the write fails; the previous file stays.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
        return fs::write(&path, content);
    }
    let mut file = PendingFile::create(&path)?;
    file.write_all(content)?;
    file.publish()
}

/// Renames a file, a link or a folder whose content is synced already, and syncs the folder of its new name.
///
/// # Errors
/// [`io::Error`] if the rename fails, or the disk does.
#[expect(clippy::disallowed_methods, reason = "this module syncs the folder")]
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_folder(folder_of(to))
}

/// Creates a folder and those above it that are missing, and syncs the folders that contain them.
///
/// # Errors
/// [`io::Error`] if a folder cannot be created, or the disk fails.
pub fn create_folders(path: &Path) -> io::Result<()> {
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
    fs::create_dir_all(path)?;
    missing.into_iter().rev().try_for_each(|folder| sync_folder(folder_of(folder)))
}

/// Syncs the names in a folder. File systems that sync no folders are no error.
///
/// # Errors
/// [`io::Error`] if the disk fails.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    // A folder without read permission takes new files and cannot be opened.
    let Ok(file) = File::open(folder) else { return Ok(()) };
    match file.sync_all() {
        Err(error) if is_unsupported(error.kind()) => Ok(()),
        synced => synced,
    }
}

/// Returns the folder of a file.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn is_unsupported(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn write_replaces_completely_and_leaves_no_other_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("manifest.json");
        write(&path, b"old and longer").expect("written");
        write(&path, b"new").expect("written");
        assert_eq!(fs::read(&path).expect("read"), b"new");
        assert_eq!(names(folder.path()), ["manifest.json"]);
        write(&folder.path().join("missing").join("file"), b"x").expect_err("no such folder");
    }

    #[cfg(unix)]
    #[test]
    fn write_keeps_links_and_devices() {
        use std::os::unix::fs::{FileTypeExt, symlink};
        let folder = tempfile::tempdir().expect("a folder");
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        write(&file, b"old").expect("written");
        symlink("file", &link).expect("a link");
        write(&link, b"new").expect("written");
        assert!(fs::symlink_metadata(&link).expect("a link").is_symlink());
        assert_eq!(fs::read(&file).expect("read"), b"new");
        write(Path::new("/dev/null"), b"gone").expect("written");
        assert!(fs::metadata("/dev/null").expect("a device").file_type().is_char_device());
        let full = write(Path::new("/dev/full"), b"too much").expect_err("no room");
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        write(folder.path(), b"x").expect_err("a folder");
    }

    #[test]
    fn unpublished_file_is_removed_and_previous_one_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        write(&path, b"old").expect("written");
        let mut pending = PendingFile::create(&path).expect("created");
        pending.write_all(b"half of").expect("written");
        assert!(names(folder.path()).iter().any(|name| name.starts_with(TEMPORARY_PREFIX)));
        drop(pending);
        assert_eq!(names(folder.path()), ["file"]);
        assert_eq!(fs::read(&path).expect("read"), b"old");
    }

    #[test]
    fn publish_new_replaces_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("identity");
        let publish = |content: &[u8]| {
            let mut pending = PendingFile::create_private(&path).expect("created");
            pending.write_all(content).expect("written");
            pending.publish_new()
        };
        publish(b"first").expect("published");
        let error = publish(b"second").expect_err("it exists");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).expect("read"), b"first");
        assert_eq!(names(folder.path()), ["identity"]);
    }

    #[cfg(unix)]
    #[test]
    fn private_file_is_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        write(&path, b"readable").expect("written");
        // A private file keeps its mode when it replaces a file that others can read.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("set");
        PendingFile::create_private(&path).expect("created").publish().expect("published");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn rename_and_nested_folders_move_content() {
        let folder = tempfile::tempdir().expect("a folder");
        let nested = folder.path().join("a").join("b");
        create_folders(&nested).expect("created");
        create_folders(&nested).expect("it exists");
        write(&nested.join("file"), b"content").expect("written");
        rename(&nested, &folder.path().join("moved")).expect("moved");
        assert_eq!(fs::read(folder.path().join("moved").join("file")).expect("read"), b"content");
        create_folders(&folder.path().join("moved").join("file")).expect_err("a file is there");
        assert_eq!(folder_of(Path::new("file")), Path::new("."));
    }
}
