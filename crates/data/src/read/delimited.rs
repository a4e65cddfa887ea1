//! Csv and tsv files: cells as texts, and empty ones as null.

mod quotes;
mod quoting;
mod records;
mod stream;

use std::io::{BufReader, Cursor, Read, Seek};
use std::sync::Arc;

use arrow::array::StringBuilder;
use arrow::datatypes::{Schema, SchemaRef};

use super::text::{self, LineError, Text, not_utf8};
use super::text_batch::{next_batch, schema_of};
use super::{BatchIter, DecodeError, Decoder, Projection, Source, check_columns};
use crate::dialect::{Delimiter, Dialect, Encoding};
use crate::suggest::{delimiter_hint, delimiter_remedy};
use quoting::QuoteScan;
use records::{Record, Records};
use stream::QuotedStream;

/// Number of bytes that are searched: at the start of a file for its delimiter, in a stream for the end of its first row with a
/// quotation mark at the start of a cell.
const PEEK_BYTES: usize = 1 << 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CellSyntax {
    delimiter: Delimiter,
    quoted: bool,
}

const COMMAS: CellSyntax = CellSyntax { delimiter: Delimiter::COMMA, quoted: true };
/// Quotation marks are ordinary characters in tsv files, unless [`QuoteScan`] finds that they quote cells.
const TABS: CellSyntax = CellSyntax { delimiter: Delimiter::TAB, quoted: false };

type Input = BufReader<Box<dyn Read + Send>>;

struct Delimited {
    records: Records<Input>,
    schema: SchemaRef,
    dialect: Dialect,
}

/// Opens a csv file. A first line such as `sep=;`, which Excel reads and writes, states the delimiter.
pub(super) fn open_csv(text: Text, given: Option<Delimiter>) -> Result<Box<dyn Decoder>, DecodeError> {
    let Text { mut reader, encoding } = text;
    let mut start = Vec::new();
    read_lines(&mut *reader, &mut start, 1)?;
    let stated = separator_line(&start);
    let delimiter = match given.or(stated) {
        None => detect_delimiter(&mut *reader, &mut start, COMMAS)?,
        delimiter => delimiter,
    };
    let syntax = CellSyntax { delimiter: delimiter.unwrap_or(COMMAS.delimiter), ..COMMAS };
    let reader: Box<dyn Read + Send> = Box::new(Cursor::new(start).chain(reader));
    let mut records = Records::new(BufReader::new(reader), syntax);
    if stated.is_some() {
        records.skip_line()?;
    }
    open(records, syntax, COMMAS, encoding)
}

/// Opens a tsv file, and decides if its cells are quoted: by all of a file, which is read twice, or by the first row of a
/// stream that has a quotation mark at the start of a cell.
pub(super) fn open_tsv(
    source: Source,
    encoding: Option<Encoding>,
    given: Option<Delimiter>,
) -> Result<Box<dyn Decoder>, DecodeError> {
    let delimiter = given.unwrap_or(TABS.delimiter);
    let (text, quoted) = match source {
        Source::File(mut file) => {
            let mut text = text::open(Box::new(file.try_clone()?), encoding)?;
            let mut scan = QuoteScan::new(delimiter);
            scan.read(&mut *text.reader)?;
            file.rewind()?;
            (text::open(Box::new(file), encoding)?, scan.finish())
        }
        Source::Stream(stream) => {
            let Text { reader, encoding } = text::open(stream, encoding)?;
            (Text { reader: Box::new(QuotedStream::new(reader, delimiter)), encoding }, true)
        }
    };
    let syntax = CellSyntax { delimiter, quoted };
    open(Records::new(BufReader::new(text.reader), syntax), syntax, TABS, text.encoding)
}

fn open(
    mut records: Records<Input>,
    syntax: CellSyntax,
    usual: CellSyntax,
    encoding: Encoding,
) -> Result<Box<dyn Decoder>, DecodeError> {
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

/// Delimiter that the first line of a csv file states: `sep=` and one character.
pub(super) fn separator_line(start: &[u8]) -> Option<Delimiter> {
    let line = start.split(|byte| matches!(byte, b'\n' | b'\r')).next()?;
    let (separator, name) = line.split_last()?;
    let separator = name.eq_ignore_ascii_case(b"sep=").then_some(*separator)?;
    char::from(separator).to_string().parse().ok()
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
    let mut buffer = vec![0; PEEK_BYTES];
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

#[cfg(test)]
mod tests {
    use super::*;

    fn decoder(content: &str, delimiter: Option<&str>) -> Box<dyn Decoder> {
        let text = text::open(Box::new(Cursor::new(content.as_bytes().to_vec())), None).expect("a text");
        open_csv(text, delimiter.map(|text| text.parse().expect("a delimiter"))).expect(content)
    }

    /// Names of the columns and number of rows, or the error of a row.
    fn table(content: &str, delimiter: Option<&str>) -> Result<(Vec<String>, usize), String> {
        let decoder = decoder(content, delimiter);
        let names: Vec<String> = decoder.schema().fields().iter().map(|field| field.name().clone()).collect();
        let projection = Projection { columns: (0..names.len()).collect(), objects: false };
        let mut rows = 0;
        for batch in decoder.batches(projection, 100).expect("batches") {
            match batch {
                Ok(batch) => rows += batch.num_rows(),
                Err(DecodeError::Line(error)) => return Err(error.to_string()),
                Err(error) => panic!("{error:?}"),
            }
        }
        Ok((names, rows))
    }

    #[test]
    fn separator_line_of_excel_is_skipped() {
        let expected: Result<_, String> = Ok((vec!["text".to_owned(), "label".to_owned()], 1));
        for (content, delimiter) in [
            ("sep=;\ntext;label\na, b;1\n", None),
            ("sep=;\r\ntext;label\r\na, b;1\r\n", None),
            ("\u{feff}SEP=|\rtext|label\ra|1", None),
            ("sep=,\ntext,label\na;b;c,1\n", None),
            ("sep=\t\ntext\tlabel\na\t1\n", None),
            ("sep=^\ntext^label\na^1\n", None),
            ("sep=,\ntext;label\na;1\n", Some(";")),
        ] {
            assert_eq!(table(content, delimiter), expected, "{content:?}");
        }
        assert_eq!(table("sep=;", None), Ok((Vec::new(), 0)));
        assert_eq!(table("sep=;;\nx\n", None).map(|(_, rows)| rows), Ok(1), "a header");
        let dialect = decoder("sep=;\ntext;label\n", None).dialect();
        assert_eq!(dialect.delimiter.map(|delimiter| delimiter.to_string()).as_deref(), Some(";"));
    }

    #[test]
    fn separator_line_counts_as_a_line() {
        for end in ["\n", "\r\n", "\r"] {
            let content = ["sep=;", "text;label", "a;1", "b"].join(end);
            let error = table(&content, None).expect_err("a short row");
            assert!(error.contains("line 4: it has 1 cells"), "{end:?}: {error}");
        }
    }
}
