use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use iroh::SecretKey;

/// Identity of a machine in a swarm: a key pair whose public half is the machine's name.
#[derive(Debug)]
pub struct Identity {
    pub(crate) key: SecretKey,
    /// Locked as long as the identity is in use.
    _lock: Option<File>,
}

/// Error of opening an identity.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum IdentityError {
    /// File that cannot be read, created or locked.
    #[error("use the identity file {path}")]
    File { path: PathBuf, source: io::Error },
    /// File with other content.
    #[error("{path} holds no identity (64 hexadecimal digits); move it away to create a new one")]
    Content { path: PathBuf },
    /// Identity that another process uses.
    #[error("the identity {path} is in use by another server; give each server its own identity file")]
    InUse { path: PathBuf },
}

/// Returns true if another process uses the identity.
pub fn is_in_use(error: &IdentityError) -> bool {
    matches!(error, IdentityError::InUse { .. })
}

impl Identity {
    /// Opens the identity in a file and creates it if the file does not exist. Only the owner can read the file.
    ///
    /// # Errors
    /// [`IdentityError`] if the file is not usable, or another process uses it.
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        let failed = |source| IdentityError::File { path: path.to_owned(), source };
        if !path.exists() {
            create(path).map_err(failed)?;
        }
        let lock = File::open(path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(IdentityError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.trim(), &mut bytes).map_err(|_| IdentityError::Content { path: path.to_owned() })?;
        Ok(Self { key: SecretKey::from_bytes(&bytes), _lock: Some(lock) })
    }

    /// Returns a new identity that is not saved.
    pub fn ephemeral() -> Self {
        Self { key: SecretKey::generate(), _lock: None }
    }
}

/// Creates a key file, unless another process creates it first.
fn create(path: &Path) -> io::Result<()> {
    let key = hex::encode(SecretKey::generate().to_bytes());
    // A hard link, unlike a rename, replaces no file.
    let link = |temporary: &Path| {
        let linked = fs::hard_link(temporary, path);
        fs::remove_file(temporary)?;
        linked
    };
    match private_file(path, key.as_bytes(), link) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Writes a line to a temporary file that only its owner can read, and has `publish` move it to `path`.
pub(super) fn private_file(path: &Path, line: &[u8], publish: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(line)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    publish(&temporary)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn identity_file_is_stable_and_private() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state").join("identity");
        let first = Identity::open(&path).expect("created").key.public();
        assert_eq!(Identity::open(&path).expect("read").key.public(), first);
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path().join("state")).expect("a folder").count(), 1, "no temporary file");
        assert_ne!(Identity::ephemeral().key.public(), first);
    }

    #[test]
    fn open_refuses_identity_in_use_and_other_content() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("identity");
        let _first = Identity::open(&path).expect("created");
        assert!(matches!(Identity::open(&path), Err(IdentityError::InUse { .. })));
        let other = folder.path().join("other");
        fs::write(&other, "no key").expect("written");
        let error = Identity::open(&other).expect_err("refused");
        assert!(error.to_string().contains("holds no identity"), "{error}");
        assert_eq!(fs::read_to_string(&other).expect("read"), "no key", "unchanged");
    }
}
