use std::io;
use std::path::{Path, PathBuf};

use sepal_core::{NameMatching, nearest};

use super::text::LineError;
use crate::suggest::{Remedy, delimiter_hint, delimiter_remedy, delimiter_remedy_for, hint, listed, other_delimiter};
use crate::{BadRow, BoxError, FolderError, Format};

/// A file that gives no table.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum ReadError {
    /// The file cannot be opened.
    #[error("open {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    /// The file name does not tell the format.
    #[error(
        "tell the format of {}: its ending is none of parquet, arrow, feather, csv, tsv, json, jsonl; give the format explicitly",
        path.display()
    )]
    UnknownFormat { path: PathBuf },
    /// The content is damaged, or of another format.
    #[error("read {} as {format}", path.display())]
    Corrupt { path: PathBuf, format: Format, source: BoxError },
    /// The file has no such column.
    #[error(
        "find the column `{column}` in {}: it has {}{}{}",
        path.display(),
        listed(columns),
        hint(nearest.as_deref()),
        delimiter_hint(delimiter_remedy_for(columns, column))
    )]
    MissingColumn { path: PathBuf, column: String, columns: Vec<String>, nearest: Option<String> },
    /// The file has several columns of one name.
    #[error("use the column `{column}` of {}: there are several of that name; rename all but one", path.display())]
    AmbiguousColumn { path: PathBuf, column: String },
    /// An option that does not apply to the format.
    #[error("read {} as {format}, which has no {option}; leave that out, or give another format", path.display())]
    UnusedOption {
        path: PathBuf,
        /// `delimiter` or `encoding`.
        option: &'static str,
        format: Format,
    },
    /// A column of another type.
    #[error("use the column `{column}` of {}: it holds {found}, expected {expected}", path.display())]
    ColumnType { path: PathBuf, column: String, expected: &'static str, found: String },
    /// A format that cannot be read from a stream.
    #[error("read {format} from {}: that takes a file; streams are csv, tsv, json, jsonl or lines", path.display())]
    NeedsFile { path: PathBuf, format: Format },
    /// No column is clearly the column of texts.
    #[error(
        "choose the column of texts in {}: {problem}; it has {}{}",
        path.display(),
        listed(columns),
        delimiter_hint(delimiter_remedy(columns))
    )]
    NoText { path: PathBuf, problem: String, columns: Vec<String> },
    /// The files of a folder cannot be found.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// An empty file.
    #[error("find rows in {}: it is empty", path.display())]
    Empty { path: PathBuf },
    /// A file with columns, but without usable rows.
    #[error("find rows in {}: it has {}", path.display(), no_rows(*read, filter.as_deref(), found.as_deref()))]
    NoRows {
        path: PathBuf,
        read: usize,
        /// The filter, if there is one: `column = value`, joined by `and`.
        filter: Option<String>,
        /// Some of the values that the columns of the filter have.
        found: Option<String>,
    },
    /// A row without a usable text or label.
    #[error("use {}: {}", .0.location, .0.problem_text())]
    BadRow(BadRow),
}

impl ReadError {
    pub(crate) fn corrupt(path: &Path, format: Format, source: impl Into<BoxError>) -> Self {
        Self::Corrupt { path: path.to_owned(), format, source: source.into() }
    }

    /// Error of a file whose name does not tell its format.
    pub(crate) fn unknown_format(path: &Path) -> Self {
        let path = path.to_owned();
        match path.is_dir() {
            true => Self::Open { path, source: io::ErrorKind::IsADirectory.into() },
            false => Self::UnknownFormat { path },
        }
    }

    /// The given format, or the format by the file's ending.
    pub(crate) fn require_format(format: Option<Format>, path: &Path) -> Result<Format, Self> {
        format.or_else(|| Format::from_path(path)).ok_or_else(|| Self::unknown_format(path))
    }

    /// Returns true if the missing column is part of a header that another delimiter would separate.
    pub fn has_other_delimiter(&self) -> bool {
        matches!(self, Self::MissingColumn { column, columns, .. } if other_delimiter(columns, column).is_some())
    }

    /// Returns the setting that would settle the error, if one is known.
    pub fn remedy(&self) -> Option<Remedy> {
        match self {
            Self::MissingColumn { column, columns, .. } => {
                delimiter_remedy_for(columns, column).or(Some(Remedy::Columns))
            }
            Self::NoText { columns, .. } => delimiter_remedy(columns),
            Self::Corrupt { source, .. } => source.downcast_ref::<LineError>()?.remedy,
            Self::BadRow(bad) => bad.problem.is_absence().then_some(Remedy::SkipEmpty),
            _ => None,
        }
    }

    pub(crate) fn missing_column(path: &Path, name: &str, columns: Vec<String>) -> Self {
        let nearest = nearest(name, columns.iter().map(String::as_str), NameMatching::Data).map(str::to_owned);
        Self::MissingColumn { path: path.to_owned(), column: name.to_owned(), columns, nearest }
    }

    /// Error of a file that was read without finding a row.
    pub(crate) fn no_rows(path: &Path, has_columns: bool) -> Self {
        let path = path.to_owned();
        if has_columns { Self::NoRows { path, read: 0, filter: None, found: None } } else { Self::Empty { path } }
    }
}

fn no_rows(read: usize, filter: Option<&str>, found: Option<&str>) -> String {
    match (read, filter, found) {
        (0, ..) => "the names of columns and no row".to_owned(),
        (_, Some(filter), Some(found)) => format!("{read}, and none with {filter}; {found}"),
        (_, Some(filter), None) => format!("{read}, and none with {filter}"),
        (_, None, _) => read.to_string(),
    }
}
