//! Cells of arrow columns as texts and raw labels.

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type};

use crate::RawLabel;

/// The cells as texts; numbers and booleans are written out. `None` if the column holds something else.
pub(crate) fn texts(column: &ArrayRef) -> Option<StringArray> {
    let plain = match column.data_type() {
        DataType::Dictionary(_, values) => values.as_ref(),
        other => other,
    };
    let is_text = matches!(plain, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Boolean);
    if !is_text && !plain.is_integer() && !plain.is_floating() && !plain.is_null() {
        return None;
    }
    cast(column, &DataType::Utf8).ok().map(|texts| texts.as_string::<i32>().clone())
}

/// The cells as labels, `None` where one is null. `None` if the column holds something else.
pub(crate) fn labels(column: &ArrayRef) -> Option<Vec<Option<RawLabel>>> {
    let cells = |len: usize, cell: &dyn Fn(usize) -> RawLabel, nulls: &dyn Fn(usize) -> bool| {
        (0..len).map(|row| (!nulls(row)).then(|| cell(row))).collect::<Vec<_>>()
    };
    match column.data_type() {
        DataType::Dictionary(_, values) => labels(&cast(column, values).ok()?),
        DataType::List(_) => lists(column.len(), |row| column.as_list::<i32>().value(row), column),
        DataType::LargeList(_) => lists(column.len(), |row| column.as_list::<i64>().value(row), column),
        DataType::FixedSizeList(..) => lists(column.len(), |row| column.as_fixed_size_list().value(row), column),
        kind if kind.is_integer() || *kind == DataType::Boolean => {
            let numbers = cast(column, &DataType::Int64).ok()?;
            let numbers = numbers.as_primitive::<Int64Type>();
            Some(cells(numbers.len(), &|row| RawLabel::Int(numbers.value(row)), &|row| numbers.is_null(row)))
        }
        kind if kind.is_floating() => {
            let numbers = cast(column, &DataType::Float64).ok()?;
            let numbers = numbers.as_primitive::<Float64Type>();
            Some(cells(numbers.len(), &|row| RawLabel::Float(numbers.value(row)), &|row| numbers.is_null(row)))
        }
        _ => {
            let names = texts(column)?;
            let name = |row: usize| RawLabel::Name(names.value(row).to_owned());
            Some(cells(names.len(), &name, &|row| names.is_null(row)))
        }
    }
}

/// A list with a null in it is null.
fn lists(len: usize, value: impl Fn(usize) -> ArrayRef, column: &ArrayRef) -> Option<Vec<Option<RawLabel>>> {
    let cell = |row| {
        if column.is_null(row) {
            return Some(None);
        }
        labels(&value(row)).map(|items| items.into_iter().collect::<Option<Vec<_>>>().map(RawLabel::Many))
    };
    (0..len).map(cell).collect()
}
