//! Files of secrets.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{Secret, SecretTextError};
use crate::key::KeyError;
use crate::private_file::{create_private_file, replace_private_file};

/// Most bytes of a secret's file.
const MAX_FILE_BYTES: u64 = 4096;

/// Error of the file of a secret.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum SecretFileError {
    /// File that cannot be read or written.
    #[error("use the secret in {path}")]
    File { path: PathBuf, source: io::Error },
    /// Text of a secret in the place of a path, which errors and run folders would show.
    #[error("expected the path of a file, found the text of a secret; write it into a file that only you can read")]
    Text,
    /// File that others can read.
    #[error("others can read the secret in {path} (mode {mode:03o}); make it private: chmod 600 {path}")]
    Readable { path: PathBuf, mode: u32 },
    /// File with other content.
    #[error("{path} holds {problem}")]
    Content { path: PathBuf, problem: SecretTextError },
    /// File with lesser rights than its use needs.
    #[error("{path} holds the secret of {rights}s; this needs the founder's secret, which servers have")]
    NotFounders { path: PathBuf, rights: super::Rights },
    /// Failure to create a secret.
    #[error("make a secret")]
    Key(#[from] KeyError),
}

impl Secret {
    /// Reads the secret of a file. As ssh does, it refuses a file of this user that others can read.
    ///
    /// # Errors
    /// [`SecretFileError`] if the file is not readable, not private, or holds no secret.
    pub fn read(path: &Path) -> Result<Self, SecretFileError> {
        let failed = |source| SecretFileError::File { path: path.to_owned(), source };
        refuse_text(path)?;
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let mode = metadata.permissions().mode() & 0o777;
        // Files of other users, those that a container's host provides for example, are not this user's to change.
        if mode & 0o077 != 0 && metadata.uid() == rustix::process::geteuid().as_raw() {
            return Err(SecretFileError::Readable { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(failed)?;
        text.parse().map_err(|problem| SecretFileError::Content { path: path.to_owned(), problem })
    }

    /// Reads the founder's secret of a file.
    ///
    /// # Errors
    /// [`SecretFileError`], also if the secret is a derived one.
    pub fn read_founders(path: &Path) -> Result<Self, SecretFileError> {
        let secret = Self::read(path)?;
        match secret.is_founders() {
            true => Ok(secret),
            false => Err(SecretFileError::NotFounders { path: path.to_owned(), rights: secret.rights() }),
        }
    }

    /// Reads the founder's secret of a file, and makes a new one if the file does not exist. Returns true if it was made.
    ///
    /// # Errors
    /// [`SecretFileError`], also if the secret is a derived one.
    pub fn read_or_create(path: &Path) -> Result<(Self, bool), SecretFileError> {
        refuse_text(path)?;
        if path.exists() {
            return Ok((Self::read_founders(path)?, false));
        }
        let secret = Self::generate()?;
        match create_private_file(path, &secret.to_text()) {
            Ok(()) => Ok((secret, true)),
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok((Self::read_founders(path)?, false)),
            Err(source) => Err(SecretFileError::File { path: path.to_owned(), source }),
        }
    }

    /// Writes the secret to a file that only its owner can read. An existing file is replaced.
    ///
    /// # Errors
    /// [`SecretFileError::File`].
    pub fn write(&self, path: &Path) -> Result<(), SecretFileError> {
        replace_private_file(path, &self.to_text())
            .map_err(|source| SecretFileError::File { path: path.to_owned(), source })
    }
}

/// Refuses a path that is the text of a secret.
fn refuse_text(path: &Path) -> Result<(), SecretFileError> {
    let is_text = path.to_str().is_some_and(Secret::is_text);
    if is_text { Err(SecretFileError::Text) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Rights;
    use super::*;

    #[test]
    fn secret_file_is_created_once_and_private() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state").join("secret");
        let (secret, is_new) = Secret::read_or_create(&path).expect("created");
        assert!(is_new);
        assert_eq!(Secret::read_or_create(&path).expect("read"), (secret.clone(), false));
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        let next = secret.next_epoch().expect("an epoch");
        next.write(&path).expect("replaced");
        assert_eq!(Secret::read(&path).expect("read"), next);
    }

    #[test]
    fn file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        Secret::read_or_create(&path).expect("created");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("changed");
        let error = Secret::read(&path).expect_err("refused").to_string();
        assert!(error.contains("(mode 640)") && error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn text_in_the_place_of_a_path_is_refused_and_not_shown() {
        let text = Secret::generate().expect("a secret").to_text();
        for error in [
            Secret::read(Path::new(&text)).expect_err("text"),
            Secret::read_or_create(Path::new(&text)).expect_err("text"),
        ] {
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("expected the path") && !shown.contains(&text[20..60]), "{shown}");
        }
        assert!(!Path::new(&text).exists());
    }

    #[test]
    fn server_refuses_derived_secret_and_other_content() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        let (secret, _) = Secret::read_or_create(&path).expect("created");
        secret.derive(Rights::Client).expect("a founder's").write(&path).expect("written");
        let error = Secret::read_or_create(&path).expect_err("refused").to_string();
        assert!(error.contains("the secret of clients"), "{error}");
        replace_private_file(&path, "sepal1abc").expect("written");
        let error = Secret::read(&path).expect_err("refused").to_string();
        assert!(error.ends_with("holds no secret: it is a ticket"), "{error}");
    }
}
