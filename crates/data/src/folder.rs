//! Data files of a split in a folder.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Format;

/// Most folders between a folder and a file in it. The time to resolve a path grows with its depth.
const MAX_DEPTH: usize = 64;

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
    /// The folders are nested without end in sight.
    #[error("read the folder {}: it is more than {} folders deep; give a folder nearer to the files", path.display(), MAX_DEPTH)]
    Depth { path: PathBuf },
    /// The file is a pipe or a device, which may have no end.
    #[error("read the file {}: it is a pipe or a device; remove it, or name it as the file to read", path.display())]
    NoFile { path: PathBuf },
    /// The folder is a cache of the hub with several revisions.
    #[error("choose the files of the split `{split}` in {}: its folder `snapshots` has several revisions; name one of them", folder.display())]
    Revisions { folder: PathBuf, split: String },
    /// No file belongs to the splits.
    #[error(
        "{} has no files of a split named {}, {}",
        folder.display(),
        splits.join(", "),
        instead(folder, splits, files)
    )]
    NoSplit {
        folder: PathBuf,
        splits: Vec<String>,
        /// Data files that the folder has instead, those of other usual splits last.
        files: Vec<PathBuf>,
    },
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

/// The files that a folder has instead of those of a split, and what may be done.
fn instead(folder: &Path, splits: &[String], files: &[PathBuf]) -> String {
    if files.is_empty() {
        return "and no other data files; put one there, or name a file itself".to_owned();
    }
    let split = splits.first().map_or("train", String::as_str);
    let ending = files[0].file_name().unwrap_or_default().to_string_lossy();
    let ending = ending.find('.').map_or("", |dot| &ending[dot..]);
    let shown = shown(folder, files);
    // Another name of such a file may take rows from a table of which it is a part.
    if files.iter().any(|file| !partitions(folder, file).is_empty()) {
        return format!("but {shown}; name another folder or file that has only these rows");
    }
    format!("but {shown}; rename the file with these rows, for example to {split}{ending}, or name the file itself")
}

impl FolderError {
    /// Error of a folder without files of these splits, with the data files that it has instead.
    pub fn no_split(folder: &Path, splits: &[&str]) -> Self {
        let mut search = SplitSearch { split: None, files: Vec::new(), visited: BTreeSet::new() };
        let mut files = match search.collect(folder, true, 0) {
            Ok(()) => search.files,
            Err(error) => return error,
        };
        files.sort_by_cached_key(|file| (has_usual_split(folder, file), file.clone()));
        let splits = splits.iter().map(|&split| split.to_owned()).collect();
        Self::NoSplit { folder: folder.to_owned(), splits, files }
    }
}

/// Names of a split of validation rows, the most usual first.
pub const VALIDATION_SPLITS: [&str; 5] = ["validation", "val", "valid", "dev", "eval"];

/// Data files of a folder that belong to a split, in order: their name, or the name of a folder above them, is the name of
/// the split in any case, with or without a suffix after `-` or `_` (`data/train-00000-of-00002.parquet`, `train/0.csv`), or
/// a folder above them is called `split=NAME`. The list is empty if no file belongs to the split.
///
/// Names that begin with `.` or `_` are ignored, as by other readers of folders: editors, archives and interrupted programs
/// leave such files. A file that is reached by several links counts once. Of files of several formats, those of `format`
/// are returned; json files beside others hold facts and no rows.
///
/// # Errors
/// [`FolderError`] if the folder cannot be read, or has files of several formats and no format was given.
pub fn split_files(folder: &Path, split: &str, format: Option<Format>) -> Result<Vec<PathBuf>, FolderError> {
    files(folder, Some(split), format)
}

/// Returns true if a file below a folder belongs to a split of a usual name.
fn has_usual_split(folder: &Path, file: &Path) -> bool {
    let below = file.strip_prefix(folder).unwrap_or(file);
    let is_usual = |name: &OsStr, is_folder: bool| {
        let name = name.to_string_lossy();
        usual_splits().any(|split| has_name(&name, split, is_folder))
    };
    let folders = below.parent().unwrap_or(Path::new(""));
    folders.iter().any(|name| is_usual(name, true)) || below.file_name().is_some_and(|name| is_usual(name, false))
}

