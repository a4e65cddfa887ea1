use std::fs::File;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::csv::{QuoteStyle, WriterBuilder};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::writer::{EncoderOptions, NullableEncoder, make_encoder};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::target::Target;
use super::{JOIN, WriteError};
use crate::columns::json_text;

/// A row group is ended once it holds so many bytes.
const GROUP_BYTES: usize = 16 << 20;
/// A row group is ended once it holds so many rows.
const GROUP_ROWS: usize = 1 << 16;

/// Makes bytes of batches.
pub(super) enum Encoder {
    Csv,
    Tsv,
    Jsonl,
    /// Writes to a handle of its own.
    Parquet(Box<ArrowWriter<File>>),
}

impl Encoder {
    pub(super) fn parquet(schema: &SchemaRef, target: &Target) -> Result<Self, WriteError> {
        let file = target.handle()?.ok_or(WriteError::NeedsFile { format: crate::Format::Parquet })?;
        let compression = Compression::ZSTD(ZstdLevel::default());
        let properties = WriterProperties::builder().set_compression(compression).build();
        Ok(Self::Parquet(Box::new(ArrowWriter::try_new(file, schema.clone(), Some(properties))?)))
    }

    /// What stands before the first row.
    pub(super) fn header(&self, schema: &SchemaRef) -> Result<Vec<u8>, WriteError> {
        let names = schema.fields().iter().map(|field| Field::new(clean(self, field.name()), DataType::Utf8, true));
        let names = Schema::new(names.collect::<Vec<_>>());
        match self {
            Encoder::Csv | Encoder::Tsv => self.delimited(&RecordBatch::new_empty(Arc::new(names)), true),
            Encoder::Jsonl | Encoder::Parquet(_) => Ok(Vec::new()),
        }
    }

    /// The bytes of a batch whose first `json` columns are JSON. Parquet keeps its bytes to itself.
    pub(super) fn encode(&mut self, batch: &RecordBatch, json: usize) -> Result<Vec<u8>, WriteError> {
        match self {
            Encoder::Csv | Encoder::Tsv => {
                let cells = texts(self, batch, json)?;
                self.delimited(&cells, false)
            }
            Encoder::Jsonl => lines(batch, json),
            Encoder::Parquet(writer) => {
                writer.write(&plain(batch, json)?)?;
                if writer.in_progress_size() >= GROUP_BYTES || writer.in_progress_rows() >= GROUP_ROWS {
                    writer.flush()?;
                }
                Ok(Vec::new())
            }
        }
    }

    /// Writes what stands after the last row.
    pub(super) fn finish(self) -> Result<(), WriteError> {
        match self {
            Encoder::Csv | Encoder::Tsv | Encoder::Jsonl => Ok(()),
            Encoder::Parquet(writer) => Ok(writer.close().map(drop)?),
        }
    }

    fn delimited(&self, cells: &RecordBatch, header: bool) -> Result<Vec<u8>, WriteError> {
        let builder = WriterBuilder::new().with_header(header);
        let builder = match self {
            Encoder::Tsv => builder.with_delimiter(b'\t').with_quote_style(QuoteStyle::Never),
            _ => builder,
        };
        let mut bytes = Vec::new();
        builder.build(&mut bytes).write(cells)?;
        Ok(bytes)
    }
}

/// A tsv file has no way to write these characters.
fn clean(encoder: &Encoder, cell: &str) -> String {
    match encoder {
        Encoder::Tsv => cell.replace(['\t', '\n', '\r', '\0'], " "),
        _ => cell.to_owned(),
    }
}

