use std::io::{BufReader, Cursor, Read};
use std::sync::Arc;

use arrow::csv::ReaderBuilder;
use arrow::csv::reader::Format;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::{Decode, Decoded, Failure};
use crate::nearest::separators;

/// How fields are told apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dialect {
    delimiter: u8,
    quote: u8,
}

pub(super) const COMMAS: Dialect = Dialect { delimiter: b',', quote: b'"' };
/// No byte of a text file is a quotation mark here.
pub(super) const TABS: Dialect = Dialect { delimiter: b'\t', quote: 0 };

struct Delimited {
    format: Format,
    schema: SchemaRef,
    /// All bytes, from the header on.
    reader: Box<dyn Read + Send>,
}

pub(super) fn open(mut reader: Box<dyn Read + Send>, dialect: Dialect) -> Result<Box<dyn Decode>, Failure> {
    let format = Format::default().with_header(true).with_delimiter(dialect.delimiter).with_quote(dialect.quote);
    // No row is looked at: texts of digits stay texts.
    let mut seen = Vec::new();
    let (header, _) = format.infer_schema(Recorder { reader: &mut reader, seen: &mut seen }, Some(0))?;
    let text = |field: &Arc<Field>| Field::new(field.name(), DataType::Utf8, true);
    let schema = Arc::new(Schema::new(header.fields().iter().map(text).collect::<Vec<_>>()));
    Ok(Box::new(Delimited { format, schema, reader: Box::new(Cursor::new(seen).chain(reader)) }))
}

impl Decode for Delimited {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn batches(self: Box<Self>, indices: Vec<usize>, rows: usize) -> Result<Decoded, Failure> {
        if self.schema.fields().is_empty() {
            return Ok(Box::new(std::iter::empty()));
        }
        // Commas in the texts of a file with other separators make rows of too many fields.
        let names: Vec<&String> = self.schema.fields().iter().map(|field| field.name()).collect();
        let hint = separators(&names);
        let builder = ReaderBuilder::new(self.schema.clone()).with_format(self.format).with_batch_size(rows);
        let batches = builder.with_projection(indices).build_buffered(BufReader::new(self.reader))?;
        Ok(Box::new(batches.map(move |batch| match batch {
            Err(error) if !hint.is_empty() => Err(Failure::Broken(format!("{error}{hint}").into())),
            batch => Ok(batch?),
        })))
    }
}

/// Keeps what is read, so that a stream can be read again from its beginning.
struct Recorder<'a> {
    reader: &'a mut dyn Read,
    seen: &'a mut Vec<u8>,
}

impl Read for Recorder<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.seen.extend_from_slice(&buffer[..n]);
        Ok(n)
    }
}
