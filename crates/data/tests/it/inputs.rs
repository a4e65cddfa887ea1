//! Compressed files, JSON documents and folders of files.

use std::fs;
use std::io::{Cursor, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use sepal_data::{
    Format, LabelKind, LabelSet, Labels, Passthrough, RowSpec, RowStream, Rows, SurveyOptions, Table, TableSpec, survey,
};

use crate::support::write_file;

fn compressed(content: impl AsRef<[u8]>) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content.as_ref()).expect("compressed");
    encoder.finish().expect("compressed")
}

fn read(name: &str, content: impl AsRef<[u8]>) -> Result<Table, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = write_file(&folder, name, content);
    Table::read(&TableSpec::new(path, "text").with_label("label")).map_err(|error| in_one_line(&error))
}

fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn texts(name: &str, content: impl AsRef<[u8]>) -> Vec<String> {
    read(name, content).expect(name).texts().to_vec()
}

const CSV: &str = "text,label\ngood film,1\nbad film,0\n";
const TSV: &str = "text\tlabel\ngood film\t1\nbad film\t0\n";
const JSONL: &str = "{\"text\": \"good film\", \"label\": 1}\n{\"text\": \"bad film\", \"label\": 0}\n";
const JSON: &str =
    "[\n  {\n    \"text\": \"good film\",\n    \"label\": 1\n  },\n  {\"text\": \"bad film\", \"label\": 0}\n]\n";

#[test]
fn compressed_table_equals_the_plain_one() {
    for (name, content) in [("x.csv", CSV), ("x.tsv", TSV), ("x.jsonl", JSONL), ("x.json", JSON)] {
        let plain = read(name, content).expect(name);
        let table = read(&format!("{name}.gz"), compressed(content)).expect(name);
        assert_eq!((table.texts(), table.digest()), (plain.texts(), plain.digest()), "{name}");
        assert_eq!(texts(name, compressed(content)), plain.texts(), "the content tells, not the name");
        let utf16: Vec<u8> = format!("\u{feff}{content}").encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(texts(name, compressed(utf16)), plain.texts(), "{name}");
        let marked = format!("\u{feff}{}", content.replace('\n', "\r\n"));
        assert_eq!(texts(name, compressed(marked)), plain.texts(), "{name}");
    }
}

#[test]
fn compressed_table_may_be_padded() {
    let padded = [compressed(CSV), vec![0; 512]].concat();
    assert_eq!(texts("x.csv.gz", padded), ["good film", "bad film"]);
    let followed = [compressed(CSV), b"other".to_vec()].concat();
    let error = read("x.csv.gz", followed).expect_err("other bytes");
    assert!(error.contains("other bytes follow the end of its gzip data"), "{error}");
}

#[test]
fn damaged_compression_is_refused() {
    let bytes = compressed(CSV.repeat(50));
    for end in [2, 11, bytes.len() / 2, bytes.len() - 1] {
        let error = read("x.csv.gz", &bytes[..end]).expect_err("cut off");
        assert!(error.contains("its gzip data ends early: the file is cut off"), "{end}: {error}");
    }
    assert!(read("x.csv.gz", compressed(compressed(CSV))).expect_err("twice").contains("gzip twice"));
    let whole = read("x.parquet.gz", compressed(CSV)).expect_err("a compressed file");
    assert!(whole.contains("compressed by gzip as a whole"), "{whole}");
    assert!(read("x.arrow", compressed(CSV)).expect_err("a compressed file").contains("compressed by gzip as a whole"));
    let bomb = compressed(format!("{{\"text\": \"{}", "a".repeat(80 << 20)));
    assert!(read("x.jsonl.gz", bomb).expect_err("a bomb").contains("expands to more than 200 times its size"));
}

