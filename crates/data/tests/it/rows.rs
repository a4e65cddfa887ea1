//! Files and streams in chunks: rows, skipped rows, and memory.

use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use parquet::basic::Compression;
use sepal_core::in_one_line;
use sepal_data::{
    BadRowPolicy, CellProblem, Format, Passthrough, RawLabel, ReadError, RowSpec, RowStream, Rows, TextColumnOrigin,
};
use tempfile::TempDir;

use crate::support::{write_arrow, write_arrow_stream, write_file, write_parquet};

const TEXTS: [&str; 5] = ["A \"fine\" film,\nin two lines", "dull", "007", "été 🎬", "the end"];

fn batch() -> RecordBatch {
    let columns: [(&str, ArrayRef); 3] = [
        ("id", Arc::new(Int64Array::from(vec![10, 11, 12, 13, 14]))),
        ("sentence", Arc::new(StringArray::from(TEXTS.to_vec()))),
        ("gold", Arc::new(Int64Array::from(vec![Some(1), Some(0), None, Some(1), Some(0)]))),
    ];
    RecordBatch::try_from_iter(columns).expect("a batch")
}

fn write(folder: &TempDir, name: &str) -> PathBuf {
    let path = folder.path().join(name);
    let gold = ["1", "0", "", "1", "0"];
    match name {
        "x.parquet" => write_parquet(&path, &batch(), Compression::UNCOMPRESSED),
        "x.arrow" => write_arrow(&path, &batch(), None),
        "stream.arrow" => write_arrow_stream(&path, &batch()),
        "x.csv" => {
            let row = |i: usize| format!("{},\"{}\",{}\r\n", 10 + i, TEXTS[i].replace('"', "\"\""), gold[i]);
            fs::write(&path, format!("\u{feff}id,sentence,gold\r\n{}", (0..5).map(row).collect::<String>()))
                .expect("written");
        }
        "x.jsonl" => {
            let row = |i: usize| {
                let gold = if gold[i].is_empty() { "null" } else { gold[i] };
                let text = serde_json::json!(TEXTS[i]);
                format!("{{\"id\": {}, \"sentence\": {text}, \"gold\": {gold}}}\n\n", 10 + i)
            };
            fs::write(&path, (0..5).map(row).collect::<String>()).expect("written");
        }
        other => panic!("no writer for {other}"),
    }
    path
}

fn stream(content: &str, format: Format, spec: &RowSpec) -> Result<RowStream, ReadError> {
    RowStream::from_reader(Cursor::new(content.to_owned()), "standard input", format, spec)
}

fn texts(rows: &[Rows]) -> Vec<&str> {
    rows.iter().flat_map(|rows| rows.texts.iter().map(String::as_str)).collect()
}

#[test]
fn chunks_are_independent_of_format() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["x.parquet", "x.arrow", "stream.arrow", "x.csv", "x.jsonl"] {
        let spec = RowSpec { label: Some("gold".to_owned()), chunk_rows: 2, ..RowSpec::default() };
        let stream = RowStream::open(&write(&folder, name), &spec).expect(name);
        assert_eq!(stream.text_column(), Some(("sentence", TextColumnOrigin::CommonName)), "{name}");
        let chunks: Vec<Rows> = stream.collect::<Result<_, _>>().expect(name);
        assert_eq!(chunks.iter().map(Rows::len).collect::<Vec<_>>(), [2, 2, 1], "{name}");
        assert_eq!(texts(&chunks), TEXTS, "{name}");
        assert_eq!(chunks[1].location(1).row, 4, "{name}");
        let missing = (name == "x.csv").then(|| RawLabel::Name(String::new()));
        assert_eq!(chunks[1].labels.as_ref().expect("labels")[0], missing, "{name}: a missing label is no bad row");
        let labels: Vec<String> = chunks[0].labels.iter().flatten().flatten().map(RawLabel::to_string).collect();
        assert_eq!(labels, ["1", "0"], "{name}");
    }
}

