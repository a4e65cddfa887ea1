use std::io;
use std::path::PathBuf;

use arrow::error::ArrowError;
use parquet::errors::ParquetError;

use crate::{Format, RowLocation};

/// Error of writing predictions.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum WriteError {
    /// The file name does not tell the format.
    #[error("tell the format of {}: its ending is none of csv, tsv, jsonl, parquet", path.display())]
    Format { path: PathBuf },
    /// A name of a compressed file.
    #[error("write {}: predictions are not compressed; leave out the ending .gz", path.display())]
    Compressed { path: PathBuf },
    /// A format that is not supported for predictions.
    #[error("write predictions as {format}: expected csv, tsv, jsonl or parquet")]
    Unsupported { format: Format },
    /// A format that requires a file.
    #[error("write {format} to a stream: that takes a file; streams are csv, tsv or jsonl")]
    NeedsFile { format: Format },
    /// The file exists.
    #[error("write {}: it exists; allow it to be overwritten, or give another name", path.display())]
    Exists { path: PathBuf },
    /// The path is a folder or a device.
    #[error("write {}: it is not a file", path.display())]
    NotAFile { path: PathBuf },
    /// The file's folder does not exist, or is not writable.
    #[error("write into the folder {}", folder.display())]
    Folder { folder: PathBuf, source: io::Error },
    /// Two columns have one name.
    #[error("write two columns `{column}`: the input has two of that name; rename one, or leave it out")]
    Column { column: String },
    /// Two new columns have one name.
    #[error("write two columns `{column}`: two models have columns of that name; give the models other names")]
    NewColumn { column: String },
    /// A key that is missing from the header of a csv file or the schema of a parquet file, which is already written.
    #[error(
        "write {location}: the key `{key}` is in no earlier row, so there is no column for it; read from a file \
         instead of a stream, or write jsonl"
    )]
    LateKey { location: RowLocation, key: String },
    /// A passthrough column that no format can represent.
    #[error("write the column `{column}`: values of type {found} cannot be written; leave it out")]
    Type { column: String, found: String },
    /// A name that contains the separator of names.
    #[error("join the label `{name}` with others by `|`: it holds one; write jsonl or parquet")]
    Name { name: String },
    /// The numbers of predictions and rows, or of probabilities and classes, differ.
    #[error("write predictions: {predictions} for {rows} {unit}")]
    Rows {
        predictions: usize,
        rows: usize,
        /// `rows`, `classes`, `options`, `words` or `models`.
        unit: &'static str,
    },
    /// The reader has closed the stream, which ends the output without a failure.
    #[error("write to a stream that was closed")]
    Closed,
    /// Writing to the file or stream failed.
    #[error("write {}", path.display())]
    Io {
        /// The file, or a name for the stream.
        path: PathBuf,
        source: io::Error,
    },
    /// An earlier chunk failed, and no file is left.
    #[error("finish predictions: an error occurred after {rows} rows")]
    Unfinished { rows: u64 },
    /// A column cannot be built or written.
    #[error("lay out predictions")]
    Arrow(#[from] ArrowError),
    /// A parquet file cannot be written.
    #[error("write predictions as parquet")]
    Parquet(#[from] ParquetError),
}
