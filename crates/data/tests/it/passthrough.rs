//! Passthrough columns: they are lossless, and of any type.

use std::fs::{self, File};
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::types::{Int32Type, Int64Type, IntervalMonthDayNano};
use arrow::array::{
    Array, ArrayRef, BinaryArray, BinaryViewArray, BooleanArray, Date32Array, Date64Array, Decimal128Array,
    Decimal256Array, DictionaryArray, DurationSecondArray, FixedSizeBinaryArray, FixedSizeListArray, Float16Array,
    Float64Array, Int8Array, Int32Array, IntervalDayTimeArray, IntervalMonthDayNanoArray, IntervalYearMonthArray,
    LargeBinaryArray, LargeListArray, LargeListViewArray, LargeStringArray, ListArray, ListViewArray, MapBuilder,
    NullArray, RecordBatch, RunArray, StringArray, StringBuilder, StringViewArray, StructArray, Time32SecondArray,
    Time64NanosecondArray, TimestampMicrosecondArray, TimestampNanosecondArray, TimestampSecondArray, UInt64Array,
    UnionArray, builder::Int32Builder,
};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::{DataType, Field, IntervalDayTime, UnionFields, i256};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sepal_data::{
    Format, LabelKind, LabelSet, OutputSpec, Passthrough, PredictionRef, PredictionWriter, RowSpec, RowStream,
    WriteError,
};

use crate::support::{Sink, write_arrow};

fn spec() -> OutputSpec {
    OutputSpec::new(LabelSet::new(["bad", "good"]).expect("names"), LabelKind::Class)
}

fn passthrough_spec() -> RowSpec {
    RowSpec { passthrough: Passthrough::All, text: Some("text".to_owned()), ..RowSpec::default() }
}

fn predict(rows: RowStream, writer: &mut PredictionWriter) -> Result<(), WriteError> {
    for rows in rows {
        let rows = rows.expect("rows");
        let halves = vec![vec![0.5, 0.5]; rows.len()];
        let class = vec![1; rows.len()];
        writer.write(&rows, PredictionRef::new(&class, &halves, &halves))?;
    }
    Ok(())
}

fn streamed(rows: RowStream, format: Format) -> Result<String, WriteError> {
    let sink = Sink::default();
    let mut writer = PredictionWriter::to_writer(sink.clone(), format, spec(), &rows.row_schema())?;
    predict(rows, &mut writer)?;
    writer.finish()?;
    Ok(sink.text())
}

/// Null stands for a missing label where a format has it, and an empty cell for a list without labels.
#[test]
fn empty_cells_of_csv_are_empty_texts_in_other_formats() {
    let table = "text,label\na,x|y\nb,\n";
    let rows = RowStream::from_reader(Cursor::new(table), "rows.csv", Format::Csv, &passthrough_spec()).expect("rows");
    let lines = streamed(rows, Format::Jsonl).expect("written");
    assert!(lines.contains("\"text\":\"b\",\"label\":\"\""), "{lines}");
}

fn parquet(rows: RowStream, folder: &Path) -> RecordBatch {
    let path = folder.join("out.parquet");
    let output = OutputSpec { overwrite: true, ..spec() };
    let mut writer = PredictionWriter::create(&path, output, &rows.row_schema()).expect("a writer");
    predict(rows, &mut writer).expect("written");
    writer.finish().expect("finished");
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).expect("a file")).expect("parquet");
    reader.build().expect("a reader").next().expect("a batch").expect("rows")
}

fn jsonl(folder: &Path, content: &str) -> PathBuf {
    let path = folder.join("in.jsonl");
    fs::write(&path, content).expect("written");
    path
}