#[test]
fn streams_are_read_like_files() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, format) in [("x.csv", Format::Csv), ("x.jsonl", Format::Jsonl)] {
        let file = File::open(write(&folder, name)).expect("a file");
        let stream = RowStream::from_reader(file, "standard input", format, &RowSpec::default()).expect("a stream");
        let chunks: Vec<Rows> = stream.collect::<Result<_, _>>().expect(name);
        assert_eq!(texts(&chunks), TEXTS, "{name}");
        assert_eq!(chunks[0].location(0).to_string(), "row 1 of standard input");
    }
    for format in [Format::Parquet, Format::Arrow] {
        let error = stream("", format, &RowSpec::default()).expect_err("it has to be a file");
        assert!(matches!(error, ReadError::NeedsFile { .. }), "{error}");
    }
}

#[test]
fn lines_are_texts() {
    let content = "\u{feff}one, \"two\"\r\n\n  three\nfour";
    let mut lines = stream(content, Format::Lines, &RowSpec::default()).expect("a stream");
    let rows = lines.next().expect("a chunk").expect("rows");
    assert_eq!(rows.texts, ["one, \"two\"", "  three", "four"]);
    assert_eq!((rows.numbers, rows.skipped[0].location.row), (vec![1, 3, 4], 2));
    assert_eq!((lines.read(), lines.skipped(), lines.next().is_none()), (4, 1, true));
    let folder = tempfile::tempdir().expect("a folder");
    let path = write_file(&folder, "x.txt", content);
    let rows = RowStream::open(&path, &RowSpec::default()).expect("a file").next().expect("a chunk").expect("rows");
    assert_eq!(rows.len(), 3);
}

#[test]
fn blank_texts_without_tokens_are_skipped() {
    let csv = "id,text\n1,\"  \"\n2,fine\n3,\"\t\"\n";
    let spec = RowSpec { text: Some("text".to_owned()), passthrough: Passthrough::All, ..RowSpec::default() };
    let mut stream = stream(csv, Format::Csv, &spec).expect("a stream");
    let mut rows = stream.next().expect("a chunk").expect("rows");
    assert_eq!(rows.texts, ["  ", "fine", "\t"]);
    rows.skip_rows_without_tokens("text", &[false, true, false]).expect("left out");
    assert_eq!((&rows.texts[..], &rows.numbers[..]), (&["fine".to_owned()][..], &[2][..]));
    let skipped: Vec<String> = rows.skipped.iter().map(ToString::to_string).collect();
    assert_eq!(skipped[1], "row 3 of standard input: `text` is without a token that the tokenizer knows");
}

#[test]
fn bad_rows_are_skipped_or_end_the_stream() {
    let csv = "text,label\nfine,1\n\"\",0\n,1\nfine too,0\n";
    let jsonl = "{\"text\": \"fine\"}\n{\"text\": null}\n{\"text\": [\"x\"]}\n{}\n{\"text\": 7}\n";
    for (content, format, problems) in [
        (csv, Format::Csv, vec![(2, CellProblem::Empty), (3, CellProblem::Empty)]),
        (jsonl, Format::Jsonl, vec![(2, CellProblem::Null), (3, CellProblem::NotText), (4, CellProblem::Null)]),
    ] {
        let spec = RowSpec { text: Some("text".to_owned()), ..RowSpec::default() };
        let rows = stream(content, format, &spec).expect("a stream").next().expect("a chunk").expect("rows");
        let found: Vec<_> = rows.skipped.iter().map(|bad| (bad.location.row, bad.problem)).collect();
        assert_eq!(found, problems);
        assert_eq!(rows.len(), 2);

        let spec = RowSpec { bad_rows: BadRowPolicy::Fail, ..spec };
        let mut rows = stream(content, format, &spec).expect("a stream");
        assert_eq!(rows.next().expect("the rows before").expect("rows").texts, ["fine"]);
        let error = rows.next().expect("the bad row").expect_err("an error");
        assert!(error.to_string().starts_with("use row 2 of standard input"), "{error}");
        assert!(rows.next().is_none(), "nothing follows an error");
    }
}

