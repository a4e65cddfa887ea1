//! Decoders of all formats: selected columns of a file as arrow batches. Other columns are not decoded.

mod arrow;
mod dates;
mod delimited;
mod document;
mod error;
mod gzip;
mod jsonl;
mod lines;
mod objects;
mod parquet;
mod partitions;
mod text;
mod text_batch;

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;
use std::sync::Arc;

use ::arrow::array::RecordBatch;
use ::arrow::datatypes::SchemaRef;
use ::arrow::error::ArrowError;
use ::parquet::errors::ParquetError;
use sepal_core::catch_panic;

use crate::dialect::{Delimiter, Dialect};
use crate::{BoxError, Format, json};

use self::jsonl::Layout;
use self::text::LineError;

pub use error::ReadError;
pub use text::utf8_text;

const MAX_ROWS: usize = 8192;
/// Most columns of a file, which is that of spreadsheets. A column takes kilobytes of memory, and a byte of the file.
const MAX_COLUMNS: usize = 16_384;

pub(crate) enum Source {
    File(File),
    /// Source that can be read only once.
    Stream(Box<dyn Read + Send>),
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Self, ReadError> {
        let failed = |source| ReadError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        // A named pipe is a stream.
        let kind = file.metadata().map_err(failed)?.file_type();
        match (kind.is_file(), kind.is_dir()) {
            (true, _) => Ok(Self::File(file)),
            (false, true) => Err(failed(io::ErrorKind::IsADirectory.into())),
            (false, false) => Ok(Self::Stream(Box::new(file))),
        }
    }

