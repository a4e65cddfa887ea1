//! Cells of arrow columns as texts and raw labels.

use std::borrow::Cow;

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use serde_json::value::RawValue;

use crate::{Format, RawLabel, json};

/// Returns true if [`texts`] are available for columns of this type.
pub(crate) fn is_textual(kind: &DataType) -> bool {
    let plain = match kind {
        DataType::Dictionary(_, values) => values.as_ref(),
        other => other,
    };
    is_text(plain)
        || *plain == DataType::Boolean
        || plain.is_integer()
        || plain.is_floating()
        || plain.is_decimal()
        || plain.is_null()
}

/// Returns true for columns of texts.
pub(crate) fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Dictionary(_, values) => is_text(values),
        kind => matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View),
    }
}

/// Cells as texts, including numbers and booleans. `None` for columns of other types.
pub(crate) fn texts(column: &ArrayRef, format: Format) -> Option<StringArray> {
    if format.is_json() { json_texts(column) } else { arrow_texts(column) }
}

fn arrow_texts(column: &ArrayRef) -> Option<StringArray> {
    if !is_textual(column.data_type()) {
        return None;
    }
    cast(column, &DataType::Utf8).ok().map(|texts| texts.as_string::<i32>().clone())
}

/// Cells of JSON as texts: strings decoded, numbers and booleans as written, null for all others.
fn json_texts(column: &ArrayRef) -> Option<StringArray> {
    let cells = column.as_string_opt::<i32>()?;
    Some(cells.iter().map(|cell| cell.and_then(json_text)).collect())
}

/// Cells as lists of texts; `None` for cells that hold no such list. `None` for columns without lists.
pub(crate) fn text_lists(column: &ArrayRef, format: Format) -> Option<Vec<Option<Vec<String>>>> {
    if format.is_json() {
        let cells = column.as_string_opt::<i32>()?;
        return Some(cells.iter().map(|cell| json_list(cell?)).collect());
    }
    let value: Box<dyn Fn(usize) -> ArrayRef + '_> = match column.data_type() {
        DataType::List(_) => Box::new(|row| column.as_list::<i32>().value(row)),
        DataType::LargeList(_) => Box::new(|row| column.as_list::<i64>().value(row)),
        DataType::FixedSizeList(..) => Box::new(|row| column.as_fixed_size_list().value(row)),
        _ => return None,
    };
    let list = |row: usize| {
        let items = (!column.is_null(row)).then(|| arrow_texts(&value(row))).flatten()?;
        items.iter().map(|item| item.map(str::to_owned)).collect()
    };
    Some((0..column.len()).map(list).collect())
}

fn json_list(value: &str) -> Option<Vec<String>> {
    let items: Vec<&RawValue> = serde_json::from_str(value).ok()?;
    items.into_iter().map(|item| json_text(item.get()).map(Cow::into_owned)).collect()
}

/// Cells as texts, with lists of words joined by blanks. A list with a word that is empty or contains a blank is null.
/// `None` for columns of other types.
pub(crate) fn word_texts(column: &ArrayRef, format: Format) -> Option<StringArray> {
    let (lists, texts) = (text_lists(column, format), texts(column, format));
    if lists.is_none() && texts.is_none() {
        return None;
    }
    let is_word = |word: &String| !word.is_empty() && !word.contains(char::is_whitespace);
    let cell = |row: usize| match lists.as_ref().and_then(|lists| lists[row].as_ref()) {
        Some(words) => words.iter().all(is_word).then(|| words.join(" ")),
        None => texts.as_ref().filter(|texts| texts.is_valid(row)).map(|texts| texts.value(row).to_owned()),
    };
    Some((0..column.len()).map(cell).collect())
}

/// Text of a JSON value, unless it is a list, an object or null.
pub(crate) fn json_text(value: &str) -> Option<Cow<'_, str>> {
    match value.as_bytes().first()? {
        b'"' => json::string(value),
        b'[' | b'{' => None,
        _ if matches!(value, "null" | "NaN") => None,
        _ => Some(Cow::Borrowed(value)),
    }
}