#[test]
fn chunk_may_have_only_bad_rows() {
    let spec = RowSpec { chunk_rows: 2, ..RowSpec::default() };
    let chunks: Vec<Rows> =
        stream("\n\n\nfine\n", Format::Lines, &spec).expect("a stream").collect::<Result<_, _>>().expect("rows");
    assert_eq!(chunks.iter().map(|rows| (rows.len(), rows.skipped.len())).collect::<Vec<_>>(), [(0, 2), (1, 1)]);
}

#[test]
fn text_column_is_found() {
    let check = |content: &str, spec: &RowSpec| {
        let stream = stream(content, Format::Csv, spec)?;
        let (name, origin) = stream.text_column().expect("a column");
        let found = (name.to_owned(), origin);
        let rows: Vec<Rows> = stream.collect::<Result<_, _>>()?;
        Ok::<_, ReadError>((found, rows.iter().map(Rows::len).sum::<usize>()))
    };
    let plain = RowSpec::default();
    let found = |name: &str, origin| ((name.to_owned(), origin), 2);
    let cases = [
        ("id,Review,content\n1,x y,z\n2,x,y\n", found("Review", TextColumnOrigin::CommonName)),
        ("words\nx\ny\n", found("words", TextColumnOrigin::OnlyCandidate)),
        ("id,words,ok\n1,so good,true\n2,bad,false\n", found("words", TextColumnOrigin::OnlyCandidate)),
        ("id,words,kind\n1,so good,pos\n2,so bad,neg\n", found("words", TextColumnOrigin::OnlyCandidate)),
    ];
    for (content, expected) in cases {
        assert_eq!(check(content, &plain).expect(content), expected);
    }
    let error = check("id,a,b\n1,so good,so so\n2,x y,y z\n", &plain).expect_err("two");
    assert!(error.to_string().ends_with("a, b may all be it, and none was named; it has id, a, b"), "{error}");
    assert!(matches!(check("id,n\n1,2\n", &plain), Err(ReadError::NoText { .. })));
    let spec = RowSpec { text_pair: Some("text".to_owned()), ..plain.clone() };
    let two = check("question,text\nwhat is,it\nand,this\n", &spec).expect("the second is taken");
    assert_eq!(two, found("question", TextColumnOrigin::CommonName));
    let spec = RowSpec { text: Some("txet".to_owned()), ..plain };
    let error = check("text,n\nx,1\n", &spec).expect_err("no such column");
    assert!(matches!(error, ReadError::MissingColumn { nearest: Some(nearest), .. } if nearest == "text"));
}

#[test]
fn missing_passthrough_column_is_refused() {
    let spec = RowSpec { passthrough: Passthrough::Columns(vec!["ids".to_owned()]), ..RowSpec::default() };
    let error = stream("id,text\n1,x\n", Format::Csv, &spec).expect_err("no such column");
    assert!(matches!(error, ReadError::MissingColumn { column, .. } if column == "ids"));
}

#[test]
fn filter_keeps_row_numbers() {
    let spec = RowSpec { filter: [("lang".to_owned(), "en".into())].into(), ..RowSpec::default() };
    for (content, format) in [
        ("text,lang\nx,de\ny,en\n", Format::Csv),
        ("{\"text\": \"x\", \"lang\": \"de\"}\n{\"text\": \"y\", \"lang\": \"en\"}\n", Format::Jsonl),
    ] {
        let rows = stream(content, format, &spec).expect("a stream").next().expect("a chunk").expect("rows");
        assert_eq!((rows.texts, rows.numbers), (vec!["y".to_owned()], vec![2]));
    }
}

#[test]
fn empty_stream_is_not_an_error() {
    for (content, format) in
        [("", Format::Csv), ("text\n", Format::Csv), ("", Format::Jsonl), ("", Format::Lines), ("a\tb\n", Format::Tsv)]
    {
        let spec = RowSpec::default();
        match stream(content, format, &spec) {
            Ok(mut stream) => assert!(stream.next().is_none(), "{content:?}"),
            Err(error) => assert!(matches!(error, ReadError::NoText { .. }) && format == Format::Tsv, "{error}"),
        }
    }
}

