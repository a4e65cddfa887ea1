//! All file formats: equal tables, projection, and errors.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, ListArray, RecordBatch, StringArray, StringDictionaryBuilder};
use arrow::array::{BooleanArray, LargeStringArray, StringViewArray};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::ipc::CompressionType;
use parquet::basic::Compression;
use sepal_data::{CellProblem, Format, LabelError, LabelKind, LabelSet, Labels, RawLabel, ReadError, Table, TableSpec};
use tempfile::TempDir;

use crate::support::{write_arrow, write_arrow_stream, write_file, write_parquet};

const TEXTS: [&str; 4] = ["A \"fine\" film,\nin two lines", "dull", "007", "été 🎬"];
const PAIRS: [&str; 4] = ["one", "two", "three", "four"];
const SOURCES: [&str; 4] = ["a", "b", "a", "a"];
const MARK: &str = "unused-unused-unused-unused";

fn batch() -> RecordBatch {
    let marks: Vec<String> = (0..TEXTS.len()).map(|row| format!("{MARK}{row}")).collect();
    let columns: [(&str, ArrayRef); 5] = [
        ("unused", Arc::new(StringArray::from(marks))),
        ("sentence", Arc::new(StringArray::from(TEXTS.to_vec()))),
        ("label", Arc::new(Int64Array::from(vec![1, 0, 1, 0]))),
        ("pair", Arc::new(LargeStringArray::from(PAIRS.to_vec()))),
        ("source", Arc::new(StringViewArray::from(SOURCES.to_vec()))),
    ];
    RecordBatch::try_from_iter(columns).expect("a batch")
}

fn quoted(cell: &str) -> String {
    format!("\"{}\"", cell.replace('"', "\"\""))
}

fn write(folder: &TempDir, name: &str) -> PathBuf {
    let path = folder.path().join(name);
    let batch = batch();
    match name {
        "x.parquet" => write_parquet(&path, &batch, Compression::SNAPPY),
        "x.arrow" => write_arrow(&path, &batch, None),
        "x.feather" => write_arrow(&path, &batch, Some(CompressionType::LZ4_FRAME)),
        "stream.arrow" => write_arrow_stream(&path, &batch),
        "x.csv" => {
            let row = |i: usize| {
                format!("{MARK},{},{},{},{}\r\n", quoted(TEXTS[i]), (i + 1) % 2, PAIRS[i], quoted(SOURCES[i]))
            };
            let rows: String = (0..TEXTS.len()).map(row).collect();
            fs::write(&path, format!("\u{feff}unused,sentence,label,pair,source\r\n{rows}")).expect("written");
        }
        "x.jsonl" => {
            let row = |i: usize| {
                let unused = ["1", "[1, {}]", "null", "\"x\""][i];
                let text = serde_json::to_string(TEXTS[i]).expect("json");
                let text = if i == 2 { "007".trim_start_matches('0').to_owned() } else { text };
                let (pair, source, label) = (PAIRS[i], SOURCES[i], (i + 1) % 2);
                format!(
                    "{{\"unused\": {unused}, \"sentence\": {text}, \"label\": {label}, \"pair\": \"{pair}\", \"source\": \"{source}\"}}\n\n"
                )
            };
            fs::write(&path, (0..TEXTS.len()).map(row).collect::<String>()).expect("written");
        }
        other => panic!("no writer for {other}"),
    }
    path
}

const NAMES: [&str; 6] = ["x.parquet", "x.arrow", "x.feather", "stream.arrow", "x.csv", "x.jsonl"];

fn labels(table: &Table) -> Labels {
    LabelSet::new(["negative", "positive"]).expect("names").labels(table).expect("labels")
}

#[test]
fn table_is_independent_of_format() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in NAMES {
        let path = write(&folder, name);
        let spec = TableSpec::new(&path, "sentence").with_label("label").with_pair("pair");
        let table = Table::read(&spec).expect(name);
        let digits = if name == "x.jsonl" { "7" } else { "007" };
        assert_eq!(table.texts(), [TEXTS[0], TEXTS[1], digits, TEXTS[3]], "{name}");
        assert_eq!(table.pairs().expect("pairs"), PAIRS, "{name}");
        assert_eq!(labels(&table), Labels::Class(vec![1, 0, 1, 0]), "{name}");
        assert_eq!(table.location(2).row, 3, "{name}");

        let table = Table::read(&TableSpec::new(&path, "sentence").with_filter("source", "a")).expect(name);
        assert_eq!(table.texts(), [TEXTS[0], digits, TEXTS[3]], "{name}");
        assert!(table.labels().is_none());
        let location = table.location(1);
        assert_eq!((location.row, location.path), (3, path), "the filter does not change row numbers");
    }
}

