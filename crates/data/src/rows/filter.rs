//! Filters of rows by the values of columns.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;

use crate::labels::{Value, normalized};
use crate::{Format, columns};

/// Value of a column that a filter keeps. In columns of numbers, truth values, dates or times, both kinds are compared by
/// value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilterValue {
    /// A text, which equals the same text. In JSON, numbers and truth values are texts as they are written.
    Text(String),
    /// A number or truth value, which also equals texts of its value: 1 equals `1.0` and `01`.
    Value(String),
}

impl FilterValue {
    fn text(&self) -> &str {
        let (Self::Text(text) | Self::Value(text)) = self;
        text
    }
}

impl From<&str> for FilterValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl fmt::Display for FilterValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// Cells of a column, and those among them that have the value of a filter.
pub(super) struct FilterCells {
    texts: StringArray,
    matches: Vec<bool>,
}

impl FilterCells {
    /// Compares the cells of a column with a value. `None` for columns that hold no texts, numbers, truth values or times.
    pub(super) fn compare(column: &ArrayRef, format: Format, wanted: &FilterValue) -> Option<Self> {
        match column.data_type() {
            DataType::Dictionary(_, kind) if kind.is_temporal() => times(&cast(column, kind).ok()?, wanted.text()),
            kind if kind.is_temporal() => times(column, wanted.text()),
            _ => plain(column, format, wanted),
        }
    }

    pub(super) fn matches(&self, row: usize) -> bool {
        self.matches[row]
    }
}

fn plain(column: &ArrayRef, format: Format, wanted: &FilterValue) -> Option<FilterCells> {
    let texts = columns::texts(column, format)?;
    let by_value = matches!(wanted, FilterValue::Value(_)) || !columns::is_text(column.data_type());
    let wanted = wanted.text();
    let value = if by_value { Value::from_text(&normalized(wanted)) } else { None };
    let is_floating = match column.data_type() {
        DataType::Dictionary(_, kind) => kind.is_floating(),
        kind => kind.is_floating(),
    };
    // A number of 32 bits may be stored in 64 bits.
    let floats = if is_floating && value.is_some() { columns::labels(column, format) } else { None };
    let has_value = |row: usize, text: &str, value: &Value| match &floats {
        Some(cells) => cells[row].as_ref().is_some_and(|cell| Value::candidates(cell).contains(value)),
        None => Value::from_text(&normalized(text)).as_ref() == Some(value),
    };
    let is_match = |row: usize| {
        let text = match texts.is_valid(row) {
            true => texts.value(row),
            // The decoder reads an empty cell as null.
            false if format.is_delimited() => "",
            false => return false,
        };
        text == wanted || value.as_ref().is_some_and(|value| has_value(row, text, value))
    };
    let matches = (0..texts.len()).map(is_match).collect();
    Some(FilterCells { texts, matches })
}

/// Compares dates and times, which have one text for each value of a type.
fn times(column: &ArrayRef, wanted: &str) -> Option<FilterCells> {
    let (texts, kind) = time_texts(column)?;
    let wanted_cell: ArrayRef = Arc::new(StringArray::from(vec![wanted]));
    let parsed = cast(&wanted_cell, &kind).ok().and_then(|cell| utf8(&cell));
    let parsed = parsed.filter(|parsed| parsed.is_valid(0)).map(|parsed| parsed.value(0).to_owned());
    let wanted = parsed.unwrap_or_else(|| wanted.to_owned());
    let matches = texts.iter().map(|text| text == Some(wanted.as_str())).collect();
    Some(FilterCells { texts, matches })
}

/// Texts of times, and the type that they are texts of: times of an unknown zone are in UTC.
fn time_texts(column: &ArrayRef) -> Option<(StringArray, DataType)> {
    let kind = column.data_type().clone();
    let in_utc = match &kind {
        DataType::Timestamp(unit, Some(_)) => DataType::Timestamp(*unit, Some("+00:00".into())),
        other => other.clone(),
    };
    [kind, in_utc].into_iter().find_map(|kind| Some((utf8(&cast(column, &kind).ok()?)?, kind)))
}

fn utf8(column: &ArrayRef) -> Option<StringArray> {
    cast(column, &DataType::Utf8).ok().map(|texts| texts.as_string::<i32>().clone())
}

/// Values of the columns of a filter, as long as no row matches it.
#[derive(Debug, Clone, Default)]
pub(crate) struct FoundValues {
    has_match: bool,
    columns: BTreeMap<String, Vec<String>>,
}

impl FoundValues {
    const SHOWN: usize = 5;
    const SHOWN_CHARS: usize = 40;

    pub(super) fn note_match(&mut self) {
        self.has_match = true;
    }

