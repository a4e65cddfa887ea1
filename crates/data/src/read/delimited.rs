use std::fs::File;
use std::io::{BufReader, Seek};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::csv::ReaderBuilder;
use arrow::csv::reader::Format;
use arrow::datatypes::{DataType, Field, Schema};

use super::{Failure, project};

/// How fields are told apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dialect {
    delimiter: u8,
    quote: u8,
}

pub(super) const COMMAS: Dialect = Dialect { delimiter: b',', quote: b'"' };
/// No byte of a text file is a quotation mark here.
pub(super) const TABS: Dialect = Dialect { delimiter: b'\t', quote: 0 };

pub(super) fn read(mut file: File, dialect: Dialect, wanted: &[&str]) -> Result<Vec<RecordBatch>, Failure> {
    let format = Format::default().with_header(true).with_delimiter(dialect.delimiter).with_quote(dialect.quote);
    // No row is looked at: texts of digits stay texts.
    let (header, _) = format.infer_schema(BufReader::new(&mut file), Some(0))?;
    if header.fields().is_empty() {
        return Ok(Vec::new());
    }
    file.rewind()?;
    let columns: Vec<String> = header.fields().iter().map(|field| field.name().clone()).collect();
    let indices = project(&columns, wanted)?;
    let texts: Vec<Field> = columns.iter().map(|name| Field::new(name, DataType::Utf8, true)).collect();
    let builder = ReaderBuilder::new(Arc::new(Schema::new(texts))).with_format(format).with_projection(indices);
    Ok(builder.build(BufReader::new(file))?.collect::<Result<_, _>>()?)
}
