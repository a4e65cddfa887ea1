use std::path::Path;

/// Bytes that this user may still write where `path` is, or will be: its nearest folder that is there counts. `None`
/// where the system does not say.
pub fn free_space(path: &Path) -> Option<u64> {
    let path = std::path::absolute(path).ok()?;
    let there = path.ancestors().find(|ancestor| ancestor.exists())?;
    let found = rustix::fs::statvfs(there).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_yet_has_the_space_of_the_one_it_will_be_in() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(free_space(folder.path()).is_some_and(|bytes| bytes > 0));
        assert!(free_space(&folder.path().join("not/yet")).is_some());
    }
}
