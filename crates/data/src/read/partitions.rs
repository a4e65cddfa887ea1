//! Columns with one value in all rows of a file.

use std::iter::repeat_n;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, StringArray};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};

use super::{BatchIter, DecodeError, Decoder, Projection};
use crate::dialect::Dialect;

struct Partitioned {
    inner: Box<dyn Decoder>,
    columns: Vec<(FieldRef, Option<String>)>,
}

/// Appends columns with one value to those of the file, which go before columns of the same name. An empty file stays empty.
/// With `are_json` cells are the JSON of their values.
pub(super) fn append(
    inner: Box<dyn Decoder>,
    partitions: &[(String, Option<String>)],
    are_json: bool,
) -> Box<dyn Decoder> {
    let schema = inner.schema();
    let is_new = |name: &str| schema.field_with_name(name).is_err();
    let cell = |value: &String| if are_json { serde_json::json!(value).to_string() } else { value.clone() };
    let columns: Vec<(FieldRef, Option<String>)> = partitions
        .iter()
        .filter(|(name, _)| is_new(name))
        .map(|(name, value)| (Arc::new(Field::new(name, DataType::Utf8, true)), value.as_ref().map(cell)))
        .collect();
    match schema.fields().is_empty() || columns.is_empty() {
        true => inner,
        false => Box::new(Partitioned { inner, columns }),
    }
}

impl Decoder for Partitioned {
    fn schema(&self) -> SchemaRef {
        let inner = self.inner.schema();
        let fields = inner.fields().iter().cloned().chain(self.columns.iter().map(|(field, _)| Arc::clone(field)));
        Arc::new(Schema::new_with_metadata(fields.collect::<Vec<FieldRef>>(), inner.metadata().clone()))
    }

    fn dialect(&self) -> Dialect {
        self.inner.dialect()
    }

    fn batches(self: Box<Self>, projection: Projection, rows: usize) -> Result<BatchIter, DecodeError> {
        let Self { inner, columns: all } = *self;
        let n = inner.schema().fields().len();
        let Projection { columns, objects } = projection;
        let (of_file, of_partitions): (Vec<usize>, Vec<usize>) = columns.into_iter().partition(|&index| index < n);
        let columns: Vec<_> = of_partitions.into_iter().map(|index| all[index - n].clone()).collect();
        let batches = inner.batches(Projection { columns: of_file, objects }, rows)?;
        Ok(Box::new(batches.map(move |batch| with_columns(&batch?, &columns, objects))))
    }
}

/// Batch with further columns, before the last column if that is one of `objects`.
fn with_columns(
    batch: &RecordBatch,
    columns: &[(FieldRef, Option<String>)],
    objects: bool,
) -> Result<RecordBatch, DecodeError> {
    let rows = batch.num_rows();
    let mut fields: Vec<FieldRef> = batch.schema().fields().iter().cloned().collect();
    let mut arrays: Vec<ArrayRef> = batch.columns().to_vec();
    for (field, value) in columns {
        let at = arrays.len() - usize::from(objects);
        fields.insert(at, Arc::clone(field));
        arrays.insert(at, Arc::new(repeat_n(value.as_deref(), rows).collect::<StringArray>()));
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)?)
}
