//! Csv and tsv files: cells as texts, and empty ones as null.

mod quotes;
mod records;

use std::io::{BufReader, Cursor, Read};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::text::{Text, not_utf8};
use super::{Decode, Decoded, Failure, Projection};
use crate::dialect::{Delimiter, Dialect, Encoding};
use crate::nearest::separators;
use records::{Record, Records};

/// The first bytes of a file, in which its delimiter is looked for.
const PEEK_BYTES: usize = 1 << 16;

/// Conventions of cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cells {
    delimiter: Delimiter,
    /// True if cells may stand in quotation marks.
    quoted: bool,
}

/// The conventions of a format, as far as they are known before the file is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conventions {
    delimiter: Delimiter,
    quoted: bool,
    /// True if other delimiters are tried when none was given.
    guessed: bool,
}

pub(super) const COMMAS: Conventions = Conventions { delimiter: Delimiter::COMMA, quoted: true, guessed: true };
/// No byte of such a file is a quotation mark.
pub(super) const TABS: Conventions = Conventions { delimiter: Delimiter::TAB, quoted: false, guessed: false };

type Input = BufReader<Box<dyn Read + Send>>;

struct Delimited {
    records: Records<Input>,
    schema: SchemaRef,
    dialect: Dialect,
}

pub(super) fn open(text: Text, given: Option<Delimiter>, usual: Conventions) -> Result<Box<dyn Decode>, Failure> {
    let Text { mut reader, encoding } = text;
    let mut cells = Cells { delimiter: given.unwrap_or(usual.delimiter), quoted: usual.quoted };
    if given.is_none() && usual.guessed {
        let mut seen = Vec::new();
        if let Some(delimiter) = guess(&mut *reader, &mut seen, cells)? {
            cells.delimiter = delimiter;
        }
        reader = Box::new(Cursor::new(seen).chain(reader));
    }
    let mut records = Records::new(BufReader::new(reader), cells);
    let names: Result<Vec<String>, Failure> = match records.next()? {
        Some(header) => (0..header.len()).map(|index| cell(header, index).map(str::to_owned)).collect(),
        None => Ok(Vec::new()),
    };
    let fields = names?.into_iter().map(|name| Field::new(name, DataType::Utf8, true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let dialect = Dialect {
        delimiter: Some(cells.delimiter).filter(|delimiter| *delimiter != usual.delimiter),
        encoding: Some(encoding).filter(|encoding| *encoding != Encoding::UTF_8),
    };
    Ok(Box::new(Delimited { records, schema, dialect }))
}

impl Decode for Delimited {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn dialect(&self) -> Dialect {
        self.dialect
    }

    fn batches(mut self: Box<Self>, wanted: Projection, rows: usize) -> Result<Decoded, Failure> {
        if self.schema.fields().is_empty() {
            return Ok(Box::new(std::iter::empty()));
        }
        let schema = Arc::new(self.schema.project(&wanted.columns)?);
        Ok(Box::new(std::iter::from_fn(move || self.batch(&wanted.columns, &schema, rows).transpose())))
    }
}

impl Delimited {
    fn batch(&mut self, indices: &[usize], schema: &SchemaRef, rows: usize) -> Result<Option<RecordBatch>, Failure> {
        let mut columns: Vec<StringBuilder> = indices.iter().map(|_| StringBuilder::new()).collect();
        let mut n = 0;
        while n < rows {
            let Some(record) = self.records.next()? else { break };
            check(record, &self.schema)?;
            for (&index, column) in indices.iter().zip(&mut columns) {
                column.append_option(Some(cell(record, index)?).filter(|cell| !cell.is_empty()));
            }
            n += 1;
        }
        if n == 0 {
            return Ok(None);
        }
        let columns = columns.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(n));
        Ok(Some(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?))
    }
}

/// Errors if the record has not as many cells as the header.
fn check(record: Record<'_>, schema: &Schema) -> Result<(), Failure> {
    let expected = schema.fields().len();
    if record.len() == expected {
        return Ok(());
    }
    let names: Vec<&String> = schema.fields().iter().map(|field| field.name()).collect();
    // Commas in the texts of a file with other separators make rows of too many cells.
    let hint = separators(&names);
    Err(record.broken(format!("it has {} cells, expected {expected} as in the header{hint}", record.len())))
}

fn cell(record: Record<'_>, index: usize) -> Result<&str, Failure> {
    let bytes = record.cell(index);
    str::from_utf8(bytes).map_err(|error| record.broken(not_utf8(bytes, error)))
}

/// The delimiter by which the header of a csv file and its first row have the same number of cells, if commas make one
/// cell of the header. Leaves in `seen` what was read.
fn guess(reader: &mut dyn Read, seen: &mut Vec<u8>, cells: Cells) -> Result<Option<Delimiter>, Failure> {
    read_lines(reader, seen, 1)?;
    if counts(seen, cells).0 != Some(1) || fitting(seen, cells).is_none() {
        return Ok(None);
    }
    read_lines(reader, seen, 2)?;
    Ok(fitting(seen, cells))
}

fn fitting(seen: &[u8], cells: Cells) -> Option<Delimiter> {
    Delimiter::OTHERS.into_iter().find(|&delimiter| match counts(seen, Cells { delimiter, ..cells }) {
        (Some(header), row) => header > 1 && row.is_none_or(|row| row == header),
        (None, _) => false,
    })
}

/// The number of cells in the header and in the first row, as far as their lines are whole.
fn counts(seen: &[u8], cells: Cells) -> (Option<usize>, Option<usize>) {
    let whole = seen.iter().rposition(|byte| matches!(byte, b'\n' | b'\r')).map_or(seen.len(), |end| end + 1);
    let mut records = Records::new(&seen[..whole], cells);
    let mut count = || records.next().ok().flatten().map(Record::len);
    (count(), count())
}

/// Reads on until `seen` has so many lines with something in them, unless the file ends or they are long.
fn read_lines(reader: &mut dyn Read, seen: &mut Vec<u8>, lines: usize) -> Result<(), Failure> {
    let has_lines = |seen: &[u8]| {
        let mut ended = seen.split(|byte| matches!(byte, b'\n' | b'\r'));
        // What stands behind the last line end may go on.
        ended.next_back();
        ended.filter(|line| !line.is_empty()).count() >= lines
    };
    let mut buffer = vec![0; 4096];
    while !has_lines(seen) && seen.len() < PEEK_BYTES {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => seen.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
