//! The columns that are wanted of a file, batch by batch as arrow has them; no other is decoded.

mod arrow;
mod delimited;
mod error;
mod jsonl;
mod lines;
mod parquet;

use std::any::Any;
use std::error::Error;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use ::arrow::array::RecordBatch;
use ::arrow::datatypes::SchemaRef;
use ::arrow::error::ArrowError;
use ::parquet::errors::ParquetError;

use crate::Format;

pub use error::ReadError;

/// No batch has more rows.
const MAX_ROWS: usize = 8192;

/// Where bytes come from.
pub(crate) enum Source {
    File(File),
    /// It can be read once, from its beginning to its end.
    Stream(Box<dyn Read + Send>),
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Self, ReadError> {
        File::open(path).map(Self::File).map_err(|source| ReadError::Open { path: path.to_owned(), source })
    }

    fn into_read(self) -> Box<dyn Read + Send> {
        match self {
            Source::File(file) => Box::new(file),
            Source::Stream(stream) => stream,
        }
    }
}

/// A file whose columns are known, and of which nothing else is decoded yet.
pub(crate) struct Opened {
    path: Arc<Path>,
    format: Format,
    decoder: Box<dyn Decode>,
}

/// A decoder that stands before the first row.
trait Decode {
    /// All columns. Those of csv and tsv files are texts, those of jsonl files texts with the JSON of each value.
    fn schema(&self) -> SchemaRef;

    /// The batches, with the columns at `indices` (in order) alone, and of about `rows` rows.
    fn batches(self: Box<Self>, indices: Vec<usize>, rows: usize) -> Result<Decoded, Failure>;
}

type Decoded = Box<dyn Iterator<Item = Result<RecordBatch, Failure>> + Send>;

/// Opens a file, which messages call `path`. `peek` lines of a jsonl file (at least one) say which columns there are.
pub(crate) fn open(source: Source, path: &Path, format: Format, peek: usize) -> Result<Opened, ReadError> {
    let decoder = guarded(|| match (format, source) {
        (Format::Parquet, Source::File(file)) => parquet::open(file),
        (Format::Arrow, Source::File(file)) => arrow::open(file),
        (Format::Parquet | Format::Arrow, Source::Stream(_)) => Err(Failure::NeedsFile),
        (Format::Csv, source) => delimited::open(source.into_read(), delimited::COMMAS),
        (Format::Tsv, source) => delimited::open(source.into_read(), delimited::TABS),
        (Format::Jsonl, source) => jsonl::open(source.into_read(), peek),
        (Format::Lines, source) => Ok(lines::open(source.into_read())),
    });
    match decoder {
        Ok(decoder) => Ok(Opened { path: path.into(), format, decoder }),
        Err(failure) => Err(failure.of(path, format)),
    }
}

/// The names in the header of a csv or tsv file; none if it is not one.
pub(crate) fn header(line: &str, format: Format) -> Vec<String> {
    let source = Source::Stream(Box::new(io::Cursor::new(line.to_owned())));
    let opened = open(source, Path::new(""), format, 0);
    opened.map_or_else(|_| Vec::new(), |opened| opened.names())
}

impl Opened {
    fn names(&self) -> Vec<String> {
        self.schema().fields().iter().map(|field| field.name().clone()).collect()
    }

    pub(crate) fn schema(&self) -> SchemaRef {
        self.decoder.schema()
    }

    /// The place of a column.
    pub(crate) fn find(&self, name: &str) -> Result<usize, ReadError> {
        let columns = self.names();
        let place = columns.iter().position(|column| column == name);
        place.ok_or_else(|| ReadError::missing_column(&self.path, name, columns))
    }

    /// The columns at `indices`, in the file's order, as batches of at most `rows` rows (and never above 8192).
    pub(crate) fn batches(self, mut indices: Vec<usize>, rows: usize) -> Result<Batches, ReadError> {
        indices.sort_unstable();
        indices.dedup();
        let Self { path, format, decoder } = self;
        let rows = rows.clamp(1, MAX_ROWS);
        match guarded(|| decoder.batches(indices, rows)) {
            Ok(decoded) => Ok(Batches { path, format, rows, decoded: Some(decoded), rest: None, given: 0 }),
            Err(failure) => Err(failure.of(&path, format)),
        }
    }
}

/// The batches of a file; after an error there is none.
pub(crate) struct Batches {
    path: Arc<Path>,
    format: Format,
    rows: usize,
    decoded: Option<Decoded>,
    /// What is left of a batch that is larger in the file.
    rest: Option<RecordBatch>,
    /// The rows so far.
    given: usize,
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let whole = match self.rest.take() {
            Some(rest) => rest,
            None => match self.decode() {
                Ok(batch) => batch?,
                Err(failure) => {
                    self.decoded = None;
                    return Some(Err(failure.after(self.given).of(&self.path, self.format)));
                }
            },
        };
        let rows = whole.num_rows().min(self.rows);
        self.rest = (rows < whole.num_rows()).then(|| whole.slice(rows, whole.num_rows() - rows));
        self.given += rows;
        Some(Ok(whole.slice(0, rows)))
    }
}

impl Batches {
    /// The next batch that has a row.
    fn decode(&mut self) -> Result<Option<RecordBatch>, Failure> {
        let Some(decoded) = &mut self.decoded else { return Ok(None) };
        guarded(|| decoded.find(|batch| !matches!(batch, Ok(batch) if batch.num_rows() == 0)).transpose())
    }
}

/// The decoders slice by numbers that stand in the file, and a damaged one can make them panic.
fn guarded<T>(decode: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|panic| Err(Failure::Broken(text(&*panic).into())))
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("the decoder panicked").to_owned()
}

/// What a decoder fails with; the path is added above.
#[derive(Debug)]
enum Failure {
    Broken(Box<dyn Error + Send + Sync>),
    NeedsFile,
}

/// Damage behind rows that were read.
#[derive(Debug, thiserror::Error)]
#[error("decode what follows row {row}")]
struct Later {
    row: usize,
    source: Box<dyn Error + Send + Sync>,
}

impl Failure {
    fn after(self, row: usize) -> Self {
        match self {
            Failure::Broken(source) if row > 0 => Failure::Broken(Box::new(Later { row, source })),
            other => other,
        }
    }

    fn of(self, path: &Path, format: Format) -> ReadError {
        let path = path.to_owned();
        match self {
            Failure::Broken(source) => ReadError::Corrupt { path, format, source },
            Failure::NeedsFile => ReadError::NeedsFile { path, format },
        }
    }
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

/// The lines of a text, one at a time; the mark that some editors put before the first is no part of it.
struct Lines<R> {
    reader: R,
    /// The number of the last line, from 1.
    number: usize,
    bytes: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    fn new(reader: R) -> Self {
        Self { reader, number: 0, bytes: Vec::new() }
    }

    /// The next line without its end.
    fn next(&mut self) -> Result<Option<&str>, Failure> {
        self.bytes.clear();
        if self.reader.read_until(b'\n', &mut self.bytes)? == 0 {
            return Ok(None);
        }
        self.number += 1;
        let line = str::from_utf8(&self.bytes).map_err(|error| self.broken(error))?;
        let line = line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
        Ok(Some(if self.number == 1 { line.strip_prefix('\u{feff}').unwrap_or(line) } else { line }))
    }

    fn broken(&self, error: impl std::fmt::Display) -> Failure {
        Failure::Broken(format!("line {}: {error}", self.number).into())
    }
}
