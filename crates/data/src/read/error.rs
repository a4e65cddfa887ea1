use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use crate::nearest::{delimiter_hint, hint, nearest, other_delimiter, separators};
use crate::{Format, Place};

/// A file that gives no table.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file cannot be opened.
    #[error("open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The ending says nothing.
    #[error(
        "tell the format of {}: its ending is none of parquet, arrow, feather, csv, tsv, jsonl; give the format explicitly",
        path.display()
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// The content is damaged, or of another format.
    #[error("read {} as {format}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What it should be.
        format: Format,
        /// What is wrong with it.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The file has no such column.
    #[error(
        "find the column `{column}` in {}: it has {}{}{}",
        path.display(),
        columns.join(", "),
        hint(nearest.as_deref()),
        delimiter_hint(columns, column)
    )]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The column that was asked for.
        column: String,
        /// The columns that there are.
        columns: Vec<String>,
        /// The one most like it.
        nearest: Option<String>,
    },
    /// The file has several columns of the name.
    #[error("use the column `{column}` of {}: there are several of that name; rename all but one", path.display())]
    AmbiguousColumn {
        /// The file.
        path: PathBuf,
        /// The name.
        column: String,
    },
    /// An option that the format has no use for.
    #[error("read {} as {format}, which has no {option}; leave that out, or give another format", path.display())]
    UnusedOption {
        /// The file.
        path: PathBuf,
        /// `delimiter` or `encoding`.
        option: &'static str,
        /// The format.
        format: Format,
    },
    /// A column holds something else.
    #[error("use the column `{column}` of {}: it holds {found}, expected {expected}", path.display())]
    ColumnType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// What it should hold.
        expected: &'static str,
        /// What it holds.
        found: String,
    },
    /// A format that is not read from its beginning to its end.
    #[error("read {format} from {}: that takes a file; streams are csv, tsv, jsonl or lines", path.display())]
    NeedsFile {
        /// What the stream is called.
        path: PathBuf,
        /// The format.
        format: Format,
    },
    /// No column is clearly the one of texts.
    #[error("choose the column of texts in {}: {problem}; it has {}{}", path.display(), columns.join(", "), separators(columns))]
    NoText {
        /// The file.
        path: PathBuf,
        /// What is unclear.
        problem: String,
        /// The columns that there are.
        columns: Vec<String>,
    },
    /// Nothing at all.
    #[error("find rows in {}: it is empty", path.display())]
    Empty {
        /// The (first) file.
        path: PathBuf,
    },
    /// Columns, and nothing to work on.
    #[error("find rows in {}: it has {}", path.display(), no_rows(*read, filter.as_deref()))]
    NoRows {
        /// The (first) file.
        path: PathBuf,
        /// Rows before the filter.
        read: usize,
        /// The filter, if there is one: `column = value`, joined by `and`.
        filter: Option<String>,
    },
    /// A cell without a value.
    #[error("use {place}: the column `{column}` is null there")]
    Null {
        /// The file and row.
        place: Place,
        /// The column.
        column: String,
    },
    /// A cell that is no text.
    #[error("use {place}: the column `{column}` holds a list or an object there, expected a text")]
    NotText {
        /// The file and row.
        place: Place,
        /// The column.
        column: String,
    },
    /// A text without a token.
    #[error("use {place}: the text in the column `{column}` yields no token")]
    NoToken {
        /// The file and row.
        place: Place,
        /// The column.
        column: String,
    },
    /// A text without a character.
    #[error("use {place}: the text in the column `{column}` is empty")]
    EmptyText {
        /// The file and row.
        place: Place,
        /// The column.
        column: String,
    },
}

impl ReadError {
    pub(crate) fn broken(path: &Path, format: Format, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Corrupt { path: path.to_owned(), format, source: source.into() }
    }

    /// Of a file whose name does not tell its format.
    pub(crate) fn unknown_format(path: &Path) -> Self {
        let path = path.to_owned();
        match path.is_dir() {
            true => Self::Open { path, source: io::ErrorKind::IsADirectory.into() },
            false => Self::UnknownFormat { path },
        }
    }

    /// Returns true if a missing column is part of a header of one cell that has other separators in it.
    pub fn is_of_other_delimiter(&self) -> bool {
        matches!(self, Self::MissingColumn { column, columns, .. } if other_delimiter(columns, column).is_some())
    }

    pub(crate) fn missing_column(path: &Path, name: &str, columns: Vec<String>) -> Self {
        let nearest = nearest(name, columns.iter().map(String::as_str)).map(str::to_owned);
        Self::MissingColumn { path: path.to_owned(), column: name.to_owned(), columns, nearest }
    }

    /// Of a file that was read without finding a row.
    pub(crate) fn no_rows(path: &Path, has_columns: bool) -> Self {
        let path = path.to_owned();
        if has_columns { Self::NoRows { path, read: 0, filter: None } } else { Self::Empty { path } }
    }
}

fn no_rows(read: usize, filter: Option<&str>) -> String {
    match (read, filter) {
        (0, _) => "the names of columns and no row".to_owned(),
        (_, Some(filter)) => format!("{read}, and none with {filter}"),
        (_, None) => read.to_string(),
    }
}
