//! Files of identity keys.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sepal_core::PublicKey;

use crate::key::{IdentityKey, KeyError};
use crate::private_file::create_private_file;

/// Error of the file of an identity key.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum KeyFileError {
    /// File that cannot be read or created.
    #[error("use the identity file {path}")]
    File { path: PathBuf, source: io::Error },
    /// File with other content.
    #[error("{path} holds no identity (64 hexadecimal digits); move it away to create a new one")]
    Content { path: PathBuf },
    /// Failure to create a key.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl IdentityKey {
    /// Reads the key of a file and creates the file if it does not exist. Only the owner can read the file.
    ///
    /// # Errors
    /// [`KeyFileError`] if the file is not usable.
    pub fn read_or_create(path: &Path) -> Result<Self, KeyFileError> {
        let failed = |source| KeyFileError::File { path: path.to_owned(), source };
        if !path.exists() {
            let key = IdentityKey::generate()?;
            // The seed has the length and the notation of a public key.
            match create_private_file(path, &PublicKey(*key.seed()).to_string()) {
                // Another process was faster.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                created => created.map_err(failed)?,
            }
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        let seed = text.trim().parse::<PublicKey>().map_err(|_| KeyFileError::Content { path: path.to_owned() })?;
        Ok(IdentityKey::from_seed(seed.0)?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn identity_file_is_stable_and_private() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state").join("identity");
        let first = IdentityKey::read_or_create(&path).expect("created").public();
        assert_eq!(IdentityKey::read_or_create(&path).expect("read").public(), first);
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        fs::write(&path, "no key").expect("written");
        let error = IdentityKey::read_or_create(&path).expect_err("refused");
        assert!(error.to_string().contains("holds no identity"), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("read"), "no key", "unchanged");
    }
}
