//! Data files of a split in a folder.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Format;

/// Error of finding the files of a split.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum FolderError {
    /// The folder cannot be read.
    #[error("read the folder {}", path.display())]
    Read {
        /// The folder, or a folder in it.
        path: PathBuf,
        source: io::Error,
    },
    /// The folder is a cache of the hub with several revisions.
    #[error("choose the files of the split `{split}` in {}: its folder `snapshots` has several revisions; name one of them", folder.display())]
    Revisions { folder: PathBuf, split: String },
    /// The files have several formats, and may hold the same rows.
    #[error(
        "choose the files of the split `{split}` in {}: they are of several formats, {}; keep those of one, or give the format",
        folder.display(),
        shown(folder, files)
    )]
    MixedFormats { folder: PathBuf, split: String, files: Vec<PathBuf> },
}

fn shown(folder: &Path, files: &[PathBuf]) -> String {
    const SHOWN: usize = 10;
    let below = |file: &PathBuf| file.strip_prefix(folder).unwrap_or(file).display().to_string();
    let mut names: Vec<String> = files.iter().take(SHOWN).map(below).collect();
    if files.len() > SHOWN {
        names.push(format!("and {} more", files.len() - SHOWN));
    }
    names.join(", ")
}

/// Data files of a folder that belong to a split, in order: their name, or the name of a folder above them, is the name of
/// the split, with or without a suffix after `-` or `_` (`data/train-00000-of-00002.parquet`, `train/0.csv`). The list is
/// empty if no file belongs to the split.
///
/// Names that begin with `.` or `_` are ignored, as by other readers of folders: editors, archives and interrupted programs
/// leave such files. A file that is reached by several links counts once. Of files of several formats, those of `format`
/// are returned.
///
/// # Errors
/// [`FolderError`] if the folder cannot be read, or has files of several formats and no format was given.
pub fn split_files(folder: &Path, split: &str, format: Option<Format>) -> Result<Vec<PathBuf>, FolderError> {
    let mut search = SplitSearch { split, files: Vec::new(), visited: BTreeSet::new() };
    search.collect(folder, false)?;
    let mut files = search.files;
    files.sort();
    let revisions: BTreeSet<PathBuf> =
        files.iter().filter_map(|file| revision(file.strip_prefix(folder).ok()?)).collect();
    if revisions.len() > 1 {
        return Err(FolderError::Revisions { folder: folder.to_owned(), split: split.to_owned() });
    }
    let has_format = |format: Format| move |file: &&PathBuf| Format::from_path(file) == Some(format);
    match (files.iter().filter_map(|file| Format::from_path(file)).collect::<Vec<_>>().as_slice(), format) {
        ([first, others @ ..], _) if others.iter().all(|other| other == first) => Ok(files),
        ([], _) => Ok(files),
        (_, Some(format)) if files.iter().any(|file| has_format(format)(&file)) => {
            Ok(files.iter().filter(has_format(format)).cloned().collect())
        }
        _ => Err(FolderError::MixedFormats { folder: folder.to_owned(), split: split.to_owned(), files }),
    }
}

/// Folder of the revision that a file of the hub's cache belongs to.
fn revision(file: &Path) -> Option<PathBuf> {
    let mut folders = file.ancestors().skip(1);
    folders.find(|folder| folder.parent().is_some_and(|parent| parent.ends_with("snapshots"))).map(Path::to_owned)
}

struct SplitSearch<'a> {
    split: &'a str,
    files: Vec<PathBuf>,
    /// Visited files and folders with links resolved, each with true if its content belongs to the split.
    visited: BTreeSet<(PathBuf, bool)>,
}

