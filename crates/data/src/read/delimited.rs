//! Csv and tsv files: cells as texts, and empty ones as null.

mod quotes;
mod records;

use std::io::{BufReader, Cursor, Read};
use std::sync::Arc;

use arrow::array::StringBuilder;
use arrow::datatypes::{Schema, SchemaRef};

use super::text::{LineError, Text, not_utf8};
use super::text_batch::{next_batch, schema_of};
use super::{BatchIter, DecodeError, Decoder, Projection, check_columns};
use crate::dialect::{Delimiter, Dialect};
use crate::suggest::{delimiter_hint, delimiter_remedy};
use records::{Record, Records};

/// Number of bytes at the start of a file that are searched for its delimiter.
const PEEK_BYTES: usize = 1 << 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CellSyntax {
    delimiter: Delimiter,
    quoted: bool,
}

pub(super) const COMMAS: CellSyntax = CellSyntax { delimiter: Delimiter::COMMA, quoted: true };
/// Quotation marks are ordinary characters in tsv files.
pub(super) const TABS: CellSyntax = CellSyntax { delimiter: Delimiter::TAB, quoted: false };

type Input = BufReader<Box<dyn Read + Send>>;

struct Delimited {
    records: Records<Input>,
    schema: SchemaRef,
    dialect: Dialect,
}

pub(super) fn open(text: Text, given: Option<Delimiter>, usual: CellSyntax) -> Result<Box<dyn Decoder>, DecodeError> {
    let Text { mut reader, encoding } = text;
    let mut syntax = CellSyntax { delimiter: given.unwrap_or(usual.delimiter), ..usual };
    if given.is_none() && usual == COMMAS {
        let mut start = Vec::new();
        if let Some(delimiter) = detect_delimiter(&mut *reader, &mut start, syntax)? {
            syntax.delimiter = delimiter;
        }
        reader = Box::new(Cursor::new(start).chain(reader));
    }
    let mut records = Records::new(BufReader::new(reader), syntax);
    let names: Result<Vec<String>, DecodeError> = match records.next()? {
        Some(header) => {
            check_columns(header.len())?;
            (0..header.len()).map(|index| cell(header, index).map(str::to_owned)).collect()
        }
        None => Ok(Vec::new()),
    };
    let dialect = Dialect {
        delimiter: Some(syntax.delimiter).filter(|delimiter| *delimiter != usual.delimiter),
        encoding: encoding.unless_utf8(),
    };
    Ok(Box::new(Delimited { records, schema: schema_of(names?), dialect }))
}

impl Decoder for Delimited {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn dialect(&self) -> Dialect {
        self.dialect
    }

    fn batches(mut self: Box<Self>, projection: Projection, rows: usize) -> Result<BatchIter, DecodeError> {
        if self.schema.fields().is_empty() {
            return Ok(Box::new(std::iter::empty()));
        }
        let schema = Arc::new(self.schema.project(&projection.columns)?);
        let mut batch = move || next_batch(&schema, rows, |columns| self.append(&projection.columns, columns));
        Ok(Box::new(std::iter::from_fn(move || batch().transpose())))
    }
}

impl Delimited {
    fn append(&mut self, indices: &[usize], columns: &mut [StringBuilder]) -> Result<bool, DecodeError> {
        let Some(record) = self.records.next()? else { return Ok(false) };
        check_length(record, &self.schema)?;
        for (&index, column) in indices.iter().zip(columns) {
            column.append_option(Some(cell(record, index)?).filter(|cell| !cell.is_empty()));
        }
        Ok(true)
    }
}

fn check_length(record: Record<'_>, schema: &Schema) -> Result<(), DecodeError> {
    let expected = schema.fields().len();
    if record.len() == expected {
        return Ok(());
    }
    let names: Vec<&String> = schema.fields().iter().map(|field| field.name()).collect();
    // Commas in the texts of a file with other separators make rows of too many cells.
    let remedy = delimiter_remedy(&names);
    let hint = delimiter_hint(remedy);
    let problem = format!("it has {} cells, expected {expected} as in the header{hint}", record.len());
    Err(DecodeError::Line(LineError { line: record.line, problem, remedy }))
}

fn cell(record: Record<'_>, index: usize) -> Result<&str, DecodeError> {
    let bytes = record.cell(index);
    str::from_utf8(bytes).map_err(|error| not_utf8(record.line, bytes, error))
}

/// Delimiter by which the header of a csv file and its first row have the same number of cells, if commas make one cell
/// of the header. Appends the bytes that it reads to `start`.
fn detect_delimiter(
    reader: &mut dyn Read,
    start: &mut Vec<u8>,
    syntax: CellSyntax,
) -> Result<Option<Delimiter>, DecodeError> {
    read_lines(reader, start, 1)?;
    if cell_counts(start, syntax).0 != Some(1) || fitting_delimiter(start, syntax).is_none() {
        return Ok(None);
    }
    read_lines(reader, start, 2)?;
    Ok(fitting_delimiter(start, syntax))
}

fn fitting_delimiter(start: &[u8], syntax: CellSyntax) -> Option<Delimiter> {
    Delimiter::OTHERS.into_iter().find(|&delimiter| match cell_counts(start, CellSyntax { delimiter, ..syntax }) {
        (Some(header), row) => header > 1 && row.is_none_or(|row| row == header),
        (None, _) => false,
    })
}

/// Numbers of cells in the header and in the first row, if their lines are complete.
fn cell_counts(start: &[u8], syntax: CellSyntax) -> (Option<usize>, Option<usize>) {
    let complete = start.iter().rposition(|byte| matches!(byte, b'\n' | b'\r')).map_or(start.len(), |end| end + 1);
    let mut records = Records::new(&start[..complete], syntax);
    let mut count = || records.next().ok().flatten().map(Record::len);
    (count(), count())
}

/// Reads until `start` has this number of non-empty lines, the file ends, or [`PEEK_BYTES`] are read.
fn read_lines(reader: &mut dyn Read, start: &mut Vec<u8>, lines: usize) -> Result<(), DecodeError> {
    let has_lines = |start: &[u8]| {
        let mut ended = start.split(|byte| matches!(byte, b'\n' | b'\r'));
        // The text after the last line end may continue.
        ended.next_back();
        ended.filter(|line| !line.is_empty()).count() >= lines
    };
    let mut buffer = vec![0; 4096];
    while !has_lines(start) && start.len() < PEEK_BYTES {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => start.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
