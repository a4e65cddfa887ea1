use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use crate::nearest::hint;
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
        "find the column `{column}` in {}: it has {}{}", path.display(), columns.join(", "), hint(nearest.as_deref())
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
    #[error("choose the column of texts in {}: {problem}; it has {}", path.display(), columns.join(", "))]
    NoText {
        /// The file.
        path: PathBuf,
        /// What is unclear.
        problem: String,
        /// The columns that there are.
        columns: Vec<String>,
    },
    /// Nothing to work on.
    #[error("find rows in {}: it has {read}{}", path.display(), filtered(filter))]
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
    /// A text without a letter.
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

    pub(crate) fn no_rows(path: &Path) -> Self {
        Self::NoRows { path: path.to_owned(), read: 0, filter: None }
    }
}

fn filtered(filter: &Option<String>) -> String {
    filter.as_ref().map(|filter| format!(", and none with {filter}")).unwrap_or_default()
}
