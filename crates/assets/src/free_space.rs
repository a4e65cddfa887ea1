use std::path::Path;

/// Returns the free space for this user at `path`, or at its nearest existing ancestor, in bytes. None if the system
/// does not report it.
pub fn free_space(path: &Path) -> Option<u64> {
    let path = std::path::absolute(path).ok()?;
    let existing = path.ancestors().find(|ancestor| ancestor.exists())?;
    let found = rustix::fs::statvfs(existing).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_missing_folder_uses_ancestor() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(free_space(folder.path()).is_some_and(|bytes| bytes > 0));
        assert!(free_space(&folder.path().join("not/yet")).is_some());
    }
}