#[test]
fn json_documents_are_tables() {
    let expected = ["good film", "bad film"];
    for content in [
        JSON,
        JSONL,
        "[{\"label\": 1, \"text\": \"good film\"},{\"text\": \"bad film\", \"label\": 0}]",
        "{\"text\": [\"good film\", \"bad film\"], \"label\": [1, 0]}",
        "{\"text\": {\"0\": \"good film\", \"1\": \"bad film\"},\n \"label\": {\"0\": 1, \"1\": 0}}",
        "{\"0\":{\"text\":\"good film\",\"label\":1},\"1\":{\"text\":\"bad film\",\"label\":0}}",
        "{\"version\": 1.0, \"data\": [{\"text\": \"good film\", \"label\": 1}, {\"text\": \"bad film\", \"label\": 0}]}",
        "{\"columns\": [\"text\", \"label\"], \"index\": [0, 1], \"data\": [[\"good film\", 1], [\"bad film\", 0]]}",
        "{\"text\": \"good film\", \"label\": 1}\r\n\r\n{\"text\": \"bad film\", \"label\": 0}",
    ] {
        let table = read("x.json", content).expect(content);
        assert_eq!(table.texts(), expected, "{content}");
        let labels = LabelSet::new(["no", "yes"]).expect("names").labels_as(&table, LabelKind::Class);
        assert_eq!(labels, Ok(Labels::Class(vec![1, 0])), "{content}");
    }
    assert_eq!(texts("x.json", "{\n \"text\": \"one\",\n \"label\": 1\n}\n"), ["one"]);
}

#[test]
fn damaged_json_is_refused_with_its_line() {
    for (content, expected) in [
        ("[\n{\"text\": \"a\", \"label\": 1},\n{\"text\": \"b\"", "line 3: the object that begins there is not closed"),
        ("[{\"text\": \"a\", \"label\": 1},\n", "line 2: the list is not closed before the file ends"),
        ("[{\"text\": \"a\", \"label\": 1}\n{\"text\"", "line 2: expected `,` or `]` after an object"),
        ("[{\"text\": \"a\", \"label\": 1},\n3]", "line 2: expected an object in the list"),
        ("[{\"text\": \"a\", \"label\": 1}]\n]", "line 2: text follows the end of the list"),
        ("[\n{\"text\": \"a\", \"label\": }]", "line 2: the object that begins there is no valid JSON"),
        ("{\"text\": \"a\",\n \"label\": }", "line 2: expected value at column"),
        ("\n{\"text\": [\"a\", \"b\"], \"label\": [1]}", "line 2: the columns `text` and `label` have other rows"),
        ("\"text\"", "line 1: invalid type"),
        ("[]", "it is empty"),
        (" \n", "it is empty"),
    ] {
        let error = read("x.json", content).expect_err(content);
        assert!(error.contains(expected), "{content}: {error}");
    }
    let deep = format!("[{{\"text\": \"a\", \"label\": {}1{}}}]", "[".repeat(100_000), "]".repeat(100_000));
    assert!(read("x.json", deep).is_err(), "neither a label nor a crash");
    let huge = "[{\"text\": \"a\", \"label\": 1e999999999999999999999}]";
    let table = read("x.json", huge).expect("a table");
    for set in [&["no", "yes"][..], &["score"]] {
        assert!(LabelSet::new(set.iter().copied()).expect("names").labels(&table).is_err(), "{set:?}");
    }
}

#[test]
fn json_keys_of_later_objects_are_columns() {
    let folder = tempfile::tempdir().expect("a folder");
    let content = "[{\"text\": \"a\", \"facts\": {\n\"n\": [1,\n2]}},\n {\"text\": \"b\", \"late\": NaN}]";
    let path = write_file(&folder, "x.json", content);
    let spec = RowSpec { passthrough: Passthrough::All, ..RowSpec::default() };
    let rows: Vec<Rows> = RowStream::open(&path, &spec).expect("rows").collect::<Result<_, _>>().expect("rows");
    assert_eq!(rows.iter().flat_map(|rows| rows.texts.clone()).collect::<Vec<_>>(), ["a", "b"]);
    let stream = RowStream::from_reader(Cursor::new(content), "input", Format::Json, &spec).expect("a stream");
    assert_eq!(stream.map(|rows| rows.expect("rows").len()).sum::<usize>(), 2);
    let found = survey(&path, &SurveyOptions::default()).expect("a survey");
    let names: Vec<&str> = found.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!((found.rows, found.format, names), (2, Format::Json, vec!["text", "facts", "late"]));
}

