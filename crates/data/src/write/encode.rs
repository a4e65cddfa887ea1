use std::fs::File;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::csv::{QuoteStyle, WriterBuilder};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::writer::{NullableEncoder, make_encoder};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::WriteError;
use super::cells::{self, JsonColumns};
use super::output_columns::not_json;
use super::target::Target;
use crate::columns::json_text;
use crate::json;

/// Size at which a row group ends, in bytes.
const GROUP_BYTES: usize = 16 << 20;
/// Size at which a row group ends, in rows.
const GROUP_ROWS: usize = 1 << 16;

pub(super) enum Encoder {
    Csv,
    Tsv,
    Jsonl,
    Parquet(Box<ArrowWriter<File>>),
}

impl Encoder {
    pub(super) fn parquet(schema: &SchemaRef, target: &Target) -> Result<Self, WriteError> {
        let file = target.handle()?.ok_or(WriteError::NeedsFile { format: crate::Format::Parquet })?;
        let compression = Compression::ZSTD(ZstdLevel::default());
        let properties = WriterProperties::builder().set_compression(compression).build();
        Ok(Self::Parquet(Box::new(ArrowWriter::try_new(file, schema.clone(), Some(properties))?)))
    }

    pub(super) fn header(&self, schema: &SchemaRef) -> Result<Vec<u8>, WriteError> {
        let names =
            schema.fields().iter().map(|field| Field::new(representable(self, field.name()), DataType::Utf8, true));
        let names = Schema::new(names.collect::<Vec<_>>());
        match self {
            Encoder::Csv | Encoder::Tsv => self.delimited(&RecordBatch::new_empty(Arc::new(names)), true),
            Encoder::Jsonl | Encoder::Parquet(_) => Ok(Vec::new()),
        }
    }