impl SplitSearch<'_> {
    fn collect(&mut self, folder: &Path, is_inside_split: bool) -> Result<(), FolderError> {
        let failed = |source| FolderError::Read { path: folder.to_owned(), source };
        let entries = fs::read_dir(folder).map_err(failed)?;
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        // Files come first, so that a file is found by its shortest path.
        paths.sort_by_cached_key(|path| (path.is_dir(), path.clone()));
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let is_suffix = |suffix: &str| suffix.is_empty() || suffix.starts_with(['-', '_', '.']);
            let belongs = is_inside_split || stem.strip_prefix(self.split).is_some_and(is_suffix);
            // This follows links: the hub's cache consists of them.
            let is_folder = path.is_dir();
            let is_candidate = is_folder || (belongs && Format::from_path(&path).is_some());
            if name.starts_with(['.', '_']) || !is_candidate {
                continue;
            }
            // A dangling link is an error when the file is read.
            let resolved = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
            match (is_folder, self.visited.insert((resolved, belongs))) {
                (_, false) => {}
                (true, true) => self.collect(&path, belongs)?,
                (false, true) => self.files.push(path),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for name in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, "").expect("written");
        }
        folder
    }

    fn files(folder: &tempfile::TempDir, split: &str, format: Option<Format>) -> Vec<String> {
        let files = split_files(folder.path(), split, format).expect("readable");
        let below = |path: &PathBuf| path.strip_prefix(folder.path()).expect("below").display().to_string();
        files.iter().map(below).collect()
    }

    #[test]
    fn split_files_are_found_by_name() {
        let names = [
            "data/train-00001-of-00002.parquet",
            "data/train-00000-of-00002.parquet",
            "data/training.parquet",
            "data/validation-00000-of-00001.parquet",
            "train/0.parquet",
            "train.txt",
            "test.csv",
        ];
        let folder = folder(&names);
        assert_eq!(files(&folder, "train", None), [names[1], names[0], names[4]]);
        assert_eq!(files(&folder, "validation", None), [names[3]]);
        assert_eq!(files(&folder, "dev", None), Vec::<String>::new());
    }

    #[test]
    fn hidden_names_are_ignored() {
        let names = "train.csv train.csv~ .train.csv ._train.csv .ipynb_checkpoints/train-checkpoint.csv train/._0.csv \
            train/.ipynb_checkpoints/0-checkpoint.csv train/deep/.cache/0.csv train/_SUCCESS \
            train/_temporary/0/part-0.csv __MACOSX/train/0.csv train/0.csv train/deep/1.csv";
        let folder = folder(&names.split(' ').collect::<Vec<_>>());
        assert_eq!(files(&folder, "train", None), ["train/0.csv", "train/deep/1.csv", "train.csv"]);
    }

    #[test]
    fn hidden_root_folder_is_read() {
        let parent = folder(&[".cache/train.csv"]);
        let path = parent.path().join(".cache");
        assert_eq!(split_files(&path, "train", None).expect("files"), [path.join("train.csv")]);
    }

    #[test]
    fn mixed_formats_are_refused_unless_one_is_given() {
        let folder = folder(&["train.csv", "train.parquet", "train/x.jsonl", "train.md", "test.csv"]);
        let error = split_files(folder.path(), "train", None).expect_err("which?");
        assert!(error.to_string().contains("train/x.jsonl, train.csv, train.parquet; keep"), "{error}");
        assert_eq!(files(&folder, "train", Some(Format::Csv)), ["train.csv"]);
        assert!(split_files(folder.path(), "train", Some(Format::Tsv)).is_err());
        assert_eq!(files(&folder, "test", Some(Format::Tsv)), ["test.csv"], "the content may be of another format");
    }

    #[test]
    fn several_revisions_of_a_cache_are_refused() {
        let folder = folder(&["snapshots/a/train.csv", "snapshots/a/data/train.csv", "snapshots/b/test.csv"]);
        assert_eq!(files(&folder, "train", None).len(), 2);
        fs::write(folder.path().join("snapshots/b/train.csv"), "").expect("written");
        let error = split_files(folder.path(), "train", None).expect_err("which?");
        assert!(matches!(error, FolderError::Revisions { .. }), "{error}");
        assert_eq!(split_files(&folder.path().join("snapshots/b"), "train", None).expect("files").len(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_once() {
        use std::os::unix::fs::symlink;
        let folder = folder(&["blobs/1", "blobs/2", "snapshots/main/readme.md"]);
        let path = |name: &str| folder.path().join(name);
        symlink(path("blobs/1"), path("snapshots/main/train-0.csv")).expect("a link");
        symlink(path("blobs/2"), path("snapshots/main/train-1.csv")).expect("a link");
        symlink(path("blobs/1"), path("snapshots/main/train-2.csv")).expect("a link");
        symlink(path("snapshots"), path("snapshots/main/train")).expect("a link to a folder above");
        symlink(path("snapshots/main"), path("test")).expect("a link to a folder");
        assert_eq!(files(&folder, "train", None), ["snapshots/main/train-0.csv", "snapshots/main/train-1.csv"]);
        assert_eq!(files(&folder, "test", None), ["test/train-0.csv", "test/train-1.csv"]);
    }
}
