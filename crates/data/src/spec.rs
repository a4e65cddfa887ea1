use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::read;

/// The file formats that tables are read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Apache Parquet.
    Parquet,
    /// Arrow IPC, file or stream, which it is, the file itself says; Feather is the former.
    Arrow,
    /// Comma-separated, with a header; quoted fields may hold commas and line breaks.
    Csv,
    /// Tab-separated, with a header. A quotation mark is a character like any other, as in the files of GLUE.
    Tsv,
    /// One JSON object per line.
    Jsonl,
    /// One text per line; the column is called `text`. No ending means this format.
    Lines,
}

impl Format {
    /// The formats and their file endings.
    const ENDINGS: [(&'static str, Format); 7] = [
        ("parquet", Format::Parquet),
        ("arrow", Format::Arrow),
        ("feather", Format::Arrow),
        ("csv", Format::Csv),
        ("tsv", Format::Tsv),
        ("jsonl", Format::Jsonl),
        ("ndjson", Format::Jsonl),
    ];

    /// The format by the file's ending, if it is known.
    pub fn of(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?.to_ascii_lowercase();
        Self::ENDINGS.into_iter().find(|(known, _)| *known == ending).map(|(_, format)| format)
    }

    /// The format of a stream that begins with the line `first`, if that is of a table: csv or tsv, if `column` and another
    /// one are among its cells; jsonl, if it is an object that has `column`.
    pub fn by_first_line(first: &str, column: &str) -> Option<Self> {
        let is_header = |format: &Format| {
            let names = read::header(first, *format);
            names.len() > 1 && names.iter().any(|name| name == column)
        };
        let is_object = serde_json::from_str::<serde_json::Map<_, serde_json::Value>>(first)
            .is_ok_and(|object| object.contains_key(column));
        let by_cells = || [Format::Csv, Format::Tsv].into_iter().find(is_header);
        if is_object { Some(Format::Jsonl) } else { by_cells() }
    }

    /// The name as it is written in a pipeline file.
    pub fn name(self) -> &'static str {
        match self {
            Format::Parquet => "parquet",
            Format::Arrow => "arrow",
            Format::Csv => "csv",
            Format::Tsv => "tsv",
            Format::Jsonl => "jsonl",
            Format::Lines => "lines",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which file and which of its columns make a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSpec {
    /// The file.
    pub path: PathBuf,
    /// Its format; by the file's ending if not given.
    pub format: Option<Format>,
    /// The column of texts.
    pub text: String,
    /// The column of second texts, for tasks on pairs.
    pub text_pair: Option<String>,
    /// The column of labels; none when there is only something to predict.
    pub label: Option<String>,
    /// Only rows whose column has this value are used.
    pub filter: BTreeMap<String, String>,
}

impl TableSpec {
    /// The texts of a file, without labels.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        let (path, text) = (path.into(), text.into());
        Self { path, format: None, text, text_pair: None, label: None, filter: BTreeMap::new() }
    }

    /// With this column of labels.
    #[must_use]
    pub fn with_label(mut self, column: impl Into<String>) -> Self {
        self.label = Some(column.into());
        self
    }

    /// With this column of second texts.
    #[must_use]
    pub fn with_pair(mut self, column: impl Into<String>) -> Self {
        self.text_pair = Some(column.into());
        self
    }

    /// With only the rows whose column `column` has the value `value`.
    #[must_use]
    pub fn with_filter(mut self, column: impl Into<String>, value: impl Into<String>) -> Self {
        self.filter.insert(column.into(), value.into());
        self
    }
}

/// The data files of a folder that belong to a split, in order: their name, or that of a folder above them, is the
/// split's, alone or with `-` or `_` and more behind it (`data/train-00000-of-00002.parquet`, `train/0.csv`).
///
/// # Errors
/// If the folder cannot be read. That no file belongs to the split is an empty list.
pub fn split_files(folder: &Path, split: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    collect(folder, split, false, &mut found)?;
    found.sort();
    Ok(found)
}

fn collect(folder: &Path, split: &str, inside: bool, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let belongs =
            inside || stem.strip_prefix(split).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_', '.']));
        // Follows links: the hub's cache is made of them.
        if path.is_dir() {
            collect(&path, split, belongs, found)?;
        } else if belongs && Format::of(&path).is_some() {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_tells_the_format() {
        assert_eq!(Format::of(Path::new("a/b.c/Train.PARQUET")), Some(Format::Parquet));
        assert_eq!(Format::of(Path::new("x.feather")), Some(Format::Arrow));
        assert_eq!(Format::of(Path::new("x.txt")), None);
        assert_eq!(Format::of(Path::new("csv")), None);
    }

    #[test]
    fn a_table_is_told_from_a_text() {
        let check = |line: &str, expected| assert_eq!(Format::by_first_line(line, "review"), expected, "{line}");
        check("id,\"review\",sentiment\n", Some(Format::Csv));
        check("\u{feff}review,id\r\n", Some(Format::Csv));
        check("id\treview", Some(Format::Tsv));
        check("{\"id\": 1, \"review\": \"good\"}\n", Some(Format::Jsonl));
        for text in ["review", "a review, and a long one", "id,text", "", "\"review, id", "{\"text\": 1}", "{review}"] {
            check(text, None);
        }
    }

    #[test]
    fn the_files_of_a_split() {
        let folder = tempfile::tempdir().expect("a folder");
        let names = [
            "data/train-00001-of-00002.parquet",
            "data/train-00000-of-00002.parquet",
            "data/training.parquet",
            "data/validation-00000-of-00001.parquet",
            "train/0.csv",
            "train.txt",
            "test.csv",
        ];
        for name in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, "").expect("written");
        }
        let files = |split: &str| -> Vec<String> {
            let files = split_files(folder.path(), split).expect("readable");
            let below = |path: &PathBuf| path.strip_prefix(folder.path()).expect("below").display().to_string();
            files.iter().map(below).collect()
        };
        assert_eq!(files("train"), [names[1], names[0], names[4]]);
        assert_eq!(files("validation"), [names[3]]);
        assert_eq!(files("dev"), Vec::<String>::new());
    }
}