#[test]
fn decimal_labels_are_classes() {
    let labels = |content: &str, names: [&str; 2]| {
        let table = read("x.csv", content).expect("a table");
        LabelSet::new(names).expect("names").labels_as(&table, LabelKind::Class)
    };
    let content = "text,label\na,1.0\nb,0.0\nc,1\nd,1e0\n";
    let expected = Ok(Labels::Class(vec![1, 0, 1, 1]));
    assert_eq!(labels(content, ["0", "1"]), expected);
    assert_eq!(labels(content, ["0.0", "1.0"]), expected);
    assert_eq!(labels(content, ["bad", "good"]), expected);
}

#[test]
fn names_of_folders_are_columns_of_their_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, content).expect("written");
        path
    };
    let files = [
        write("label=neg/lang=de/0.csv", "text\nschlecht\n"),
        write("label=neg/lang=en/0.csv", "text\nbad\n"),
        write("label=pos/lang=en/0.csv", "text,lang\ngood,en\n"),
    ];
    assert_eq!(sepal_data::unsplit_files(folder.path(), None).expect("files"), files);
    let spec = TableSpec::new(folder.path(), "text").with_label("label");
    let labels = |table: &Table| LabelSet::new(["neg", "pos"]).expect("names").labels(table).expect("labels");
    let table = Table::read_files(&spec, &files).expect("a table");
    assert_eq!((table.len(), labels(&table)), (3, Labels::Class(vec![0, 0, 1])));
    let english = Table::read_files(&spec.clone().with_filter("lang", "en"), &files).expect("a table");
    assert_eq!(
        (english.texts(), labels(&english)),
        (&["bad", "good"].map(str::to_owned)[..], Labels::Class(vec![0, 1]))
    );
    let found = survey(folder.path(), &SurveyOptions::default()).expect("a survey");
    let classes: Vec<_> =
        found.label.expect("labels").classes.into_iter().map(|class| (class.value, class.rows)).collect();
    assert_eq!((found.rows, classes), (3, vec![("neg".to_owned(), 2), ("pos".to_owned(), 1)]));
    assert_eq!(found.text.expect("texts").column, "text");
    let lines = [write("label=1/0.jsonl", "{\"text\": \"a\"}\n"), write("label=0/0.jsonl", "{\"text\": \"b\"}\n")];
    let table = Table::read_files(&spec, &lines).expect("a table");
    assert_eq!(LabelSet::new(["no", "yes"]).expect("names").labels(&table), Ok(Labels::Class(vec![1, 0])));
    assert!(
        Table::read(&TableSpec { path: files[0].clone(), ..spec }).is_err(),
        "a single file has its own columns only"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn json_is_the_same_table_in_each_layout(
        cells in prop::collection::vec(("[a\"\\\\,{}\\[\\]:é\n ]{0,6}", any::<i64>()), 1..6),
        pretty in any::<bool>(),
    ) {
        let rows: Vec<serde_json::Value> = cells
            .iter()
            .map(|(text, label)| serde_json::json!({ "text": format!("x{text}"), "label": label }))
            .collect();
        let shown = |value: &serde_json::Value| match pretty {
            true => serde_json::to_string_pretty(value).expect("json"),
            false => value.to_string(),
        };
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        let column = |name: &str| rows.iter().map(|row| row[name].clone()).collect::<Vec<_>>();
        let columns = serde_json::json!({ "text": column("text"), "label": column("label") });
        let expected = read("x.jsonl", &lines).expect("lines");
        for content in [lines, shown(&rows.clone().into()), shown(&columns)] {
            let table = read("x.json", &content).expect("json");
            prop_assert_eq!(table.digest(), expected.digest(), "{}", content);
        }
    }
}