#[test]
fn equal_content_has_equal_digests() {
    let folder = tempfile::tempdir().expect("a folder");
    let read = |name: &str| Table::read(&TableSpec::new(write(&folder, name), "sentence")).expect(name);
    let (parquet, csv) = (read("x.parquet"), read("x.csv"));
    assert_eq!(parquet.digest(), csv.digest());
    assert_ne!(parquet.digest(), parquet.select(&[0, 1]).digest());
    assert_ne!(parquet.digest(), parquet.select(&[1, 0, 2, 3]).digest());
    let labelled = Table::read(&TableSpec::new(folder.path().join("x.csv"), "sentence").with_label("label"));
    assert_ne!(labelled.expect("a table").digest(), csv.digest());
}

fn corrupt_unused_column(path: &Path) {
    let mut bytes = fs::read(path).expect("a file");
    let mark = MARK.as_bytes();
    let starts: Vec<usize> = (0..bytes.len() - mark.len()).filter(|&i| bytes[i..].starts_with(mark)).collect();
    assert!(!starts.is_empty(), "the column is in the file");
    starts.into_iter().for_each(|start| bytes[start..start + mark.len()].fill(0xff));
    fs::write(path, bytes).expect("written");
}

#[test]
fn unused_columns_are_not_decoded() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["x.parquet", "x.arrow", "stream.arrow"] {
        let path = write(&folder, name);
        if name == "x.parquet" {
            write_parquet(&path, &batch(), Compression::UNCOMPRESSED);
        }
        corrupt_unused_column(&path);
        let error = Table::read(&TableSpec::new(&path, "unused")).expect_err("corrupt");
        assert!(matches!(&error, ReadError::Corrupt { .. }), "{name}: {error}");
        let table = Table::read(&TableSpec::new(&path, "sentence").with_label("label")).expect(name);
        assert_eq!(table.texts(), TEXTS, "{name}");
    }
}

#[test]
fn tsv_has_no_quotation_marks() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = write_file(&folder, "x.tsv", "sentence\tlabel\n\"unbalanced , and fine \t1\n\"whole\"\t0\n");
    let table = Table::read(&TableSpec::new(&path, "sentence").with_label("label")).expect("a table");
    assert_eq!(table.texts(), ["\"unbalanced , and fine ", "\"whole\""]);
    assert_eq!(labels(&table), Labels::Class(vec![1, 0]));
}

#[test]
fn quoted_tsv_of_pandas_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let content = "sentence\tlabel\n\"say \"\"hi\"\" film\"\t1\nplain 5\" tape\t0\n\"two\nlines\tand a tab\"\t1\n\"\"\"q\"\"\"\t0\n";
    let expected = ["say \"hi\" film", "plain 5\" tape", "two\nlines\tand a tab", "\"q\""];
    let read = |content: &str| {
        let path = write_file(&folder, "x.tsv", content);
        Table::read(&TableSpec::new(&path, "sentence").with_label("label"))
    };
    for content in [content.to_owned(), content.replace("sentence\tlabel", "\"sentence\"\tlabel")] {
        let table = read(&content).expect("a table");
        assert_eq!(table.texts(), expected, "{content:?}");
        assert_eq!(labels(&table), Labels::Class(vec![1, 0, 1, 0]));
    }
    // The decision is that of the whole file, of which a late row is no quoted cell.
    let rows = "\"say \"\"hi\"\" film\"\t1\n".repeat(20_000);
    let table = read(&format!("sentence\tlabel\n{rows}\"a\" word\t0\n")).expect("a table");
    assert_eq!((table.texts()[0].as_str(), table.len()), ("\"say \"\"hi\"\" film\"", 20_001));
    let error = read(&format!("{content}short\n")).expect_err("a short row");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.contains("line 7: it has 1 cells, expected 2"), "{cause}");
}

