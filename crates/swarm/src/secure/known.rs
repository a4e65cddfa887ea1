use std::path::Path;

use sepal_core::in_one_line;

use super::{Secret, SecretFileError};
use crate::watched_file::WatchedFile;

/// Secret in use. That of a file may be replaced meanwhile.
pub(super) struct KnownSecret {
    secret: Secret,
    file: Option<(WatchedFile, ReadSecret)>,
}

/// Reads the secret of a file, with the rights that its use needs.
type ReadSecret = fn(&Path) -> Result<Secret, SecretFileError>;

impl KnownSecret {
    pub(super) fn new(secret: Secret) -> Self {
        Self { secret, file: None }
    }

    /// Reads the secret of a file, and later contents of the file by [`KnownSecret::refresh`].
    pub(super) fn read(path: &Path, read: ReadSecret) -> Result<Self, SecretFileError> {
        Ok(Self { secret: read(path)?, file: Some((WatchedFile::new(path.to_owned()), read)) })
    }

    /// Last secret that was read.
    pub(super) fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Reads the file if its content is new. Returns true if it holds another secret. A content that cannot be used, or a
    /// secret of an earlier epoch, is a warning, and the last secret holds: an old copy of a file revokes nothing, and makes
    /// nothing valid that was revoked.
    pub(super) fn refresh(&mut self) -> bool {
        let Some((file, read)) = &mut self.file else { return false };
        if !file.has_changed() {
            return false;
        }
        let problem = match read(file.path()) {
            Ok(secret) if secret == self.secret => return false,
            Ok(secret) if secret.is_earlier_than(&self.secret) => {
                let (path, epoch, current) = (file.path().display(), secret.epoch(), self.secret.epoch());
                format!("{path} holds the secret of epoch {epoch}, which epoch {current} has replaced")
            }
            Ok(secret) => {
                self.secret = secret;
                return true;
            }
            Err(error) => in_one_line(&error),
        };
        if file.retry(&problem) {
            tracing::warn!("continuing with the earlier secret, without a revocation: {problem}");
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_epochs_and_other_contents_are_not_used() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        let (first, _) = Secret::read_or_create(&path).expect("created");
        let mut known = KnownSecret::read(&path, Secret::read_founders).expect("read");
        assert!(!known.refresh(), "nothing new");
        let next = first.next_epoch().expect("an epoch");
        let mut write = |secret: &Secret| {
            secret.write(&path).expect("written");
            (known.refresh(), known.secret().clone())
        };
        assert_eq!(write(&next), (true, next.clone()));
        assert_eq!(write(&first), (false, next.clone()), "an old copy");
        let client = next.derive(super::super::Rights::Client).expect("a founder's");
        assert_eq!(write(&client), (false, next.clone()), "not the founder's");
        let other = Secret::generate().expect("a secret");
        assert_eq!(write(&other), (true, other.clone()), "another founder's");
    }
}