    /// Adds the cells of a column of which no row matched.
    pub(super) fn add(&mut self, column: &str, cells: &FilterCells) {
        if !self.has_match {
            let known = self.columns.entry(column.to_owned()).or_default();
            cells.texts.iter().flatten().for_each(|text| Self::add_value(known, text));
        }
    }

    fn add_value(known: &mut Vec<String>, text: &str) {
        // One more than is shown tells that there are others.
        if known.len() > Self::SHOWN {
            return;
        }
        let shown = match text.char_indices().nth(Self::SHOWN_CHARS) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text.to_owned(),
        };
        if !known.contains(&shown) {
            known.push(shown);
        }
    }

    /// Adds the values of another file.
    pub(crate) fn extend(&mut self, other: &Self) {
        self.has_match |= other.has_match;
        for (column, values) in &other.columns {
            let known = self.columns.entry(column.clone()).or_default();
            values.iter().for_each(|value| Self::add_value(known, value));
        }
    }

    /// Some values of each column, unless a row matched.
    pub(crate) fn description(&self) -> Option<String> {
        let column = |(column, values): (&String, &Vec<String>)| {
            let mut shown: Vec<String> =
                values.iter().take(Self::SHOWN).map(|value| sepal_core::visible(value).into_owned()).collect();
            if values.len() > Self::SHOWN {
                shown.push("others".to_owned());
            }
            let shown = if shown.is_empty() { "no value".to_owned() } else { shown.join(", ") };
            format!("`{column}` has {shown}")
        };
        let described: Vec<String> = self.columns.iter().map(column).collect();
        (!self.has_match && !described.is_empty()).then(|| described.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        BooleanArray, Date32Array, Date64Array, DictionaryArray, Float32Array, Float64Array, Int32Array, Int64Array,
        ListArray, TimestampMicrosecondArray,
    };
    use arrow::datatypes::{Int32Type, Int64Type};

    use super::*;
    use crate::{ReadError, Table, TableSpec};

    fn value(text: &str) -> FilterValue {
        FilterValue::Value(text.to_owned())
    }

    /// Rows that match a number or truth value. In typed columns, a text of it matches the same rows.
    fn matches(column: ArrayRef, wanted: &str) -> Vec<bool> {
        let matches = |wanted: FilterValue| {
            FilterCells::compare(&column, Format::Parquet, &wanted).expect("a column of values").matches
        };
        let by_value = matches(value(wanted));
        if !columns::is_text(column.data_type()) {
            assert_eq!(matches(wanted.into()), by_value, "{wanted}");
        }
        by_value
    }

    fn read(name: &str, content: &str, value: FilterValue) -> Result<Vec<String>, ReadError> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("written");
        Table::read(&TableSpec::new(path, "text").with_filter("g", value)).map(|table| table.texts().to_vec())
    }

    #[test]
    fn numbers_and_truth_values_are_compared_by_value() {
        let floats: ArrayRef = Arc::new(Float64Array::from(vec![Some(1.0), None, Some(2.5), Some(f64::NAN)]));
        for wanted in ["1", "1.0", "01", "1e0", " 1 "] {
            assert_eq!(matches(floats.clone(), wanted), [true, false, false, false], "{wanted}");
        }
        assert_eq!(matches(floats, "2.50"), [false, false, true, false]);
        let narrow: ArrayRef = Arc::new(Float32Array::from(vec![0.1, 1.0]));
        assert_eq!(matches(narrow.clone(), "0.10"), [true, false]);
        let widened = cast(&narrow, &DataType::Float64).expect("a column");
        assert_eq!(matches(widened, "0.1"), [true, false]);
        let integers: ArrayRef = Arc::new(Int64Array::from(vec![9_007_199_254_740_993, 9_007_199_254_740_992]));
        assert_eq!(matches(integers.clone(), "9007199254740992.0"), [false, true]);
        let decimals = cast(&(Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef), &DataType::Decimal128(3, 2));
        assert_eq!(matches(decimals.expect("a column"), "1"), [true, false]);
        let truths: ArrayRef = Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]));
        assert_eq!(matches(truths.clone(), "True"), [true, false, false]);
        assert_eq!(matches(truths, "1"), [false; 3], "a number is no truth value");
        let names: ArrayRef = Arc::new(vec!["1.0", "true", "x"].into_iter().collect::<DictionaryArray<Int32Type>>());
        assert_eq!(matches(names.clone(), "1"), [true, false, false]);
        assert_eq!(matches(names.clone(), "TRUE"), [false, true, false]);
        assert_eq!(matches(names.clone(), "X"), [false; 3], "other texts are compared exactly");
        assert_eq!(matches(names, "x"), [false, false, true]);
    }

    #[test]
    fn times_are_compared_with_iso_texts() {
        // 2024-01-31.
        let day = 19_753;
        let days: ArrayRef = Arc::new(Date32Array::from(vec![Some(day), Some(day + 1), None]));
        assert_eq!(matches(days.clone(), "2024-01-31"), [true, false, false]);
        assert_eq!(matches(days.clone(), "31.01.2024"), [false; 3]);
        let dictionary = DictionaryArray::<Int32Type>::new(Int32Array::from(vec![1, 0]), days);
        assert_eq!(matches(Arc::new(dictionary), "2024-01-31"), [false, true]);
        let millis: ArrayRef = Arc::new(Date64Array::from(vec![i64::from(day) * 86_400_000]));
        assert_eq!(matches(millis, "2024-01-31"), [true]);
        let micros = i64::from(day) * 86_400_000_000;
        let times = TimestampMicrosecondArray::from(vec![micros, micros + 1_000_000]);
        let zoned: ArrayRef = Arc::new(times.clone().with_timezone("+00:00"));
        for column in [Arc::new(times) as ArrayRef, zoned] {
            assert_eq!(matches(column.clone(), "2024-01-31"), [true, false]);
            assert_eq!(matches(column.clone(), "2024-01-31T00:00:01"), [false, true]);
            assert_eq!(matches(column, "2024-01-31 00:00:01"), [false, true]);
        }
    }

    #[test]
    fn lists_are_no_values() {
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1_i64)])]));
        assert!(FilterCells::compare(&lists, Format::Parquet, &value("1")).is_none());
    }

    #[test]
    fn all_spellings_of_a_value_are_kept() {
        let lines = "{\"text\": \"a\", \"g\": 1}\n{\"text\": \"b\", \"g\": 1.0}\n{\"text\": \"c\", \"g\": \"1\"}\n\
                     {\"text\": \"d\", \"g\": 2}\n{\"text\": \"e\", \"g\": null}\n{\"text\": \"f\", \"g\": [1]}\n";
        let csv = "text,g\na,1\nb,1.0\nc,True\nd,\ne,true\nf,01\n";
        for wanted in ["1", "1.0"] {
            assert_eq!(read("x.jsonl", lines, value(wanted)).expect("rows"), ["a", "b", "c"], "{wanted}");
            assert_eq!(read("x.csv", csv, value(wanted)).expect("rows"), ["a", "b", "f"], "{wanted}");
        }
        assert_eq!(read("x.csv", csv, value("true")).expect("rows"), ["c", "e"]);
        assert_eq!(read("x.csv", csv, "".into()).expect("rows"), ["d"]);
    }

    #[test]
    fn texts_are_compared_exactly_with_texts() {
        let csv = "text,g\na,007\nb,7\nc,1.0\nd,1\ne,1.10\n";
        let tsv = csv.replace(',', "\t");
        let lines = "{\"text\": \"a\", \"g\": \"007\"}\n{\"text\": \"b\", \"g\": \"7\"}\n{\"text\": \"c\", \"g\": \"1.0\"}\n\
                     {\"text\": \"d\", \"g\": \"1\"}\n{\"text\": \"e\", \"g\": \"1.10\"}\n";
        for (name, content) in [("x.csv", csv), ("x.tsv", tsv.as_str()), ("x.jsonl", lines)] {
            for (wanted, row) in [("007", "a"), ("7", "b"), ("1.0", "c"), ("1", "d"), ("1.10", "e")] {
                assert_eq!(read(name, content, wanted.into()).expect("rows"), [row], "{name} {wanted}");
            }
            assert!(read(name, content, "1.1".into()).is_err(), "{name}");
            assert_eq!(read(name, content, value("1.1")).expect("rows"), ["e"], "{name}");
        }
        let names: ArrayRef = Arc::new(vec!["007", "7"].into_iter().collect::<DictionaryArray<Int32Type>>());
        let exact =
            FilterCells::compare(&names, Format::Parquet, &FilterValue::from("007")).expect("a column of texts");
        assert_eq!(exact.matches, [true, false]);
    }

    #[test]
    fn value_without_rows_is_reported_with_real_values() {
        let csv = "text,g\na,1.0\nb,x\nc,1.0\n";
        let error = read("x.csv", csv, value("1.50")).expect_err("no rows").to_string();
        assert!(error.ends_with("it has 3, and none with g = 1.50; `g` has 1.0, x"), "{error}");
        let rows: String = (0..9).map(|i| format!("t,v{i}\n")).collect();
        let error = read("x.csv", &format!("text,g\n{rows}"), "v".into()).expect_err("no rows").to_string();
        assert!(error.ends_with("`g` has v0, v1, v2, v3, v4, others"), "{error}");
    }
}
