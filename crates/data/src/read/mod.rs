//! The columns that are wanted of a file, batch by batch as arrow has them; no other is decoded.

mod arrow;
mod delimited;
mod error;
mod jsonl;
mod lines;
mod parquet;
mod text;

use std::any::Any;
use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use ::arrow::array::RecordBatch;
use ::arrow::datatypes::SchemaRef;
use ::arrow::error::ArrowError;
use ::parquet::errors::ParquetError;

use crate::Format;
use crate::dialect::{Delimiter, Dialect};

use self::text::LineError;

pub use error::ReadError;

/// No batch has more rows.
const MAX_ROWS: usize = 8192;

/// Source of bytes.
pub(crate) enum Source {
    File(File),
    /// It can be read once, from its beginning to its end.
    Stream(Box<dyn Read + Send>),
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Self, ReadError> {
        let failed = |source| ReadError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        // A pipe can have a name, too.
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

/// Options of opening a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Open {
    pub(crate) dialect: Dialect,
    pub(crate) keys: Keys,
}

/// The lines of a jsonl file that say which columns it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    /// All of them, for which a file is read twice; of a stream the first ones.
    All,
    /// So many, but at least one.
    First(usize),
}

/// Parts of a file to decode.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Projection {
    /// The places of columns, in the file's order.
    pub(crate) columns: Vec<usize>,
    /// True if the whole objects of a jsonl file follow as a column of their own.
    pub(crate) objects: bool,
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

    /// The conventions of a text file, as far as they are not the usual ones.
    fn dialect(&self) -> Dialect {
        Dialect::default()
    }

    /// The batches, with what is wanted alone, and of about `rows` rows.
    fn batches(self: Box<Self>, wanted: Projection, rows: usize) -> Result<Decoded, Failure>;
}

type Decoded = Box<dyn Iterator<Item = Result<RecordBatch, Failure>> + Send>;

/// Opens a file, which messages call `path`.
pub(crate) fn open(source: Source, path: &Path, format: Format, how: Open) -> Result<Opened, ReadError> {
    let Dialect { delimiter, encoding } = how.dialect;
    let unused = match format {
        Format::Csv | Format::Tsv => None,
        Format::Jsonl | Format::Lines => delimiter.map(|_| "delimiter"),
        Format::Parquet | Format::Arrow => delimiter.map(|_| "delimiter").or(encoding.map(|_| "encoding")),
    };
    if let Some(option) = unused {
        return Err(ReadError::UnusedOption { path: path.to_owned(), option, format });
    }
    let text = |source: Source| text::open(source.into_read(), encoding);
    let decoder = guarded(|| match (format, source) {
        (Format::Parquet, Source::File(file)) => parquet::open(file),
        (Format::Arrow, Source::File(file)) => arrow::open(file),
        (Format::Parquet | Format::Arrow, Source::Stream(_)) => Err(Failure::NeedsFile),
        (Format::Csv, source) => delimited::open(text(source)?, delimiter, delimited::COMMAS),
        (Format::Tsv, source) => delimited::open(text(source)?, delimiter, delimited::TABS),
        (Format::Jsonl, source) => jsonl::open(source, encoding, how.keys),
        (Format::Lines, source) => Ok(lines::open(text(source)?)),
    });
    match decoder {
        Ok(decoder) => Ok(Opened { path: path.into(), format, decoder }),
        Err(failure) => Err(failure.of(path, format)),
    }
}

/// The names in the header of a csv or tsv file; none if it is not one.
pub(crate) fn header(line: &str, format: Format, delimiter: Option<Delimiter>) -> Vec<String> {
    let source = Source::Stream(Box::new(io::Cursor::new(line.to_owned())));
    let how = Open { dialect: Dialect { delimiter, encoding: None }, keys: Keys::First(1) };
    let opened = open(source, Path::new(""), format, how);
    opened.map_or_else(|_| Vec::new(), |opened| opened.names())
}

impl Opened {
    fn names(&self) -> Vec<String> {
        self.schema().fields().iter().map(|field| field.name().clone()).collect()
    }

    pub(crate) fn schema(&self) -> SchemaRef {
        self.decoder.schema()
    }

    /// The conventions of a text file, as far as they are not the usual ones.
    pub(crate) fn dialect(&self) -> Dialect {
        self.decoder.dialect()
    }

    /// The place of a column, of whose name there may be no other.
    pub(crate) fn find(&self, name: &str) -> Result<usize, ReadError> {
        let columns = self.names();
        let mut places = (0..columns.len()).filter(|&place| columns[place] == name);
        match (places.next(), places.next()) {
            (Some(place), None) => Ok(place),
            (Some(_), Some(_)) => {
                Err(ReadError::AmbiguousColumn { path: self.path.to_path_buf(), column: name.to_owned() })
            }
            (None, _) => Err(ReadError::missing_column(&self.path, name, columns)),
        }
    }

    /// The columns at the places that are wanted, as batches of at most `rows` rows (and never above 8192).
    pub(crate) fn batches(self, mut wanted: Projection, rows: usize) -> Result<Batches, ReadError> {
        wanted.columns.sort_unstable();
        wanted.columns.dedup();
        let Self { path, format, decoder } = self;
        let rows = rows.clamp(1, MAX_ROWS);
        match guarded(|| decoder.batches(wanted, rows)) {
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
    Line(LineError),
    Broken(Box<dyn Error + Send + Sync>),
    NeedsFile,
}

/// Damage behind rows that were read, in a file without lines.
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
            Failure::Line(source) => ReadError::Corrupt { path, format, source: source.into() },
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
        match error.downcast::<LineError>() {
            Ok(error) => Self::Line(error),
            Err(error) => Self::Broken(error.into()),
        }
    }
}