    /// Bytes of a batch whose first `n_json` columns are JSON; none for parquet, which writes them itself.
    pub(super) fn encode(&mut self, batch: &RecordBatch, n_json: usize) -> Result<Vec<u8>, WriteError> {
        match self {
            Encoder::Csv | Encoder::Tsv => {
                let cells = texts(self, batch, n_json)?;
                self.delimited(&cells, false)
            }
            Encoder::Jsonl => lines(batch, n_json),
            Encoder::Parquet(writer) => {
                writer.write(&plain(batch, n_json)?)?;
                if writer.in_progress_size() >= GROUP_BYTES || writer.in_progress_rows() >= GROUP_ROWS {
                    writer.flush()?;
                }
                Ok(Vec::new())
            }
        }
    }

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

/// Cell of a tsv file without the characters that its lines cannot hold. One that begins with a quotation mark is quoted,
/// because readers would take the mark for a quote. Cells of other formats are unchanged.
fn representable(encoder: &Encoder, cell: &str) -> String {
    if !matches!(encoder, Encoder::Tsv) {
        return cell.to_owned();
    }
    let cell = cell.replace(['\t', '\n', '\r', '\0'], " ");
    if cell.starts_with('"') { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
}

fn texts(encoder: &Encoder, batch: &RecordBatch, n_json: usize) -> Result<RecordBatch, WriteError> {
    let schema = batch.schema();
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (index, (field, column)) in schema.fields().iter().zip(batch.columns()).enumerate() {
        let cells = if index < n_json { unquoted(column.as_string()) } else { cells::texts(field, column)? };
        let cells: StringArray = cells.iter().map(|cell| cell.map(|cell| representable(encoder, cell))).collect();
        fields.push(Field::new(field.name(), DataType::Utf8, true));
        columns.push(Arc::new(cells));
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// JSON cells as texts: strings decoded, all others as written.
fn unquoted(column: &StringArray) -> StringArray {
    column.iter().map(|cell| cell.map(|cell| json_text(cell).map_or_else(|| cell.to_owned(), String::from))).collect()
}

/// Batch with the first `n_json` columns as texts.
fn plain(batch: &RecordBatch, n_json: usize) -> Result<RecordBatch, ArrowError> {
    let text = |(index, column): (usize, &ArrayRef)| -> ArrayRef {
        if index < n_json { Arc::new(unquoted(column.as_string())) } else { column.clone() }
    };
    RecordBatch::try_new(batch.schema(), batch.columns().iter().enumerate().map(text).collect())
}

/// One object to a line. The first `n_json` columns are JSON.
fn lines(batch: &RecordBatch, n_json: usize) -> Result<Vec<u8>, WriteError> {
    let schema = batch.schema();
    let columns = cells::json_columns(&batch.project(&(n_json..batch.num_columns()).collect::<Vec<_>>())?)?;
    let mut encoders = Encoders::new(&columns)?;
    let names: Vec<String> = schema.fields()[..n_json].iter().map(json_name).collect();
    let mut bytes = Vec::new();
    for row in 0..batch.num_rows() {
        let passthrough = names.iter().enumerate().map(|(index, name)| {
            let column = batch.column(index).as_string::<i32>();
            (name.as_str(), if column.is_valid(row) { column.value(row) } else { "null" })
        });
        encoders.line(passthrough, row, &mut bytes);
    }
    Ok(bytes)
}

/// One object to a line: the members of a passthrough object as written, unless new members replace them, and new members.
pub(super) fn object_lines(objects: &StringArray, new: &RecordBatch) -> Result<Vec<u8>, WriteError> {
    let schema = new.schema();
    let new = cells::json_columns(new)?;
    let mut encoders = Encoders::new(&new)?;
    let mut bytes = Vec::new();
    for (row, object) in objects.iter().flatten().enumerate() {
        let members = json::members(object).map_err(not_json)?;
        let retained = members.into_iter().filter(|member| schema.field_with_name(&member.name()).is_err());
        encoders.line(retained.map(|member| (member.key, member.value)), row, &mut bytes);
    }
    Ok(bytes)
}

fn json_name(field: &FieldRef) -> String {
    serde_json::json!(field.name()).to_string()
}

/// JSON encoders of columns, with their names as JSON.
struct Encoders<'a>(Vec<(String, NullableEncoder<'a>)>);

impl<'a> Encoders<'a> {
    fn new(batch: &'a JsonColumns) -> Result<Self, WriteError> {
        let encoder = |(field, column): &'a (FieldRef, ArrayRef)| {
            Ok((json_name(field), make_encoder(field, column, &batch.options)?))
        };
        Ok(Self(batch.columns.iter().map(encoder).collect::<Result<_, ArrowError>>()?))
    }

    /// Appends an object of these members and of the columns of a row.
    fn line<'b>(&mut self, passthrough: impl Iterator<Item = (&'b str, &'b str)>, row: usize, bytes: &mut Vec<u8>) {
        bytes.push(b'{');
        let mut is_first = true;
        let mut key = |key: &str, bytes: &mut Vec<u8>| {
            if !std::mem::take(&mut is_first) {
                bytes.push(b',');
            }
            bytes.extend_from_slice(key.as_bytes());
            bytes.push(b':');
        };
        for (name, value) in passthrough {
            key(name, bytes);
            bytes.extend_from_slice(value.as_bytes());
        }
        for (name, encoder) in &mut self.0 {
            key(name, bytes);
            cells::encode(encoder, row, bytes);
        }
        bytes.extend_from_slice(b"}\n");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::LabelSet;

    proptest! {
        #[test]
        fn headers_of_labels_stay_different(names in prop::collection::btree_set("[ab|,\"\t\n\r\u{0}\u{1b}é ]{1,4}", 2..8)) {
            prop_assume!(LabelSet::new(names.iter().map(String::as_str)).is_ok());
            let headers: BTreeSet<String> = names.iter().map(|name| representable(&Encoder::Tsv, name)).collect();
            prop_assert_eq!(headers.len(), names.len());
            prop_assert!(headers.iter().all(|header| !header.contains(['\t', '\n', '\r', '\0'])));
        }
    }
}