#[test]
fn labels_of_every_type_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.parquet");
    let mut names = StringDictionaryBuilder::<Int32Type>::new();
    ["bad", "good", "bad"].into_iter().for_each(|name| names.append_value(name));
    let lists = [Some(vec![Some(0), Some(2)]), Some(vec![]), Some(vec![Some(1)])];
    let columns: [(&str, ArrayRef); 5] = [
        ("text", Arc::new(StringArray::from(vec!["x", "y", "z"]))),
        ("name", Arc::new(names.finish())),
        ("float", Arc::new(Float64Array::from(vec![0.5, -1.0, 3.0]))),
        ("bool", Arc::new(BooleanArray::from(vec![true, false, true]))),
        ("list", Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists))),
    ];
    write_parquet(&path, &RecordBatch::try_from_iter(columns).expect("a batch"), Compression::ZSTD(Default::default()));
    let read = |column: &str| Table::read(&TableSpec::new(&path, "text").with_label(column)).expect("a table");
    let set = |names: &[&str]| LabelSet::new(names.iter().copied()).expect("names");
    assert_eq!(set(&["bad", "good"]).labels(&read("name")), Ok(Labels::Class(vec![0, 1, 0])));
    assert_eq!(set(&["score"]).labels(&read("float")), Ok(Labels::Value(vec![0.5, -1.0, 3.0])));
    assert_eq!(read("bool").labels().expect("labels")[1], RawLabel::Bool(false));
    let hot = vec![vec![1.0, 0.0, 1.0], vec![0.0; 3], vec![0.0, 1.0, 0.0]];
    assert_eq!(set(&["a", "b", "c"]).labels(&read("list")), Ok(Labels::Multi(hot)));
    let error = Table::read(&TableSpec::new(&path, "list")).expect_err("lists are no texts");
    assert!(matches!(&error, ReadError::ColumnType { .. }) && error.to_string().contains("`list`"), "{error}");
}

#[test]
fn missing_column_error_lists_the_columns() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in NAMES {
        let path = write(&folder, name);
        let error = Table::read(&TableSpec::new(&path, "sentense")).expect_err("no such column");
        let ReadError::MissingColumn { columns, nearest, .. } = &error else { panic!("{name}: {error}") };
        assert_eq!((columns.len(), nearest.as_deref()), (5, Some("sentence")), "{name}");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        let error =
            Table::read(&TableSpec::new(&path, "sentence").with_filter("src", "a")).expect_err("no such column");
        assert!(matches!(error, ReadError::MissingColumn { column, .. } if column == "src"), "{name}");
    }
}

#[test]
fn empty_and_null_cells_are_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let read = |name: &str, content: &str| {
        let path = write_file(&folder, name, content);
        Table::read(&TableSpec::new(path, "text").with_label("label")).expect_err("a bad cell")
    };
    let check = |error: &ReadError, problem: CellProblem, column: &str| {
        let ReadError::BadRow(bad) = error else { panic!("{error}") };
        assert_eq!((bad.problem, bad.location.row, bad.column.as_str()), (problem, 2, column), "{error}");
    };
    for (name, content) in [
        ("a.csv", "text,label\nfine,1\n\"\",0\n"),
        ("b.csv", "text,label\nfine,1\n,0\n"),
        ("c.jsonl", "{\"text\": \"fine\", \"label\": 1}\n{\"text\": \"\", \"label\": 0}\n"),
    ] {
        let error = read(name, content);
        check(&error, CellProblem::Empty, "text");
        assert!(error.to_string().contains("row 2 of ") && error.to_string().contains(name), "{error}");
    }
    for (name, content, column) in [
        ("e.jsonl", "{\"text\": \"fine\", \"label\": 1}\n{\"text\": null, \"label\": 0}\n", "text"),
        ("f.jsonl", "{\"text\": \"fine\", \"label\": 1}\n{\"text\": \"fine\"}\n", "label"),
    ] {
        let error = read(name, content);
        check(&error, CellProblem::Null, column);
    }
}

#[test]
fn empty_label_is_missing_unless_rows_have_several() {
    let folder = tempfile::tempdir().expect("a folder");
    let set = LabelSet::new(["bad", "good"]).expect("names");
    let files = [("x.csv", "text,label\nfine,good\nfine,\n"), ("x.tsv", "text\tlabel\nfine\tgood\nfine\t\n")];
    for (name, content) in files {
        let path = write_file(&folder, name, content);
        let table = Table::read(&TableSpec::new(path, "text").with_label("label")).expect("a table");
        let error = set.labels_as(&table, LabelKind::Class).expect_err("a missing label");
        assert!(matches!(&error, LabelError::Missing { location } if location.row == 2), "{error}");
        let expected = Labels::Multi(vec![vec![0.0, 1.0], vec![0.0, 0.0]]);
        assert_eq!(set.labels_as(&table, LabelKind::Multi), Ok(expected), "{name}");
    }
}