/// The cells as csv and tsv files have them.
fn texts(encoder: &Encoder, batch: &RecordBatch, json: usize) -> Result<RecordBatch, WriteError> {
    let schema = batch.schema();
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (index, (field, column)) in schema.fields().iter().zip(batch.columns()).enumerate() {
        let cells = if index < json { unquoted(column.as_string()) } else { written(field, column)? };
        let cells: StringArray = cells.iter().map(|cell| cell.map(|cell| clean(encoder, cell))).collect();
        fields.push(Field::new(field.name(), DataType::Utf8, true));
        columns.push(Arc::new(cells));
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// Values of any type as texts: simple ones alone, lists of simple ones joined, all others as JSON.
fn written(field: &FieldRef, column: &ArrayRef) -> Result<StringArray, WriteError> {
    match column.data_type() {
        DataType::List(inner) if is_simple(inner.data_type()) => {
            let lists = column.as_list::<i32>();
            let joined = |row: usize| {
                let items = cast(&lists.value(row), &DataType::Utf8)?;
                let items: Vec<&str> = items.as_string::<i32>().iter().map(Option::unwrap_or_default).collect();
                Ok(lists.is_valid(row).then(|| items.join(&JOIN.to_string())))
            };
            Ok((0..lists.len()).map(joined).collect::<Result<_, ArrowError>>()?)
        }
        kind if is_simple(kind) => Ok(cast(column, &DataType::Utf8)?.as_string().clone()),
        _ => {
            let options = EncoderOptions::default();
            let mut encoder = make_encoder(field, column, &options)?;
            let cell = |row: usize| {
                let mut bytes = Vec::new();
                cell(&mut encoder, row, &mut bytes);
                String::from_utf8(bytes).ok().and_then(|value| json_text(&value).map(String::from).or(Some(value)))
            };
            let cells: Vec<Option<String>> = (0..column.len()).map(cell).collect();
            Ok(cells.into_iter().map(|cell| cell.filter(|cell| cell != "null")).collect())
        }
    }
}

fn is_simple(kind: &DataType) -> bool {
    match kind {
        DataType::Dictionary(_, values) => is_simple(values),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Boolean | DataType::Null => true,
        kind => kind.is_primitive(),
    }
}

/// JSON cells as texts: strings as they are meant, all else as it is written.
fn unquoted(column: &StringArray) -> StringArray {
    column.iter().map(|cell| cell.map(|cell| json_text(cell).map_or_else(|| cell.to_owned(), String::from))).collect()
}

/// The batch with the first `json` columns as texts.
fn plain(batch: &RecordBatch, json: usize) -> Result<RecordBatch, ArrowError> {
    let text = |(index, column): (usize, &ArrayRef)| -> ArrayRef {
        if index < json { Arc::new(unquoted(column.as_string())) } else { column.clone() }
    };
    RecordBatch::try_new(batch.schema(), batch.columns().iter().enumerate().map(text).collect())
}

/// One object to a line. The first `json` columns are JSON already.
fn lines(batch: &RecordBatch, json: usize) -> Result<Vec<u8>, WriteError> {
    let schema = batch.schema();
    let options = EncoderOptions::default().with_explicit_nulls(true);
    let names: Vec<String> = schema.fields().iter().map(|field| serde_json::json!(field.name()).to_string()).collect();
    let rest = schema.fields().iter().zip(batch.columns()).skip(json);
    let mut rest = rest.map(|(field, column)| make_encoder(field, column, &options)).collect::<Result<Vec<_>, _>>()?;
    let mut bytes = Vec::new();
    for row in 0..batch.num_rows() {
        for (index, name) in names.iter().enumerate() {
            bytes.push(if index == 0 { b'{' } else { b',' });
            bytes.extend_from_slice(name.as_bytes());
            bytes.push(b':');
            if index < json {
                let column = batch.column(index).as_string::<i32>();
                let value = if column.is_valid(row) { column.value(row) } else { "null" };
                bytes.extend_from_slice(value.as_bytes());
            } else {
                cell(&mut rest[index - json], row, &mut bytes);
            }
        }
        bytes.extend_from_slice(b"}\n");
    }
    Ok(bytes)
}

fn cell(encoder: &mut NullableEncoder<'_>, row: usize, bytes: &mut Vec<u8>) {
    match encoder.is_null(row) {
        true => bytes.extend_from_slice(b"null"),
        false => encoder.encode(row, bytes),
    }
}
