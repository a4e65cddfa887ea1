use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use iroh::SecretKey;

/// Who a machine is in a swarm: a key pair, of which the public half is its name.
#[derive(Debug)]
pub struct Identity {
    pub(crate) key: SecretKey,
    /// Held as long as the identity is in use.
    _lock: Option<File>,
}

/// An identity that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The file cannot be read, made or locked.
    #[error("use the identity file {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{path} holds no identity (64 hexadecimal digits); move it away, and a new one is made")]
    Content {
        /// The file.
        path: PathBuf,
    },
    /// Two servers would be one.
    #[error("the identity {path} is in use by another server; give this one a file of its own with --identity")]
    InUse {
        /// The file.
        path: PathBuf,
    },
}

impl Identity {
    /// The identity that a file holds; made anew if there is none. Only its owner can read the file.
    ///
    /// # Errors
    /// [`IdentityError`], also if another process uses it.
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

    /// An identity that lasts as long as the process.
    pub fn passing() -> Self {
        Self { key: SecretKey::generate(), _lock: None }
    }
}

/// Makes a new key, unless another process was faster.
fn create(path: &Path) -> io::Result<()> {
    let key = hex::encode(SecretKey::generate().to_bytes());
    // A link, unlike a new name, replaces nothing.
    let link = |new: &Path| {
        let linked = fs::hard_link(new, path);
        fs::remove_file(new)?;
        linked
    };
    match private_file(path, key.as_bytes(), link) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Writes a line into a new file beside `path` that only its owner can read, and has `place` move it there.
pub(super) fn private_file(path: &Path, line: &[u8], place: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = folder.join(format!(".{name}.{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(line)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    place(&new)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_identity_is_kept_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state").join("identity");
        let first = Identity::open(&path).expect("made").key.public();
        assert_eq!(Identity::open(&path).expect("read").key.public(), first);
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path().join("state")).expect("a folder").count(), 1, "nothing else is left");
        assert_ne!(Identity::passing().key.public(), first);
    }

    #[test]
    fn two_at_a_time_are_refused_and_so_is_something_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("identity");
        let _first = Identity::open(&path).expect("made");
        assert!(matches!(Identity::open(&path), Err(IdentityError::InUse { .. })));
        let other = folder.path().join("other");
        fs::write(&other, "no key").expect("written");
        let error = Identity::open(&other).expect_err("refused");
        assert!(error.to_string().contains("holds no identity"), "{error}");
        assert_eq!(fs::read_to_string(&other).expect("read"), "no key", "it is left as it is");
    }
}