#[test]
fn jsonl_members_are_lossless() {
    let folder = tempfile::tempdir().expect("a folder");
    let members = [
        "\"text\":\"a\"",
        "\"text\":\"b\",\"n\":NaN,\"m\":null,\"n\":[-Infinity,1e999]",
        "\"big\":123456789012345678901234567890,\"text\":\"c\",\"s\":\"\\ud83d\",\"f\":0.10",
        "\"text\":\"d\",\"deep\":{\"b\": {\"a\": [[]], \"a\": 1}},\"\\ud83d\":1,\"\":2",
    ];
    let content: String = members.iter().cycle().take(400).map(|row| format!("{{{row}}}\n")).collect();
    let late = "{\"text\":\"late\",\"note\":1,\"predicted\":\"old\"}\n";
    let rows = RowStream::open(&jsonl(folder.path(), &(content + late)), &passthrough_spec()).expect("rows");
    let written = streamed(rows, Format::Jsonl).expect("written");
    let lines: Vec<&str> = written.lines().collect();
    for (line, row) in lines.iter().zip(members.iter().cycle()).take(400) {
        assert_eq!(*line, format!("{{{row},\"predicted\":\"good\",\"probability\":0.5}}"));
    }
    assert_eq!(lines[400..], ["{\"text\":\"late\",\"note\":1,\"predicted\":\"good\",\"probability\":0.5}"]);
}

#[test]
fn json_objects_of_several_lines_are_written_in_one() {
    let content = "[\n {\"text\": \"a\", \"facts\": {\n\"n\": [1,\n2]}},\r\n{\"text\": \"b\\n\",\n\"late\": NaN}\n]\n";
    let open =
        || RowStream::from_reader(Cursor::new(content), "input", Format::Json, &passthrough_spec()).expect("rows");
    let written = streamed(open(), Format::Jsonl).expect("written");
    let lines: Vec<&str> = written.lines().collect();
    assert_eq!(lines.len(), 2, "{written}");
    assert!(lines[0].starts_with("{\"text\":\"a\",\"facts\":{ \"n\": [1, 2]},\"predicted\":"), "{written}");
    assert!(lines[1].starts_with("{\"text\":\"b\\n\",\"late\":NaN,"), "{written}");
    let csv = streamed(open(), Format::Csv).expect("written");
    assert!(csv.starts_with("text,facts,late,predicted,probability\na,\"{ \"\"n\"\": [1, 2]}\",,"), "{csv}");
}

#[test]
fn jsonl_late_keys_are_columns_of_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let rows: String = (0..300).map(|i| format!("{{\"text\":\"row {i}\",\"n\":{i}}}\n")).collect();
    let path = jsonl(folder.path(), &format!("{rows}{{\"text\":\"late\",\"note\":[1, \"x\"],\"nan\":NaN}}\n"));
    let open = || RowStream::open(&path, &passthrough_spec()).expect("rows");
    let csv = streamed(open(), Format::Csv).expect("written");
    assert!(csv.starts_with("text,n,note,nan,predicted,probability\nrow 0,0,,,good,0.5\n"), "{csv}");
    assert!(csv.ends_with("late,,\"[1, \"\"x\"\"]\",,good,0.5\n"), "{csv}");
    assert_eq!(parquet(open(), folder.path())["note"].null_count(), 300);

    // A stream has no second pass.
    let stream = |format| {
        let file = File::open(&path).expect("a file");
        streamed(RowStream::from_reader(file, "input", Format::Jsonl, &passthrough_spec()).expect("rows"), format)
    };
    assert!(stream(Format::Jsonl).expect("written").contains("\"note\":[1, \"x\"],\"nan\":NaN,\"predicted\""));
    let error = stream(Format::Csv).expect_err("no column");
    assert!(matches!(&error, WriteError::LateKey { location, key } if location.row == 301 && key == "note"), "{error}");
}

#[test]
fn columns_of_one_name_are_refused_by_the_schema_check() {
    let row_schema = |content: &'static str| {
        RowStream::from_reader(Cursor::new(content), "input", Format::Csv, &passthrough_spec())
            .expect("rows")
            .row_schema()
    };
    let error = PredictionWriter::check_row_schema(&row_schema("id,text,id\n1,x,y\n")).expect_err("two");
    assert!(matches!(error, WriteError::Column { column } if column == "id"));
    PredictionWriter::check_row_schema(&row_schema("predicted,text,predicted\n1,x,y\n")).expect("both are replaced");
}