fn usual_splits() -> impl Iterator<Item = &'static str> {
    ["train", "test"].into_iter().chain(VALIDATION_SPLITS)
}

/// Data files of a folder without splits, such as the parts of one table; the list is empty if a file belongs to a split.
///
/// # Errors
/// [`FolderError`] as [`split_files`].
pub fn unsplit_files(folder: &Path, format: Option<Format>) -> Result<Vec<PathBuf>, FolderError> {
    for split in usual_splits() {
        if !split_files(folder, split, format)?.is_empty() {
            return Ok(Vec::new());
        }
    }
    files(folder, None, format)
}

/// Files of training rows at a path: the file itself, or those of a folder's split `train`, or of a folder without splits.
///
/// # Errors
/// [`FolderError`] as [`split_files`].
pub fn training_files(path: &Path, format: Option<Format>) -> Result<Vec<PathBuf>, FolderError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let files = split_files(path, "train", format)?;
    if files.is_empty() { unsplit_files(path, format) } else { Ok(files) }
}

/// Columns in the names of the folders between `folder` and a file, as `label=pos/lang=de/0.parquet` has them (Hive's
/// layout). Characters may be percent-encoded; `__HIVE_DEFAULT_PARTITION__` stands for a missing value.
pub(crate) fn partitions(folder: &Path, file: &Path) -> Vec<(String, Option<String>)> {
    if folder.as_os_str().is_empty() {
        return Vec::new();
    }
    let below = file.strip_prefix(folder).ok().and_then(Path::parent).unwrap_or(Path::new(""));
    let column = |name: &OsStr| {
        let name = name.to_string_lossy();
        let (column, value) = name.split_once('=').filter(|(column, _)| !column.is_empty())?;
        let value = (value != "__HIVE_DEFAULT_PARTITION__").then(|| percent_decoded(value));
        Some((percent_decoded(column), value))
    };
    below.iter().filter_map(column).collect()
}

fn percent_decoded(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let [first, rest @ ..] = bytes {
        let code = rest.get(..2).and_then(|digits| str::from_utf8(digits).ok());
        let code = code.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                decoded.push(byte);
                bytes = &rest[2..];
            }
            None => {
                decoded.push(*first);
                bytes = rest;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Data files of a split, or all data files.
fn files(folder: &Path, split: Option<&str>, format: Option<Format>) -> Result<Vec<PathBuf>, FolderError> {
    let mut search = SplitSearch { split, files: Vec::new(), visited: BTreeSet::new() };
    search.collect(folder, split.is_none(), 0)?;
    let mut files = search.files;
    files.sort();
    let is_json = |file: &PathBuf| Format::from_path(file) == Some(Format::Json);
    if format != Some(Format::Json) && !files.iter().all(is_json) {
        files.retain(|file| !is_json(file));
    }
    let split = split.unwrap_or("all");
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

/// Stems of files of facts that libraries write beside rows.
const FACTS: [&str; 4] = ["dataset_info", "dataset_infos", "dataset_dict", "state"];

struct SplitSearch<'a> {
    /// Name of the split; none for all files.
    split: Option<&'a str>,
    files: Vec<PathBuf>,
    /// Visited files and folders with links resolved, each with true if its content belongs to the split.
    visited: BTreeSet<(PathBuf, bool)>,
}

impl SplitSearch<'_> {
    fn collect(&mut self, folder: &Path, is_inside_split: bool, depth: usize) -> Result<(), FolderError> {
        if depth > MAX_DEPTH {
            return Err(FolderError::Depth { path: folder.to_owned() });
        }
        let failed = |source| FolderError::Read { path: folder.to_owned(), source };
        let entries = fs::read_dir(folder).map_err(failed)?;
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        // Files come first, so that a file is found by its shortest path.
        paths.sort_by_cached_key(|path| (path.is_dir(), path.clone()));
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            // This follows links: the hub's cache consists of them.
            let is_folder = path.is_dir();
            let belongs = is_inside_split || self.split.is_some_and(|split| has_name(&name, split, is_folder));
            let is_data = Format::from_path(&path).is_some() && !FACTS.contains(&&*stem);
            let is_candidate = is_folder || (belongs && is_data);
            if name.starts_with(['.', '_']) || !is_candidate {
                continue;
            }
            if !is_folder && path.exists() && !path.is_file() {
                return Err(FolderError::NoFile { path });
            }
            // A dangling link is an error when the file is read.
            let resolved = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
            match (is_folder, self.visited.insert((resolved, belongs))) {
                (_, false) => {}
                (true, true) => self.collect(&path, belongs, depth + 1)?,
                (false, true) => self.files.push(path),
            }
        }
        Ok(())
    }
}

