//! Batches of text columns, which the text formats share.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::DecodeError;

pub(super) fn schema_of(names: impl IntoIterator<Item = String>) -> SchemaRef {
    let fields = names.into_iter().map(|name| Field::new(name, DataType::Utf8, true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Batch of at most `rows` rows; none at the end. `append` adds a row to the columns, or returns false.
pub(super) fn next_batch(
    schema: &SchemaRef,
    rows: usize,
    mut append: impl FnMut(&mut [StringBuilder]) -> Result<bool, DecodeError>,
) -> Result<Option<RecordBatch>, DecodeError> {
    let mut columns: Vec<StringBuilder> = schema.fields().iter().map(|_| StringBuilder::new()).collect();
    let mut n_rows = 0;
    while n_rows < rows && append(&mut columns)? {
        n_rows += 1;
    }
    if n_rows == 0 {
        return Ok(None);
    }
    let columns = columns.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(n_rows));
    Ok(Some(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?))
}