fn one<T>(value: T) -> Vec<Option<T>> {
    vec![Some(value), None]
}

/// Columns of two rows, the second of them null if the type allows it.
fn columns() -> Vec<(&'static str, ArrayRef, &'static str)> {
    let struct_column = |column: ArrayRef| {
        Arc::new(StructArray::from(vec![(Arc::new(Field::new("a", column.data_type().clone(), true)), column)]))
            as ArrayRef
    };
    let mut words = MapBuilder::new(None, StringBuilder::new(), Int32Builder::new());
    words.keys().append_value("k");
    words.values().append_value(1);
    words.append(true).expect("a map");
    words.append(false).expect("null");
    let mut numbers = MapBuilder::new(None, Int32Builder::new(), Int32Builder::new());
    numbers.keys().append_value(7);
    numbers.values().append_value(1);
    numbers.append(true).expect("a map");
    numbers.append(false).expect("null");
    let items = || vec![Some(vec![Some(1_i64), None]), None];
    let list = || ListArray::from_iter_primitive::<Int64Type, _, _>(items());
    let large_list = || LargeListArray::from_iter_primitive::<Int64Type, _, _>(items());
    let fixed = FixedSizeBinaryArray::try_from_sparse_iter_with_size(one([1_u8, 2]).into_iter(), 2);
    let decimal = Decimal128Array::from(one(-1050)).with_precision_and_scale(10, 2);
    let decimal256 = Decimal256Array::from(one(i256::from_i128(5))).with_precision_and_scale(70, 1);
    let dates: ArrayRef = Arc::new(Date32Array::from(vec![1]));
    let runs = RunArray::<Int32Type>::try_new(&Int32Array::from(vec![1, 2]), &StringArray::from(one("x")));
    let union_fields = UnionFields::try_new(
        vec![0, 1],
        vec![Field::new("i", DataType::Int32, true), Field::new("s", DataType::Utf8, true)],
    );
    let children: Vec<ArrayRef> =
        vec![Arc::new(Int32Array::from(one(1))), Arc::new(StringArray::from(vec![None, Some("x")]))];
    let union = UnionArray::try_new(union_fields.expect("fields"), ScalarBuffer::from(vec![0_i8, 1]), None, children);
    let day = 86_400;
    let utc = |zone: &str| TimestampSecondArray::from(one(day)).with_timezone(zone);
    vec![
        ("bool", Arc::new(BooleanArray::from(one(true))), "true"),
        ("i8", Arc::new(Int8Array::from(one(-1))), "-1"),
        ("u64", Arc::new(UInt64Array::from(one(u64::MAX))), "18446744073709551615"),
        ("f16", Arc::new(Float16Array::from(one(half::f16::from_f32(0.5)))), "0.5"),
        ("f64", Arc::new(Float64Array::from(one(0.1))), "0.1"),
        ("large", Arc::new(LargeStringArray::from(one("x"))), "x"),
        ("view", Arc::new(StringViewArray::from(one("x"))), "x"),
        ("binary", Arc::new(BinaryArray::from(one(&b"\xff\x00"[..]))), "ff00"),
        ("large_binary", Arc::new(LargeBinaryArray::from(one(&b"\xff"[..]))), "ff"),
        ("binary_view", Arc::new(BinaryViewArray::from(one(&b"\xff"[..]))), "ff"),
        ("fixed", Arc::new(fixed.expect("binary")), "0102"),
        ("decimal", Arc::new(decimal.expect("a scale")), "-10.50"),
        ("decimal256", Arc::new(decimal256.expect("a scale")), "0.5"),
        ("date", Arc::new(Date32Array::from(one(1))), "1970-01-02"),
        ("date64", Arc::new(Date64Array::from(one(day * 1000))), "1970-01-02"),
        ("time", Arc::new(Time32SecondArray::from(one(61))), "00:01:01"),
        ("time64", Arc::new(Time64NanosecondArray::from(one(1))), "00:00:00.000000001"),
        ("naive", Arc::new(TimestampMicrosecondArray::from(one(1))), "1970-01-01T00:00:00.000001"),
        ("utc", Arc::new(utc("UTC")), "1970-01-02T00:00:00Z"),
        ("offset", Arc::new(utc("+02:00")), "1970-01-02T02:00:00+02:00"),
        ("berlin", Arc::new(utc("Europe/Berlin")), "1970-01-02T01:00:00+01:00"),
        ("nowhere", Arc::new(utc("No/Where")), "1970-01-02T00:00:00Z"),
        ("never", Arc::new(TimestampSecondArray::from(one(i64::MAX))), "9223372036854775807"),
        ("nanos", Arc::new(TimestampNanosecondArray::from(one(i64::MIN))), "1677-09-21T00:12:43.145224192"),
        ("duration", Arc::new(DurationSecondArray::from(one(90))), "PT90S"),
        ("months", Arc::new(IntervalYearMonthArray::from(one(14))), "1 years 2 mons"),
        ("days", Arc::new(IntervalDayTimeArray::from(one(IntervalDayTime::new(1, 0)))), "1 days"),
        (
            "interval",
            Arc::new(IntervalMonthDayNanoArray::from(one(IntervalMonthDayNano::new(1, 2, 0)))),
            "1 mons 2 days",
        ),
        ("null", Arc::new(NullArray::new(2)), ""),
        ("words", Arc::new(DictionaryArray::<Int32Type>::from_iter([Some("x"), None])), "x"),
        ("dates", Arc::new(DictionaryArray::new(Int32Array::from(one(0)), dates)), "1970-01-02"),
        ("runs", Arc::new(runs.expect("runs")), "x"),
        ("list", Arc::new(list()), "1|"),
        ("large_list", Arc::new(large_list()), "[1,null]"),
        ("fixed_list", Arc::new(FixedSizeListArray::from_iter_primitive::<Int64Type, _, _>(items(), 2)), "[1,null]"),
        ("list_view", Arc::new(ListViewArray::from(list())), "[1,null]"),
        ("large_list_view", Arc::new(LargeListViewArray::from(large_list())), "[1,null]"),
        ("struct", struct_column(Arc::new(utc("UTC"))), "{\"a\":\"1970-01-02T00:00:00Z\"}"),
        ("struct_nowhere", struct_column(Arc::new(utc("No/Where"))), "{\"a\":\"1970-01-02T00:00:00Z\"}"),
        ("map", Arc::new(words.finish()), "{\"k\":1}"),
        ("number_map", Arc::new(numbers.finish()), "{7: 1}"),
        ("union", Arc::new(union.expect("a union")), "{i=1}"),
    ]
}

