//! Values of any arrow type as texts and as JSON.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef};
use arrow::error::ArrowError;
use arrow::json::writer::{EncoderOptions, NullableEncoder, make_encoder};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::columns::json_text;
use crate::labels::OUTPUT_SEPARATOR;

/// Values as texts: lists of simple values joined, other nested values as JSON, or in arrow's display form if JSON has none.
/// Times of an unknown zone are in UTC.
pub(super) fn texts(field: &Field, column: &ArrayRef) -> Result<StringArray, ArrowError> {
    texts_in_zone(field, column).or_else(|error| {
        let in_utc = in_utc(column.data_type());
        let column = cast(column, &in_utc).map_err(|_| error)?;
        texts_in_zone(&field.clone().with_data_type(in_utc), &column)
    })
}

fn texts_in_zone(field: &Field, column: &ArrayRef) -> Result<StringArray, ArrowError> {
    match column.data_type() {
        DataType::List(inner) if is_simple(inner.data_type()) => {
            let lists = column.as_list::<i32>();
            let joined = |row: usize| {
                let items = simple(&lists.value(row))?;
                let items: Vec<&str> = items.iter().map(Option::unwrap_or_default).collect();
                Ok(lists.is_valid(row).then(|| items.join(&OUTPUT_SEPARATOR.to_string())))
            };
            (0..lists.len()).map(joined).collect()
        }
        kind if is_simple(kind) => simple(column),
        _ => json(field, column).or_else(|_| display_texts(column)),
    }
}

/// Lists of names as texts: several names as JSON, which is unlike a multi-hot vector of numbers.
pub(super) fn quoted_lists(column: &ArrayRef) -> ArrayRef {
    let lists = column.as_list::<i32>();
    let cell = |row: usize| {
        let items = lists.value(row);
        let names: Vec<&str> = items.as_string::<i32>().iter().map(Option::unwrap_or_default).collect();
        lists.is_valid(row).then(|| match names.as_slice() {
            [] => String::new(),
            [name] => (*name).to_owned(),
            names => serde_json::json!(names).to_string(),
        })
    };
    Arc::new((0..lists.len()).map(cell).collect::<StringArray>())
}

fn is_simple(kind: &DataType) -> bool {
    match kind {
        DataType::Dictionary(_, values) => is_simple(values),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Boolean | DataType::Null => true,
        kind => kind.is_primitive(),
    }
}

fn simple(column: &ArrayRef) -> Result<StringArray, ArrowError> {
    match column.data_type() {
        DataType::Dictionary(_, values) => simple(&cast(column, values)?),
        kind if kind.is_temporal() => display_texts(column),
        _ => cast(column, &DataType::Utf8).map(|texts| texts.as_string().clone()),
    }
}

/// Type with UTC instead of every time zone.
fn in_utc(kind: &DataType) -> DataType {
    let field = |field: &FieldRef| Arc::new(field.as_ref().clone().with_data_type(in_utc(field.data_type())));
    match kind {
        DataType::Timestamp(unit, Some(_)) => DataType::Timestamp(*unit, Some("+00:00".into())),
        DataType::Dictionary(keys, values) => DataType::Dictionary(keys.clone(), Box::new(in_utc(values))),
        DataType::List(item) => DataType::List(field(item)),
        DataType::LargeList(item) => DataType::LargeList(field(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(field(item), *size),
        DataType::Map(entries, sorted) => DataType::Map(field(entries), *sorted),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect()),
        other => other.clone(),
    }
}

/// Values in arrow's display form. Times outside of the calendar are shown as numbers.
fn display_texts(column: &ArrayRef) -> Result<StringArray, ArrowError> {
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(column, &options)?;
    let nulls = column.logical_nulls();
    let cell = |row: usize| {
        if nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            return Ok(None);
        }
        let number = |error| {
            let number = cast(&column.slice(row, 1), &DataType::Int64).and_then(|one| cast(&one, &DataType::Utf8));
            number.map(|number| number.as_string::<i32>().value(0).to_owned()).map_err(|_| error)
        };
        formatter.value(row).try_to_string().or_else(number).map(Some)
    };
    (0..column.len()).map(cell).collect()
}

fn json(field: &Field, column: &ArrayRef) -> Result<StringArray, ArrowError> {
    let (field, options) = (Arc::new(field.clone()), EncoderOptions::default());
    let mut encoder = make_encoder(&field, column, &options)?;
    let cell = |row: usize| {
        let mut bytes = Vec::new();
        encode(&mut encoder, row, &mut bytes);
        String::from_utf8(bytes).ok().and_then(|value| json_text(&value).map(String::from).or(Some(value)))
    };
    let cells: Vec<Option<String>> = (0..column.len()).map(cell).collect();
    Ok(cells.into_iter().map(|cell| cell.filter(|cell| cell != "null")).collect())
}

/// Columns whose values all have a JSON form.
pub(super) struct JsonColumns {
    pub(super) columns: Vec<(FieldRef, ArrayRef)>,
    pub(super) options: EncoderOptions,
}

/// Columns of a batch. Times and values without a JSON form become texts.
pub(super) fn json_columns(batch: &RecordBatch) -> Result<JsonColumns, ArrowError> {
    let options = EncoderOptions::default().with_explicit_nulls(true);
    let column = |(field, column): (&FieldRef, &ArrayRef)| {
        let has_form = !column.data_type().is_temporal() && make_encoder(field, column, &options).is_ok();
        let texts = || Ok::<_, ArrowError>(Arc::new(texts(field, column)?) as ArrayRef);
        let converted = if has_form { column.clone() } else { texts()? };
        Ok((Arc::new(Field::new(field.name(), converted.data_type().clone(), true)), converted))
    };
    let columns = batch.schema().fields().iter().zip(batch.columns()).map(column).collect::<Result<_, ArrowError>>()?;
    Ok(JsonColumns { columns, options })
}

pub(super) fn encode(encoder: &mut NullableEncoder<'_>, row: usize, bytes: &mut Vec<u8>) {
    match encoder.is_null(row) {
        true => bytes.extend_from_slice(b"null"),
        false => encoder.encode(row, bytes),
    }
}