#[test]
fn damage_is_reported_after_the_rows_before_it() {
    let row = |i: usize| format!("{{\"text\": \"row {i}\"}}\n");
    let jsonl = (1..=150).map(row).collect::<String>() + "{\"text\": \"cut";
    let csv = "text,n\n".to_owned() + &"x,1\n".repeat(150) + "x,1,2\n";
    let lines = "x\n".repeat(150).into_bytes();
    let lines = [lines, b"\xff\xfe\n".to_vec()].concat();
    let cases = [
        (jsonl.into_bytes(), Format::Jsonl, "line 151"),
        (csv.into_bytes(), Format::Csv, "line 152"),
        (lines, Format::Lines, "line 151"),
    ];
    for (content, format, location) in cases {
        let spec = RowSpec { chunk_rows: 50, ..RowSpec::default() };
        let stream = RowStream::from_reader(Cursor::new(content), "standard input", format, &spec).expect("a stream");
        let chunks: Vec<_> = stream.collect();
        assert_eq!(chunks.len(), 4, "{format}");
        assert!(chunks[..3].iter().all(Result::is_ok), "{format}");
        let error = chunks[3].as_ref().expect_err("damaged");
        let text = in_one_line(error);
        assert!(matches!(error, ReadError::Corrupt { .. }) && !text.contains("row 150"), "one location: {text}");
        assert!(text.contains(location), "{text}");
    }
}

#[test]
fn lists_and_names_are_labels() {
    let content = "{\"text\": \"x\", \"label\": \"a\"}\n{\"text\": \"y\", \"label\": [\"a\", 2]}\n{\"text\": \"z\", \"label\": [0.5, 1.0]}\n";
    let spec = RowSpec { label: Some("label".to_owned()), ..RowSpec::default() };
    let rows = stream(content, Format::Jsonl, &spec).expect("a stream").next().expect("a chunk").expect("rows");
    let name = |name: &str| RawLabel::Name(name.to_owned());
    let expected = [
        Some(name("a")),
        Some(RawLabel::Many(vec![name("a"), name("2")])),
        Some(RawLabel::Many(vec![RawLabel::Float(0.5), RawLabel::Float(1.0)])),
    ];
    assert_eq!(rows.labels.expect("labels"), expected);
}

const ROWS: usize = 100_000;

type MakeRow = fn(usize) -> String;

/// Reader that makes rows on demand, and counts them.
struct CountingReader {
    row: MakeRow,
    n_made: Arc<AtomicUsize>,
    buffer: Cursor<Vec<u8>>,
}

impl Read for CountingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.buffer.read(buffer)?;
        let n_made = self.n_made.load(Ordering::Relaxed);
        if n > 0 || n_made == ROWS {
            return Ok(n);
        }
        self.buffer = Cursor::new((self.row)(n_made).into_bytes());
        self.n_made.fetch_add(1, Ordering::Relaxed);
        self.buffer.read(buffer)
    }
}

#[test]
fn stream_reads_at_most_a_chunk_ahead() {
    let csv = |i: usize| if i == 0 { "id,text\n0,\"row\n0\"\n".to_owned() } else { format!("{i},\"row\n{i}\"\n") };
    let jsonl = |i: usize| format!("{{\"id\": {i}, \"text\": \"row\\n{i}\"}}\n");
    let lines = |i: usize| format!("row {i}\n");
    let cases: [(MakeRow, Format); 3] = [(csv, Format::Csv), (jsonl, Format::Jsonl), (lines, Format::Lines)];
    for (row, format) in cases {
        let n_made = Arc::new(AtomicUsize::new(0));
        let source = CountingReader { row, n_made: n_made.clone(), buffer: Cursor::default() };
        let spec = RowSpec { chunk_rows: 500, passthrough: Passthrough::All, ..RowSpec::default() };
        let stream = RowStream::from_reader(source, "standard input", format, &spec).expect("a stream");
        let mut n_read = 0;
        for rows in stream {
            let rows = rows.expect("rows");
            assert!(rows.len() <= 500);
            n_read += rows.len();
            // A buffered reader has 8 KiB, and each read returns one row.
            let ahead = n_made.load(Ordering::Relaxed) - n_read;
            assert!(ahead <= 100, "{format}: {ahead} rows ahead");
        }
        assert_eq!(n_read, ROWS, "{format}");
    }
}
