use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use iroh::SecretKey;
use sepal_swarm::{IdentityKey, KeyFileError};

/// Identity of a machine in a swarm: a key pair whose public half is the machine's name.
#[derive(Debug)]
pub struct Identity {
    pub(crate) key: SecretKey,
    path: Option<PathBuf>,
    /// Locked as long as the identity is in use.
    _lock: Option<File>,
}

/// Error of opening an identity.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum IdentityError {
    /// File that cannot be read or created, or holds no identity.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// File that cannot be locked.
    #[error("lock the identity file {path}")]
    Lock { path: PathBuf, source: io::Error },
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
        let key = IdentityKey::read_or_create(path)?;
        let failed = |source| IdentityError::Lock { path: path.to_owned(), source };
        let lock = File::open(path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {
                Ok(Self { key: SecretKey::from_bytes(key.seed()), path: Some(path.to_owned()), _lock: Some(lock) })
            }
            Err(TryLockError::WouldBlock) => Err(IdentityError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Returns a new identity that is not saved.
    pub fn ephemeral() -> Self {
        Self { key: SecretKey::generate(), path: None, _lock: None }
    }

    /// File of the sequence of announcements, beside that of the key.
    pub(crate) fn sequence_file(&self) -> Option<PathBuf> {
        let path = self.path.as_ref()?;
        let mut name = path.file_name()?.to_os_string();
        name.push(".sequence");
        Some(path.with_file_name(name))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
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
