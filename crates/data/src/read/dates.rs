//! Dates that are stored in milliseconds, as dates in days.
//!
//! Parquet has no such type, and its files would have bare numbers in their place. Texts of dates would have a time.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;

use super::{BatchIter, DecodeError, Decoder, Projection};

struct InDays {
    inner: Box<dyn Decoder>,
    schema: SchemaRef,
}

/// Decoder of columns of any types, with dates in days.
pub(super) fn in_days(inner: Box<dyn Decoder>) -> Box<dyn Decoder> {
    let schema = schema_in_days(&inner.schema());
    if schema == inner.schema() { inner } else { Box::new(InDays { inner, schema }) }
}

impl Decoder for InDays {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn batches(self: Box<Self>, projection: Projection, rows: usize) -> Result<BatchIter, DecodeError> {
        let batches = self.inner.batches(projection, rows)?;
        Ok(Box::new(batches.map(|batch| Ok(batch_in_days(&batch?)?))))
    }
}

fn schema_in_days(schema: &SchemaRef) -> SchemaRef {
    let fields: Vec<FieldRef> = schema.fields().iter().map(field_in_days).collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

fn field_in_days(field: &FieldRef) -> FieldRef {
    let kind = type_in_days(field.data_type());
    match kind == *field.data_type() {
        true => Arc::clone(field),
        false => Arc::new(field.as_ref().clone().with_data_type(kind)),
    }
}

fn type_in_days(kind: &DataType) -> DataType {
    match kind {
        DataType::Date64 => DataType::Date32,
        DataType::Dictionary(keys, values) => DataType::Dictionary(keys.clone(), Box::new(type_in_days(values))),
        DataType::List(item) => DataType::List(field_in_days(item)),
        DataType::LargeList(item) => DataType::LargeList(field_in_days(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(field_in_days(item), *size),
        DataType::Map(entries, sorted) => DataType::Map(field_in_days(entries), *sorted),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field_in_days).collect()),
        other => other.clone(),
    }
}

fn batch_in_days(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = schema_in_days(&batch.schema());
    let column = |(column, field): (&ArrayRef, &FieldRef)| match column.data_type() == field.data_type() {
        true => Ok(Arc::clone(column)),
        // A date that no calendar has is an error, not a missing value.
        false => cast_with_options(column, field.data_type(), &CastOptions { safe: false, ..CastOptions::default() }),
    };
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields().iter())
        .map(column)
        .collect::<Result<Vec<ArrayRef>, ArrowError>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema, columns, &options)
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Date64Array, DictionaryArray, Int32Array, StringArray, StructArray};
    use arrow::datatypes::{Date32Type, Field};

    use super::*;

    const DAY: i64 = 86_400_000;

    fn converted(column: ArrayRef) -> ArrayRef {
        let batch = RecordBatch::try_from_iter_with_nullable([("x", column, true)]).expect("a batch");
        batch_in_days(&batch).expect("days").column(0).clone()
    }

    #[test]
    fn dates_in_milliseconds_become_dates_in_days() {
        let dates: ArrayRef = Arc::new(Date64Array::from(vec![Some(0), None, Some(DAY), Some(-DAY)]));
        let days = converted(dates.clone());
        let found: Vec<Option<i32>> = days.as_primitive::<Date32Type>().iter().collect();
        assert_eq!(found, [Some(0), None, Some(1), Some(-1)]);

        let field = Arc::new(Field::new("d", DataType::Date64, true));
        let nested = converted(Arc::new(StructArray::from(vec![(field, dates.clone())])));
        assert_eq!(nested.as_struct().column(0).as_primitive::<Date32Type>().value(2), 1);

        let words = converted(Arc::new(DictionaryArray::new(Int32Array::from(vec![2, 0]), dates)));
        let expected = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Date32));
        assert_eq!(words.data_type(), &expected);
    }

    #[test]
    fn other_columns_stay() {
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
        assert_eq!(&converted(texts.clone()), &texts);
    }

    #[test]
    fn date_outside_of_the_calendar_is_an_error() {
        let column: ArrayRef = Arc::new(Date64Array::from(vec![i64::MAX]));
        let batch = RecordBatch::try_from_iter([("x", column)]).expect("a batch");
        assert!(batch_in_days(&batch).is_err());
    }
}