#[test]
fn filtered_rows_may_be_bad() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = write_file(&folder, "x.csv", "text,source\n,other\nfine,here\n");
    let table = Table::read(&TableSpec::new(&path, "text").with_filter("source", "here")).expect("a table");
    assert_eq!((table.texts()[0].as_str(), table.location(0).row), ("fine", 2));
    let error = Table::read(&TableSpec::new(&path, "text").with_filter("source", "nowhere")).expect_err("none");
    assert!(error.to_string().contains("it has 2, and none with source = nowhere"), "{error}");
}

#[test]
fn files_without_rows_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, content) in
        [("a.csv", "text,label\n"), ("b.csv", ""), ("c.tsv", "text\n"), ("d.jsonl", "\n"), ("e.jsonl", "")]
    {
        let path = write_file(&folder, name, content);
        let error = Table::read(&TableSpec::new(path, "text")).expect_err("no rows");
        let is_right = match content.trim() {
            "" => matches!(error, ReadError::Empty { .. }),
            _ => matches!(error, ReadError::NoRows { read: 0, filter: None, .. }),
        };
        assert!(is_right, "{name}: {error}");
    }
}

#[test]
fn damaged_files_are_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["x.parquet", "x.arrow", "x.feather", "stream.arrow"] {
        let path = write(&folder, name);
        let good = fs::read(&path).expect("a file");
        for bad in [&good[..good.len() / 2], b"nonsense that is no such file", b""] {
            fs::write(&path, bad).expect("written");
            let error = Table::read(&TableSpec::new(&path, "sentence")).expect_err("damaged");
            assert!(matches!(&error, ReadError::Corrupt { .. }), "{name}, {} bytes: {error}", bad.len());
            assert!(error.to_string().contains(name), "{error}");
        }
    }
    for (name, content) in [
        ("a.csv", &b"text,label\none,1,2\n"[..]),
        ("b.csv", b"text,label\n\xff\xfe,1\n"),
        ("c.jsonl", b"{\"text\": \"x\"}\n{\"text\": \n"),
        ("d.jsonl", b"[{\"text\": \"x\"}]\n"),
    ] {
        let path = write_file(&folder, name, content);
        let error = Table::read(&TableSpec::new(&path, "text")).expect_err("damaged");
        assert!(matches!(&error, ReadError::Corrupt { .. }), "{name}: {error}");
    }
}

#[test]
fn unknown_format_and_missing_file_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = write_file(&folder, "x.txt", "text\nfine\n");
    let error = Table::read(&TableSpec::new(&path, "text")).expect_err("which format?");
    assert!(matches!(&error, ReadError::UnknownFormat { .. }), "{error}");
    let spec = TableSpec { format: Some(Format::Tsv), ..TableSpec::new(&path, "text") };
    assert_eq!(Table::read(&spec).expect("a table").texts(), ["fine"]);
    let error = Table::read(&TableSpec::new("nowhere/x.csv", "text")).expect_err("no file");
    assert!(matches!(&error, ReadError::Open { .. }) && error.to_string().contains("nowhere/x.csv"), "{error}");
}

#[test]
fn several_files_are_one_table() {
    let folder = tempfile::tempdir().expect("a folder");
    let files: Vec<PathBuf> = ["one", "two"]
        .iter()
        .map(|name| {
            let path = folder.path().join(format!("train-{name}.csv"));
            fs::write(&path, format!("text\n{name} a\n{name} b\n")).expect("written");
            path
        })
        .collect();
    assert_eq!(sepal_data::split_files(folder.path(), "train", None).expect("files"), files);
    let table = Table::read_files(&TableSpec::new("", "text"), &files).expect("a table");
    assert_eq!(table.texts(), ["one a", "one b", "two a", "two b"]);
    assert_eq!((table.location(3).path, table.location(3).row), (files[1].clone(), 2));
    let part = table.select(&[3, 0]);
    assert_eq!((part.texts()[0].as_str(), part.location(0).row), ("two b", 2));
}
