use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// File whose replacements and changes are noticed by its metadata. They count by being different, so that a clock that steps
/// back hides none.
#[derive(Debug)]
pub struct WatchedFile {
    path: PathBuf,
    stamp: Option<Stamp>,
    /// Last problem with this content.
    problem: Option<String>,
    is_retried: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    mode: u32,
    /// Seconds and nanoseconds of the last change of the content.
    modified: (i64, i64),
    /// Seconds and nanoseconds of the last change of the content, the mode or the owner.
    changed: (i64, i64),
}

impl WatchedFile {
    /// Watches the file of a path, which need not exist yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, stamp: None, problem: None, is_retried: false }
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True if the file exists and this is the first call, or if the file was replaced or changed since the last call, or is
    /// tried again. Pipes and devices never change: a second reading would wait for a writer.
    pub fn has_changed(&mut self) -> bool {
        let Some(metadata) = fs::metadata(&self.path).ok().filter(fs::Metadata::is_file) else { return false };
        let stamp = Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            mode: metadata.mode(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        let is_new = self.stamp.replace(stamp) != Some(stamp);
        if is_new {
            self.problem = None;
        }
        std::mem::take(&mut self.is_retried) || is_new
    }

    /// Marks a content that could not be used, so that it is tried again: the cause may be another than the content, too many open
    /// files for example. Returns true for the first time that this content has this problem, which is the time to log it.
    pub fn retry(&mut self, problem: &str) -> bool {
        self.is_retried = true;
        self.problem.replace(problem.to_owned()).as_deref() != Some(problem)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::private_file::replace_private_file;

    #[test]
    fn file_changes_once_for_each_replacement_time_and_mode() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let mut file = WatchedFile::new(path.clone());
        assert!(!file.has_changed(), "no file");
        let mut check = |cause: &str| assert_eq!((file.has_changed(), file.has_changed()), (true, false), "{cause}");
        replace_private_file(&path, "one").expect("written");
        check("created");
        replace_private_file(&path, "two").expect("written");
        check("replaced");
        let earlier = SystemTime::now() - Duration::from_secs(86_400);
        fs::File::options().write(true).open(&path).and_then(|file| file.set_modified(earlier)).expect("changed");
        check("the clock stepped back");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("changed");
        check("another mode");
        fs::remove_file(&path).expect("removed");
        assert!(!file.has_changed(), "removed");
        std::os::unix::fs::symlink("/dev/null", &path).expect("a link");
        assert!(!file.has_changed(), "a device");
    }

    #[test]
    fn problem_of_a_content_is_new_once_and_the_content_is_tried_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let mut file = WatchedFile::new(path.clone());
        let mut fail = || (file.has_changed(), file.retry("unusable"));
        replace_private_file(&path, "one").expect("written");
        assert_eq!([fail(), fail()], [(true, true), (true, false)]);
        replace_private_file(&path, "two").expect("written");
        assert_eq!([fail(), fail()], [(true, true), (true, false)]);
        assert_eq!((file.has_changed(), file.has_changed()), (true, false), "used at last");
    }
}