/// Returns true if a name is that of a split.
fn has_name(name: &str, split: &str, is_folder: bool) -> bool {
    let name = name.to_ascii_lowercase();
    let of_column = name.strip_prefix("split=").filter(|_| is_folder);
    let suffix = of_column.unwrap_or(&name).strip_prefix(&split.to_ascii_lowercase());
    suffix.is_some_and(|suffix| suffix.is_empty() || suffix.starts_with(['-', '_', '.']))
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

    fn found(folder: &tempfile::TempDir, split: &str, format: Option<Format>) -> Vec<String> {
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
        assert_eq!(found(&folder, "train", None), [names[1], names[0], names[4]]);
        assert_eq!(found(&folder, "validation", None), [names[3]]);
        assert_eq!(found(&folder, "dev", None), Vec::<String>::new());
    }

    #[test]
    fn split_is_found_by_any_usual_name() {
        for name in ["val.csv", "VAL.csv.gz", "val/0.csv", "split=val/0.csv", "data/Val-0001.csv"] {
            let folder = folder(&[name, "train.csv", "values.csv"]);
            assert_eq!(found(&folder, "val", None), [name]);
            assert_eq!(unsplit_files(folder.path(), None).expect("readable"), Vec::<PathBuf>::new(), "{name}");
        }
    }

    #[test]
    fn folder_without_the_split_names_its_files() {
        let check = |names: &[&str], splits: &[&str], expected: &str| {
            let folder = folder(names);
            let error = FolderError::no_split(folder.path(), splits).to_string();
            assert_eq!(error, format!("{} has no files of a split named {expected}", folder.path().display()));
        };
        check(
            &["training.csv", "test.csv", "readme.md", "dataset_info.json", "dev/0.csv"],
            &["train"],
            "train, but training.csv, dev/0.csv, test.csv; rename the file with these rows, for example to train.csv, or \
             name the file itself",
        );
        check(
            &["sst_dev.csv.gz", "train.csv.gz"],
            &["validation", "val"],
            "validation, val, but sst_dev.csv.gz, train.csv.gz; rename the file with these rows, for example to \
             validation.csv.gz, or name the file itself",
        );
        check(
            &["label=bad/part-0.csv", "label=good/part-0.csv"],
            &["validation"],
            "validation, but label=bad/part-0.csv, label=good/part-0.csv; name another folder or file that has only these \
             rows",
        );
        check(&["readme.md"], &["train"], "train, and no other data files; put one there, or name a file itself");
        let many: Vec<String> = (10..30).map(|part| format!("part-{part}.csv")).collect();
        let folder = folder(&many.iter().map(String::as_str).collect::<Vec<_>>());
        let error = FolderError::no_split(folder.path(), &["train"]).to_string();
        assert!(error.contains("part-10.csv, ") && error.contains("part-19.csv, and 10 more; rename"), "{error}");
    }

    #[test]
    fn folder_without_splits_is_one_table() {
        let names = ["label=neg/0.csv", "label=pos/0.csv", "_SUCCESS", "dataset_info.json"];
        let folder = folder(&names);
        let files = unsplit_files(folder.path(), None).expect("readable");
        assert_eq!(files, [folder.path().join(names[0]), folder.path().join(names[1])]);
        assert_eq!(found(&folder, "train", None), Vec::<String>::new());
    }

    #[test]
    fn json_files_beside_others_hold_no_rows() {
        let names = ["train/0.arrow", "train/state.json", "train/note.json", "test/0.json", "test/dataset_info.json"];
        let folder = folder(&names);
        assert_eq!(found(&folder, "train", None), [names[0]]);
        assert_eq!(found(&folder, "train", Some(Format::Json)), [names[2]]);
        assert_eq!(found(&folder, "test", None), [names[3]]);
    }

    #[test]
    fn names_of_folders_are_columns() {
        let column = |name: &str, value: &str| (name.to_owned(), Some(value.to_owned()));
        let of = |file: &str| partitions(Path::new("data"), Path::new(file));
        assert_eq!(of("data/train/label=pos/lang=de/0.csv"), [column("label", "pos"), column("lang", "de")]);
        assert_eq!(of("data/l%2Fx=a%20b%=%zz/0.csv"), [column("l/x", "a b%=%zz")]);
        assert_eq!(of("data/a=__HIVE_DEFAULT_PARTITION__/=b/0.csv"), [("a".to_owned(), None)]);
        assert!(of("data/a=1.csv").is_empty());
        assert!(of("other/a=1/0.csv").is_empty());
        assert!(partitions(Path::new(""), Path::new("a=1/0.csv")).is_empty());
    }

    #[test]
    fn hidden_names_are_ignored() {
        let names = "train.csv train.csv~ .train.csv ._train.csv .ipynb_checkpoints/train-checkpoint.csv train/._0.csv \
            train/.ipynb_checkpoints/0-checkpoint.csv train/deep/.cache/0.csv train/_SUCCESS \
            train/_temporary/0/part-0.csv __MACOSX/train/0.csv train/0.csv train/deep/1.csv";
        let folder = folder(&names.split(' ').collect::<Vec<_>>());
        assert_eq!(found(&folder, "train", None), ["train/0.csv", "train/deep/1.csv", "train.csv"]);
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
        assert_eq!(found(&folder, "train", Some(Format::Csv)), ["train.csv"]);
        assert!(split_files(folder.path(), "train", Some(Format::Tsv)).is_err());
        assert_eq!(found(&folder, "test", Some(Format::Tsv)), ["test.csv"], "the content may be of another format");
    }

    #[test]
    fn several_revisions_of_a_cache_are_refused() {
        let folder = folder(&["snapshots/a/train.csv", "snapshots/a/data/train.csv", "snapshots/b/test.csv"]);
        assert_eq!(found(&folder, "train", None).len(), 2);
        fs::write(folder.path().join("snapshots/b/train.csv"), "").expect("written");
        let error = split_files(folder.path(), "train", None).expect_err("which?");
        assert!(matches!(error, FolderError::Revisions { .. }), "{error}");
        assert_eq!(split_files(&folder.path().join("snapshots/b"), "train", None).expect("files").len(), 1);
    }

    #[test]
    fn folders_without_end_are_refused() {
        let deep = |depth: usize| folder(&[format!("{}train.csv", "a/".repeat(depth)).as_str()]);
        assert_eq!(found(&deep(MAX_DEPTH), "train", None).len(), 1);
        let error = split_files(deep(MAX_DEPTH + 1).path(), "train", None).expect_err("too deep");
        assert!(matches!(error, FolderError::Depth { .. }), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn devices_among_the_files_are_refused() {
        let folder = folder(&["train-0.csv"]);
        std::os::unix::fs::symlink("/dev/zero", folder.path().join("train-1.csv")).expect("a link");
        let error = split_files(folder.path(), "train", None).expect_err("endless");
        assert!(matches!(error, FolderError::NoFile { .. }), "{error}");
        assert_eq!(found(&folder, "test", None), Vec::<String>::new());
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
        assert_eq!(found(&folder, "train", None), ["snapshots/main/train-0.csv", "snapshots/main/train-1.csv"]);
        assert_eq!(found(&folder, "test", None), ["test/train-0.csv", "test/train-1.csv"]);
    }
}