#[test]
fn every_type_is_passed_through_to_every_format() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, column, expected) in columns() {
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["x", "y"]));
        let batch =
            RecordBatch::try_from_iter_with_nullable([("text", texts, false), (name, column, true)]).expect(name);
        let path = folder.path().join("in.arrow");
        write_arrow(&path, &batch, None);
        let open = || RowStream::open(&path, &passthrough_spec()).unwrap_or_else(|error| panic!("{name}: {error}"));
        for format in [Format::Csv, Format::Tsv, Format::Jsonl] {
            let written = streamed(open(), format).unwrap_or_else(|error| panic!("{name} as {format}: {error}"));
            assert_eq!(written.lines().count(), if format == Format::Jsonl { 2 } else { 3 }, "{name}: {written}");
            if format == Format::Tsv {
                let cell = written.lines().nth(1).and_then(|line| line.split('\t').nth(1));
                assert_eq!(cell, Some(expected), "{name}");
            } else if format == Format::Jsonl {
                let line: serde_json::Value =
                    serde_json::from_str(written.lines().next().expect("a line")).expect(name);
                assert_eq!(line[name].is_null(), name == "null", "{line}");
            }
        }
        let batch = parquet(open(), folder.path());
        assert_eq!((batch.num_rows(), batch.schema().field(1).name().as_str()), (2, name));
        if name == "date64" {
            assert_eq!(batch[name].data_type(), &DataType::Date32, "parquet has dates in days only");
        }
    }
}