    fn into_read(self) -> Box<dyn Read + Send> {
        match self {
            Source::File(file) => Box::new(file),
            Source::Stream(stream) => stream,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenOptions {
    pub(crate) dialect: Dialect,
    pub(crate) keys: KeyScan,
}

/// Objects of a json or jsonl file that are searched for its keys, which are its columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyScan {
    /// All objects of a file, which is read twice; the first objects of a stream.
    All,
    /// This number of objects, but at least one.
    First(usize),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Projection {
    /// Indices of columns, in the order of the file.
    pub(crate) columns: Vec<usize>,
    /// True if the complete objects of a json or jsonl file follow as a column of their own.
    pub(crate) objects: bool,
}

/// Open file whose columns are known and whose rows are not decoded yet.
pub(crate) struct OpenTable {
    path: Arc<Path>,
    format: Format,
    decoder: Box<dyn Decoder>,
}

/// Decoder before the first row.
trait Decoder {
    /// Schema of all columns. Columns of csv and tsv files are texts, those of json and jsonl files texts with the JSON of
    /// each value.
    fn schema(&self) -> SchemaRef;

    /// Conventions of a text file that differ from the defaults of its format.
    fn dialect(&self) -> Dialect {
        Dialect::default()
    }

    /// Batches of the projected columns, with about `rows` rows each.
    fn batches(self: Box<Self>, projection: Projection, rows: usize) -> Result<BatchIter, DecodeError>;
}

type BatchIter = Box<dyn Iterator<Item = Result<RecordBatch, DecodeError>> + Send>;

/// Opens a file; messages call it `path`.
pub(crate) fn open(source: Source, path: &Path, format: Format, options: OpenOptions) -> Result<OpenTable, ReadError> {
    let Dialect { delimiter, encoding } = options.dialect;
    let unused = match format {
        Format::Csv | Format::Tsv => None,
        Format::Json | Format::Jsonl | Format::Lines => delimiter.map(|_| "delimiter"),
        Format::Parquet | Format::Arrow => delimiter.map(|_| "delimiter").or(encoding.map(|_| "encoding")),
    };
    if let Some(option) = unused {
        return Err(ReadError::UnusedOption { path: path.to_owned(), option, format });
    }
    let text = |source: Source| text::open(source.into_read(), encoding);
    let decoder = catch_panics(|| match (format, source) {
        (Format::Parquet, Source::File(file)) => parquet::open(file).map(dates::in_days),
        (Format::Arrow, Source::File(file)) => arrow::open(file).map(dates::in_days),
        (Format::Parquet | Format::Arrow, Source::Stream(_)) => Err(DecodeError::NeedsFile),
        (Format::Csv, source) => delimited::open_csv(text(source)?, delimiter),
        (Format::Tsv, source) => delimited::open_tsv(source, encoding, delimiter),
        (Format::Json, source) => jsonl::open(source, encoding, options.keys, Layout::Document),
        (Format::Jsonl, source) => jsonl::open(source, encoding, options.keys, Layout::Lines),
        (Format::Lines, source) => Ok(lines::open(text(source)?)),
    });
    let checked = decoder.and_then(|decoder| check_columns(decoder.schema().fields().len()).map(|()| decoder));
    match checked {
        Ok(decoder) => Ok(OpenTable { path: path.into(), format, decoder }),
        Err(error) => Err(error.into_read_error(path, format)),
    }
}

/// Error if a file has more columns than are read.
fn check_columns(found: usize) -> Result<(), DecodeError> {
    match found > MAX_COLUMNS {
        true => Err(DecodeError::Broken(
            format!(
                "it has more than {MAX_COLUMNS} columns; keep those of the texts and labels, or look if its keys are ids of \
                 rows"
            )
            .into(),
        )),
        false => Ok(()),
    }
}

/// Error if a file of a format that is compressed inside is itself compressed. The file stays at its start.
fn check_uncompressed(mut file: &File) -> Result<(), DecodeError> {
    let mut start = Vec::new();
    file.take(gzip::MAGIC.len() as u64).read_to_end(&mut start)?;
    file.rewind()?;
    match start == gzip::MAGIC {
        true => Err(DecodeError::Broken("it is compressed by gzip as a whole; decompress it".into())),
        false => Ok(()),
    }
}

impl Format {
    /// Format of a stream of a table that begins with the line `first`: csv or tsv, if `column` and another name are among
    /// its cells; csv, if it states the separator, as `sep=;` does; jsonl, if it is an object with the member `column`; json,
    /// if a list of objects begins there, the first of which has that member.
    pub fn detect_table(first: &str, column: &str) -> Option<Self> {
        let [semicolon, _, bar] = Delimiter::OTHERS;
        let dialects = [
            (Format::Csv, Delimiter::COMMA),
            (Format::Csv, semicolon),
            (Format::Csv, bar),
            (Format::Tsv, Delimiter::TAB),
        ];
        let is_header = |(format, delimiter): &(Format, Delimiter)| {
            let names = header(first, *format, *delimiter);
            names.len() > 1 && names.iter().any(|name| name == column)
        };
        let is_object = json::members(first).is_ok_and(|members| members.iter().any(|member| member.name() == column));
        if delimited::separator_line(first.trim_start_matches('\u{feff}').as_bytes()).is_some() {
            return Some(Format::Csv);
        }
        let is_list = first.trim_start_matches('\u{feff}').trim_start().starts_with("[{")
            && first.contains(&serde_json::json!(column).to_string());
        if is_list {
            return Some(Format::Json);
        }
        let by_cells = || dialects.into_iter().find(is_header).map(|(format, _)| format);
        if is_object { Some(Format::Jsonl) } else { by_cells() }
    }
}

/// Names in the header of a csv or tsv file; none if the line is not a header.
fn header(line: &str, format: Format, delimiter: Delimiter) -> Vec<String> {
    let source = Source::Stream(Box::new(io::Cursor::new(line.to_owned())));
    let dialect = Dialect { delimiter: Some(delimiter), encoding: None };
    let opened = open(source, Path::new(""), format, OpenOptions { dialect, keys: KeyScan::First(1) });
    opened.map_or_else(|_| Vec::new(), |opened| opened.names())
}

impl OpenTable {
    fn names(&self) -> Vec<String> {
        self.schema().fields().iter().map(|field| field.name().clone()).collect()
    }

    pub(crate) fn schema(&self) -> SchemaRef {
        self.decoder.schema()
    }

    pub(crate) fn dialect(&self) -> Dialect {
        self.decoder.dialect()
    }

    /// Appends columns with one value in all rows; columns of the file go before those of the same name.
    pub(crate) fn with_partitions(self, partitions: &[(String, Option<String>)]) -> Self {
        let Self { path, format, decoder } = self;
        Self { path, format, decoder: partitions::append(decoder, partitions, format.is_json()) }
    }

    /// Index of the only column of this name.
    pub(crate) fn find(&self, name: &str) -> Result<usize, ReadError> {
        let columns = self.names();
        let mut indices = (0..columns.len()).filter(|&index| columns[index] == name);
        match (indices.next(), indices.next()) {
            (Some(index), None) => Ok(index),
            (Some(_), Some(_)) => {
                Err(ReadError::AmbiguousColumn { path: self.path.to_path_buf(), column: name.to_owned() })
            }
            (None, _) => Err(ReadError::missing_column(&self.path, name, columns)),
        }
    }

    /// Batches of the projected columns, with at most `rows` rows each (and never above 8192).
    pub(crate) fn batches(self, mut projection: Projection, rows: usize) -> Result<Batches, ReadError> {
        projection.columns.sort_unstable();
        projection.columns.dedup();
        let Self { path, format, decoder } = self;
        let rows = rows.clamp(1, MAX_ROWS);
        match catch_panics(|| decoder.batches(projection, rows)) {
            Ok(decoded) => Ok(Batches { path, format, rows, decoded: Some(decoded), remainder: None, n_read: 0 }),
            Err(error) => Err(error.into_read_error(&path, format)),
        }
    }
}

/// Batches of a file; iteration ends after an error.
pub(crate) struct Batches {
    path: Arc<Path>,
    format: Format,
    rows: usize,
    decoded: Option<BatchIter>,
    /// Rows of a larger batch of the file that are not returned yet.
    remainder: Option<RecordBatch>,
    n_read: usize,
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = match self.remainder.take() {
            Some(remainder) => remainder,
            None => match self.decode() {
                Ok(batch) => batch?,
                Err(error) => {
                    self.decoded = None;
                    return Some(Err(error.after_row(self.n_read).into_read_error(&self.path, self.format)));
                }
            },
        };
        let rows = batch.num_rows().min(self.rows);
        self.remainder = (rows < batch.num_rows()).then(|| batch.slice(rows, batch.num_rows() - rows));
        self.n_read += rows;
        Some(Ok(batch.slice(0, rows)))
    }
}

impl Batches {
    fn decode(&mut self) -> Result<Option<RecordBatch>, DecodeError> {
        let Some(decoded) = &mut self.decoded else { return Ok(None) };
        catch_panics(|| decoded.find(|batch| !matches!(batch, Ok(batch) if batch.num_rows() == 0)).transpose())
    }
}

/// Turns a panic of a decoder into an error: damaged files contain offsets that are out of range.
fn catch_panics<T>(decode: impl FnOnce() -> Result<T, DecodeError>) -> Result<T, DecodeError> {
    catch_panic(decode).unwrap_or_else(|panic| Err(DecodeError::Broken(panic.into())))
}

#[derive(Debug)]
enum DecodeError {
    Line(LineError),
    Broken(BoxError),
    NeedsFile,
}

/// Damage after the rows that were read, in a file without lines.
#[derive(Debug, thiserror::Error)]
#[error("decode the data after row {row}")]
struct DamageAfterRow {
    row: usize,
    source: BoxError,
}

impl DecodeError {
    fn after_row(self, row: usize) -> Self {
        match self {
            DecodeError::Broken(source) if row > 0 => DecodeError::Broken(Box::new(DamageAfterRow { row, source })),
            other => other,
        }
    }

    fn into_read_error(self, path: &Path, format: Format) -> ReadError {
        let path = path.to_owned();
        match self {
            DecodeError::Line(source) => ReadError::Corrupt { path, format, source: source.into() },
            DecodeError::Broken(source) => ReadError::Corrupt { path, format, source },
            DecodeError::NeedsFile => ReadError::NeedsFile { path, format },
        }
    }
}

impl From<ArrowError> for DecodeError {
    fn from(error: ArrowError) -> Self {
        Self::Broken(error.into())
    }
}

impl From<ParquetError> for DecodeError {
    fn from(error: ParquetError) -> Self {
        Self::Broken(error.into())
    }
}

impl From<io::Error> for DecodeError {
    fn from(error: io::Error) -> Self {
        match error.downcast::<LineError>() {
            Ok(error) => Self::Line(error),
            Err(error) => Self::Broken(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_distinguished_from_text() {
        let check = |line: &str, expected| assert_eq!(Format::detect_table(line, "review"), expected, "{line}");
        check("id,\"review\",sentiment\n", Some(Format::Csv));
        check("\u{feff}review,id\r\n", Some(Format::Csv));
        check("id\treview", Some(Format::Tsv));
        check("id;review", Some(Format::Csv));
        check("sep=;\r\n", Some(Format::Csv));
        check("\"id\"\t\"review\"", Some(Format::Tsv));
        check("{\"id\": 1, \"review\": \"good\"}\n", Some(Format::Jsonl));
        check("[{\"id\": 1, \"review\": \"good\"},\n", Some(Format::Json));
        for text in ["review", "a review, and a long one", "id,text", "", "\"review, id", "{\"text\": 1}", "{review}"] {
            check(text, None);
        }
    }
}