/// Cells of JSON as labels: a list of numbers with a decimal point is a list of numbers, all others are names. `None` if a
/// cell is an object.
fn json_labels(column: &ArrayRef) -> Option<Vec<Option<RawLabel>>> {
    let label = |cell: Option<&str>| cell.map_or(Some(None), json_label);
    column.as_string_opt::<i32>()?.iter().map(label).collect()
}

/// `Some(None)` for a list that contains null.
fn json_label(value: &str) -> Option<Option<RawLabel>> {
    if value == "NaN" {
        // Python writes missing numbers as NaN.
        return Some(None);
    }
    if !value.starts_with('[') {
        return json_text(value).map(|name| Some(RawLabel::Name(name.into_owned())));
    }
    let items: Vec<&RawValue> = serde_json::from_str(value).ok()?;
    let items: Vec<&str> = items.into_iter().map(RawValue::get).collect();
    if items.contains(&"null") {
        return Some(None);
    }
    let has_point = |item: &&str| !item.starts_with('"') && item.contains(['.', 'e', 'E']);
    if items.iter().all(has_point)
        && let Ok(numbers) = items.iter().map(|item| item.parse()).collect::<Result<Vec<f64>, _>>()
    {
        return Some(Some(RawLabel::Many(numbers.into_iter().map(RawLabel::Float).collect())));
    }
    let label = |text: String, is_quoted: bool| match is_quoted {
        true => RawLabel::listed_text(text),
        false => RawLabel::Name(text),
    };
    let names = items.into_iter().map(|item| Some(label(json_text(item)?.into_owned(), item.starts_with('"'))));
    names.collect::<Option<Vec<_>>>().map(|names| Some(RawLabel::Many(names)))
}

/// Cells as labels, `None` for null cells. `None` for columns of other types.
pub(crate) fn labels(column: &ArrayRef, format: Format) -> Option<Vec<Option<RawLabel>>> {
    if format.is_json() { json_labels(column) } else { arrow_labels(column) }
}

fn arrow_labels(column: &ArrayRef) -> Option<Vec<Option<RawLabel>>> {
    let cells = |len: usize, cell: &dyn Fn(usize) -> RawLabel, nulls: &dyn Fn(usize) -> bool| {
        (0..len).map(|row| (!nulls(row)).then(|| cell(row))).collect::<Vec<_>>()
    };
    match column.data_type() {
        DataType::Dictionary(_, values) => arrow_labels(&cast(column, values).ok()?),
        DataType::List(_) => lists(column.len(), |row| column.as_list::<i32>().value(row), column),
        DataType::LargeList(_) => lists(column.len(), |row| column.as_list::<i64>().value(row), column),
        DataType::FixedSizeList(..) => lists(column.len(), |row| column.as_fixed_size_list().value(row), column),
        DataType::Boolean => {
            let truths = column.as_boolean();
            Some(cells(truths.len(), &|row| RawLabel::Bool(truths.value(row)), &|row| truths.is_null(row)))
        }
        kind if kind.is_integer() && fits_int64(column) => {
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
            let names = arrow_texts(column)?;
            let name = |row: usize| RawLabel::Name(names.value(row).to_owned());
            Some(cells(names.len(), &name, &|row| names.is_null(row)))
        }
    }
}

fn fits_int64(column: &ArrayRef) -> bool {
    cast(column, &DataType::Int64).is_ok_and(|numbers| numbers.null_count() == column.null_count())
}

/// Lists as labels; a list that contains null is null.
fn lists(len: usize, value: impl Fn(usize) -> ArrayRef, column: &ArrayRef) -> Option<Vec<Option<RawLabel>>> {
    let cell = |row| {
        if column.is_null(row) {
            return Some(None);
        }
        let items = value(row);
        let has_texts = is_text(items.data_type());
        let label = |item: RawLabel| match item {
            RawLabel::Name(text) if has_texts => RawLabel::listed_text(text),
            item => item,
        };
        let labels = arrow_labels(&items)?.into_iter().map(|item| item.map(label));
        Some(labels.collect::<Option<Vec<_>>>().map(RawLabel::Many))
    };
    (0..len).map(cell).collect()
}
