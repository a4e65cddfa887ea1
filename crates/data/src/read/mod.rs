//! The columns that are wanted of a file, as arrow batches; no other is decoded.

mod arrow;
mod delimited;
mod jsonl;
mod parquet;

use std::any::Any;
use std::error::Error;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use ::arrow::array::RecordBatch;
use ::arrow::error::ArrowError;
use ::parquet::errors::ParquetError;

use crate::nearest::{hint, nearest};
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
    /// A text without a letter.
    #[error("use {place}: the text in the column `{column}` is empty")]
    EmptyText {
        /// The file and row.
        place: Place,
        /// The column.
        column: String,
    },
}

fn filtered(filter: &Option<String>) -> String {
    filter.as_ref().map(|filter| format!(", and none with {filter}")).unwrap_or_default()
}

/// The batches of a file, with at least the columns `wanted`, of which each is there.
pub(crate) fn read(path: &Path, format: Format, wanted: &[&str]) -> Result<Vec<RecordBatch>, ReadError> {
    let file = File::open(path).map_err(|source| ReadError::Open { path: path.to_owned(), source })?;
    let decode = || match format {
        Format::Parquet => parquet::read(file, wanted),
        Format::Arrow => arrow::read(file, wanted),
        Format::Csv => delimited::read(file, delimited::COMMAS, wanted),
        Format::Tsv => delimited::read(file, delimited::TABS, wanted),
        Format::Jsonl => jsonl::read(file, wanted),
    };
    // The decoders slice by numbers that stand in the file, and a damaged one can make them panic.
    let result =
        catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|panic| Err(Failure::Broken(text(&*panic).into())));
    result.map_err(|failure| match failure {
        Failure::Broken(source) => ReadError::Corrupt { path: path.to_owned(), format, source },
        Failure::Missing { column, columns } => {
            let nearest = nearest(&column, columns.iter().map(String::as_str)).map(str::to_owned);
            ReadError::MissingColumn { path: path.to_owned(), column, columns, nearest }
        }
    })
}

/// What a decoder fails with; the path is added above.
#[derive(Debug)]
enum Failure {
    Broken(Box<dyn Error + Send + Sync>),
    Missing { column: String, columns: Vec<String> },
}

impl From<ArrowError> for Failure {
    fn from(error: ArrowError) -> Self {
        Self::Broken(error.into())
    }
}

impl From<ParquetError> for Failure {
    fn from(error: ParquetError) -> Self {
        Self::Broken(error.into())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.into())
    }
}

/// The places of the wanted columns among all, each once, in the file's order.
fn project(columns: &[String], wanted: &[&str]) -> Result<Vec<usize>, Failure> {
    let find = |name: &&str| {
        let missing = || Failure::Missing { column: (*name).to_owned(), columns: columns.to_vec() };
        columns.iter().position(|column| column == name).ok_or_else(missing)
    };
    let mut indices = wanted.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    indices.sort_unstable();
    indices.dedup();
    Ok(indices)
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("the decoder panicked").to_owned()
}
