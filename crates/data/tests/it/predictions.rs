//! Writing of predictions, chunk by chunk.

use std::fs::{self, File};
use std::io::{self, Cursor, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampSecondArray};
use arrow::datatypes::{DataType, Float32Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use proptest::prelude::*;
use sepal_data::{
    Format, LabelKind, LabelSet, OutputSpec, Passthrough, PredictionRef, PredictionWriter, RowSpec, RowStream, Rows,
    Table, TableSpec, WriteError,
};

use crate::support::{Sink, write_parquet};

fn spec(names: &[&str], kind: LabelKind) -> OutputSpec {
    OutputSpec::new(LabelSet::new(names.iter().copied()).expect("names"), kind)
}

fn passthrough_spec() -> RowSpec {
    RowSpec { passthrough: Passthrough::All, ..RowSpec::default() }
}

fn rows(content: &str, format: Format, spec: &RowSpec) -> RowStream {
    RowStream::from_reader(Cursor::new(content.to_owned()), "standard input", format, spec).expect("a stream")
}

/// Predictions of the last class for each row, with probability 0.75.
fn last_class(rows: &Rows, n: usize) -> (Vec<i64>, Vec<Vec<f32>>) {
    let mut probabilities = vec![0.25 / (n - 1) as f32; n];
    probabilities[n - 1] = 0.75;
    (vec![n as i64 - 1; rows.len()], vec![probabilities; rows.len()])
}

fn write(input: RowStream, writer: &mut PredictionWriter, n: usize) -> Result<(), WriteError> {
    for rows in input {
        let rows = rows.expect("rows");
        let (class, probabilities) = last_class(&rows, n);
        writer.write(&rows, PredictionRef::new(&class, &probabilities, &probabilities))?;
    }
    Ok(())
}

fn written(input: RowStream, format: Format, spec: OutputSpec) -> String {
    let sink = Sink::default();
    let n = spec.labels.names().len();
    let mut writer = PredictionWriter::to_writer(sink.clone(), format, spec, &input.row_schema()).expect("a writer");
    write(input, &mut writer, n).expect("written");
    writer.finish().expect("finished");
    sink.text()
}

const ROWS: &str = "id,text,label,note\n7,\"a, \"\"b\"\"\nc\",1,\n8,été 🎬,0,\"x,y\"\n";

#[test]
fn abstained_rows_have_no_class() {
    let input = || rows("text\nx\ny\n", Format::Csv, &RowSpec::default());
    let output = |least| OutputSpec { abstain_below: Some(least), ..spec(&["bad", "good"], LabelKind::Class) };
    assert_eq!(written(input(), Format::Csv, output(0.8)), "predicted,probability,abstained\n,0.75,true\n,0.75,true\n");
    assert_eq!(
        written(input(), Format::Jsonl, output(0.75)),
        "{\"predicted\":\"good\",\"probability\":0.75,\"abstained\":false}\n".repeat(2)
    );
    let lines = written(input(), Format::Jsonl, output(0.76));
    assert!(lines.starts_with("{\"predicted\":null,\"probability\":0.75,\"abstained\":true}\n"), "{lines}");
}

#[test]
fn labels_are_predicted_from_their_thresholds_on() {
    let input = rows("text\nx\n", Format::Csv, &RowSpec::default());
    let sink = Sink::default();
    let output = spec(&["a", "b"], LabelKind::Multi);
    let mut writer =
        PredictionWriter::to_writer(sink.clone(), Format::Csv, output, &input.row_schema()).expect("a writer");
    for rows in input {
        let probabilities = [vec![0.6, 0.4]];
        let predicted = PredictionRef::new(&[], &probabilities, &probabilities);
        let predicted = PredictionRef { thresholds: &[0.7, 0.4], ..predicted };
        writer.write(&rows.expect("rows"), predicted).expect("written");
    }
    writer.finish().expect("finished");
    assert_eq!(sink.text(), "predicted,probability\nb,0.4\n");
}

#[test]
fn predictions_in_csv_tsv_and_jsonl() {
    let input = || rows(ROWS, Format::Csv, &RowSpec { label: Some("label".to_owned()), ..passthrough_spec() });
    let two = || spec(&["bad", "good"], LabelKind::Class);
    assert_eq!(
        written(input(), Format::Csv, OutputSpec { probabilities: true, ..two() }),
        "id,text,note,label,predicted,probability,probability_bad,probability_good\n\
         7,\"a, \"\"b\"\"\nc\",,good,good,0.75,0.25,0.75\n8,été 🎬,\"x,y\",bad,good,0.75,0.25,0.75\n"
    );
    assert_eq!(
        written(input(), Format::Tsv, two()),
        "id\ttext\tnote\tlabel\tpredicted\tprobability\n7\ta, \"b\" c\t\tgood\tgood\t0.75\n8\tété 🎬\tx,y\tbad\tgood\t0.75\n"
    );
    assert_eq!(
        written(input(), Format::Jsonl, two()),
        "{\"id\":\"7\",\"text\":\"a, \\\"b\\\"\\nc\",\"note\":\"\",\"label\":\"good\",\"predicted\":\"good\",\"probability\":0.75}\n\
         {\"id\":\"8\",\"text\":\"été 🎬\",\"note\":\"x,y\",\"label\":\"bad\",\"predicted\":\"good\",\"probability\":0.75}\n"
    );
}

#[test]
fn jsonl_values_are_copied_as_written() {
    let content = "{\"id\": 1.50, \"meta\": {\"a\": [1, null]}, \"text\": \"x\", \"s\": \"\\u00e9,\\n\"}\n";
    let two = || spec(&["bad", "good"], LabelKind::Class);
    assert_eq!(
        written(rows(content, Format::Jsonl, &passthrough_spec()), Format::Jsonl, two()),
        "{\"id\":1.50,\"meta\":{\"a\": [1, null]},\"text\":\"x\",\"s\":\"\\u00e9,\\n\",\"predicted\":\"good\",\"probability\":0.75}\n"
    );
    assert_eq!(
        written(rows(content, Format::Jsonl, &passthrough_spec()), Format::Csv, two()),
        "id,meta,text,s,predicted,probability\n1.50,\"{\"\"a\"\": [1, null]}\",x,\"é,\n\",good,0.75\n"
    );
    // the order is the caller's
    let spec =
        RowSpec { passthrough: Passthrough::Columns(vec!["s".to_owned(), "id".to_owned()]), ..RowSpec::default() };
    assert!(written(rows(content, Format::Jsonl, &spec), Format::Csv, two()).starts_with("s,id,predicted,"));
}

#[test]
fn multi_label_and_value_predictions() {
    let content = "{\"text\": \"x\", \"label\": [\"joy\", \"fear\"]}\n{\"text\": \"y\", \"label\": []}\n";
    let labelled = |passthrough| RowSpec { label: Some("label".to_owned()), passthrough, ..RowSpec::default() };
    let input = || rows(content, Format::Jsonl, &labelled(Passthrough::All));
    let probabilities = [vec![0.5, 0.25, 0.875], vec![0.125, 0.0, 0.25]];
    let write_stream = |mut stream: RowStream, format, output: OutputSpec, numbers: &[Vec<f32>]| {
        let sink = Sink::default();
        let mut writer =
            PredictionWriter::to_writer(sink.clone(), format, output, &stream.row_schema()).expect("a writer");
        let rows = stream.next().expect("a chunk").expect("rows");
        writer.write(&rows, PredictionRef::new(&[], numbers, numbers)).expect("written");
        sink.text()
    };
    let write = |format, output, numbers: &[Vec<f32>]| write_stream(input(), format, output, numbers);
    let several = || spec(&["joy", "anger", "fear"], LabelKind::Multi);
    assert_eq!(
        write(Format::Csv, several(), &probabilities),
        "text,label,predicted,probability\nx,joy|fear,joy|fear,0.5|0.875\ny,,,\n"
    );
    assert_eq!(
        write(Format::Jsonl, several(), &probabilities),
        "{\"text\":\"x\",\"label\":[\"joy\",\"fear\"],\"predicted\":[\"joy\",\"fear\"],\"probability\":[0.5,0.875]}\n\
         {\"text\":\"y\",\"label\":[],\"predicted\":[],\"probability\":[]}\n"
    );
    let csv = rows("text,label\nx,fear; 0\ny,\n", Format::Csv, &labelled(Passthrough::None));
    assert_eq!(
        write_stream(csv, Format::Jsonl, several(), &probabilities),
        "{\"label\":[\"joy\",\"fear\"],\"predicted\":[\"joy\",\"fear\"],\"probability\":[0.5,0.875]}\n\
         {\"label\":[],\"predicted\":[],\"probability\":[]}\n"
    );
    let csv = rows("text,label\nx,1.0\ny,\n", Format::Csv, &labelled(Passthrough::None));
    assert_eq!(
        written(csv, Format::Jsonl, spec(&["bad", "good"], LabelKind::Class)),
        "{\"label\":\"good\",\"predicted\":\"good\",\"probability\":0.75}\n\
         {\"label\":null,\"predicted\":\"good\",\"probability\":0.75}\n"
    );
    let value = OutputSpec { probabilities: true, ..spec(&["score"], LabelKind::Value) };
    let only = rows(content, Format::Jsonl, &labelled(Passthrough::None));
    let numbers = [vec![-1.5], vec![0.1]];
    assert_eq!(write_stream(only, Format::Csv, value, &numbers), "label,predicted\n,-1.5\n,0.1\n");
    let not_a_number = [vec![f32::NAN], vec![0.1]];
    assert_eq!(
        write(Format::Jsonl, spec(&["score"], LabelKind::Value), &not_a_number),
        "{\"text\":\"x\",\"label\":null,\"predicted\":null}\n{\"text\":\"y\",\"label\":null,\"predicted\":0.1}\n"
    );
    let with_separator = spec(&["a|b", "c"], LabelKind::Multi);
    let joined = PredictionWriter::to_writer(io::sink(), Format::Csv, with_separator, &input().row_schema());
    assert!(matches!(joined, Err(WriteError::Name { .. })));
}

#[test]
fn parquet_output_keeps_types() {
    let folder = tempfile::tempdir().expect("a folder");
    let (from, to) = (folder.path().join("in.parquet"), folder.path().join("out.parquet"));
    let columns: [(&str, ArrayRef); 3] = [
        ("id", Arc::new(Int64Array::from(vec![1, 2]))),
        ("text", Arc::new(StringArray::from(vec!["x", "y"]))),
        ("at", Arc::new(TimestampSecondArray::from(vec![0, 86_400]))),
    ];
    let batch = RecordBatch::try_from_iter(columns).expect("a batch");
    write_parquet(&from, &batch, Compression::UNCOMPRESSED);

    let input = || RowStream::open(&from, &passthrough_spec()).expect("a stream");
    let output = || OutputSpec { probabilities: true, ..spec(&["bad", "good"], LabelKind::Class) };
    let mut writer = PredictionWriter::create(&to, output(), &input().row_schema()).expect("a writer");
    write(input(), &mut writer, 2).expect("written");
    assert_eq!(writer.finish().expect("finished"), 2);
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&to).expect("a file")).expect("parquet");
    let batch = reader.build().expect("a reader").next().expect("a batch").expect("rows");
    let names: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
    let expected = ["id", "text", "at", "predicted", "probability", "probability_bad", "probability_good"];
    assert_eq!(names, expected);
    assert_eq!(batch.column(0).data_type(), &DataType::Int64);
    assert_eq!(batch["probability_good"].as_primitive::<Float32Type>().values(), &[0.75, 0.75]);
    assert_eq!(
        written(input(), Format::Csv, OutputSpec { probabilities: false, ..output() }),
        "id,text,at,predicted,probability\n1,x,1970-01-01T00:00:00,good,0.75\n2,y,1970-01-02T00:00:00,good,0.75\n"
    );
}

fn files(folder: &Path) -> Vec<String> {
    let name = |entry: io::Result<fs::DirEntry>| entry.expect("an entry").file_name().to_string_lossy().into_owned();
    fs::read_dir(folder).expect("a folder").map(name).collect()
}

#[test]
fn output_file_is_complete_or_absent() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.csv");
    let two = || spec(&["bad", "good"], LabelKind::Class);
    let input = || rows("x\ny\n", Format::Lines, &passthrough_spec());
    let mut writer = PredictionWriter::create(&path, two(), &input().row_schema()).expect("a writer");
    write(input(), &mut writer, 2).expect("written");
    assert!(!path.exists(), "not before the end");
    drop(writer);
    assert_eq!(files(folder.path()), Vec::<String>::new(), "nothing is left");

    let mut writer = PredictionWriter::create(&path, two(), &input().row_schema()).expect("a writer");
    write(input(), &mut writer, 2).expect("written");
    assert_eq!((writer.finish().expect("finished"), files(folder.path())), (2, vec!["out.csv".to_owned()]));
    let content = fs::read_to_string(&path).expect("a file");
    assert_eq!(content, "text,predicted,probability\nx,good,0.75\ny,good,0.75\n");

    let error = PredictionWriter::create(&path, two(), &input().row_schema()).expect_err("it exists");
    assert!(matches!(&error, WriteError::Exists { .. }) && error.to_string().contains("out.csv"), "{error}");
    let again = OutputSpec { overwrite: true, ..two() };
    let writer = PredictionWriter::create(&path, again.clone(), &input().row_schema()).expect("a writer");
    assert_eq!(fs::read_to_string(&path).expect("a file"), content, "the old file stays until the end");
    writer.finish().expect("finished");
    assert_eq!(fs::read_to_string(&path).expect("a file"), "text,predicted,probability\n");
    let folder_itself = OutputSpec { format: Some(Format::Csv), ..again };
    let error = PredictionWriter::create(folder.path(), folder_itself, &input().row_schema()).expect_err("a folder");
    assert!(matches!(error, WriteError::NotAFile { .. }), "{error}");
}

#[test]
fn output_does_not_replace_a_file_created_meanwhile() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.jsonl");
    let row_schema = rows("x\n", Format::Lines, &RowSpec::default()).row_schema();
    let writer = PredictionWriter::create(&path, spec(&["a", "b"], LabelKind::Class), &row_schema).expect("a writer");
    fs::write(&path, "another's").expect("written");
    assert!(matches!(writer.finish(), Err(WriteError::Exists { .. })));
    assert_eq!((fs::read_to_string(&path).expect("a file").as_str(), files(folder.path()).len()), ("another's", 1));
}

#[test]
fn failed_output_leaves_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.parquet");
    let mut input = rows("x\ny\n", Format::Lines, &RowSpec::default());
    let two = spec(&["a", "b"], LabelKind::Class);
    let mut writer = PredictionWriter::create(&path, two, &input.row_schema()).expect("a writer");
    let rows = input.next().expect("a chunk").expect("rows");
    let half = [vec![0.5, 0.5]];
    let error = writer.write(&rows, PredictionRef::new(&[0], &half, &half)).expect_err("one");
    assert_eq!(error.to_string(), "write predictions: 1 for 2 rows");
    assert!(matches!(writer.finish(), Err(WriteError::Unfinished { rows: 0 })));
    assert!(files(folder.path()).is_empty());
}

struct ClosedPipe;

impl Write for ClosedPipe {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn closed_pipe_is_a_distinct_error() {
    let input = rows("x\n", Format::Lines, &RowSpec::default());
    let two = || spec(&["a", "b"], LabelKind::Class);
    let csv = PredictionWriter::to_writer(ClosedPipe, Format::Csv, two(), &input.row_schema()).expect("a writer");
    assert!(matches!(csv.finish(), Err(WriteError::Closed)), "the header comes with the first rows, or at the end");
    let mut jsonl =
        PredictionWriter::to_writer(ClosedPipe, Format::Jsonl, two(), &input.row_schema()).expect("a writer");
    assert!(matches!(write(input, &mut jsonl, 2), Err(WriteError::Closed)));
}

#[test]
fn invalid_output_is_refused_early() {
    let row_schema = rows("id,text,id\n1,x,y\n", Format::Csv, &passthrough_spec()).row_schema();
    let two = || spec(&["a", "b"], LabelKind::Class);
    let refuse = |format| PredictionWriter::to_writer(io::sink(), format, two(), &row_schema).expect_err("refused");
    assert!(matches!(refuse(Format::Csv), WriteError::Column { column } if column == "id"));
    assert!(matches!(refuse(Format::Parquet), WriteError::NeedsFile { .. }));
    let row_schema = rows("x\n", Format::Lines, &RowSpec::default()).row_schema();
    let arrow = PredictionWriter::to_writer(io::sink(), Format::Arrow, two(), &row_schema);
    assert!(matches!(arrow, Err(WriteError::Unsupported { .. })));
    assert!(matches!(PredictionWriter::create(Path::new("x.out"), two(), &row_schema), Err(WriteError::Format { .. })));
    assert!(matches!(
        PredictionWriter::create(Path::new("nowhere/at/all.csv"), two(), &row_schema),
        Err(WriteError::Folder { folder, .. }) if folder == Path::new("nowhere/at")
    ));
    let check = |path: &str, format| PredictionWriter::check(Path::new(path), format, false).expect_err("refused");
    assert!(matches!(check("nowhere/at/all.csv", None), WriteError::Folder { .. }));
    assert!(matches!(check("x.txt", None), WriteError::Format { .. }));
    assert!(matches!(check("x.csv", Some(Format::Lines)), WriteError::Unsupported { .. }));
    assert!(
        PredictionWriter::check_stream(Format::Jsonl).is_ok() && PredictionWriter::check_stream(Format::Arrow).is_err()
    );
}

#[test]
fn new_columns_replace_columns_of_the_same_name() {
    let content = "predicted,review,label,text\nold,x,1,y\n";
    let row_spec = |label: Option<&str>| RowSpec {
        text: Some("review".to_owned()),
        label: label.map(str::to_owned),
        ..passthrough_spec()
    };
    let two = || spec(&["bad", "good"], LabelKind::Class);
    let input = || rows(content, Format::Csv, &row_spec(None));
    let expected = "review,label,text,predicted,probability\nx,1,y,good,0.75\n";
    assert_eq!(written(input(), Format::Csv, two()), expected);
    let again = || rows(expected, Format::Csv, &row_spec(Some("label")));
    assert_eq!(
        written(again(), Format::Csv, two()),
        "review,text,label,predicted,probability\nx,y,good,good,0.75\n",
        "labels by their names"
    );
    let writer = PredictionWriter::to_writer(io::sink(), Format::Csv, two(), &again().row_schema()).expect("a writer");
    assert_eq!(writer.replaced(), ["label", "predicted", "probability"]);
}

#[test]
fn large_parquet_output_has_row_groups() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.parquet");
    let content: String = (0..100_000).map(|i| format!("row {i}\n")).collect();
    let input = rows(&content, Format::Lines, &RowSpec { chunk_rows: 5000, ..passthrough_spec() });
    let two = spec(&["bad", "good"], LabelKind::Class);
    let mut writer = PredictionWriter::create(&path, two, &input.row_schema()).expect("a writer");
    write(input, &mut writer, 2).expect("written");
    assert_eq!(writer.finish().expect("finished"), 100_000);
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).expect("a file")).expect("parquet");
    let groups: Vec<i64> = reader.metadata().row_groups().iter().map(|group| group.num_rows()).collect();
    // the first multiple of 5000 from 65536 on
    assert_eq!(groups, [70_000, 30_000]);
    let table = Table::read(&TableSpec::new(&path, "text").with_label("predicted")).expect("a table");
    assert_eq!((table.len(), table.texts()[99_999].as_str()), (100_000, "row 99999"));
}

fn cell() -> impl Strategy<Value = String> {
    // Without NUL bytes, which other programs refuse in csv files.
    "[a-z ,\"'|;\\t\\n\\r\\\\é🎬-]{0,20}[a-z\"]"
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn written_predictions_are_read_back(
        cells in prop::collection::vec((cell(), cell(), any::<i64>()), 1..40),
        chunk_rows in 1_usize..9,
        format in prop::sample::select(vec![Format::Csv, Format::Jsonl, Format::Parquet]),
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out");
        let line = |(text, note, id): &(String, String, i64)| serde_json::json!({"id": id, "note": note, "text": text});
        let content: String = cells.iter().map(|cell| format!("{}\n", line(cell))).collect();
        let input = rows(&content, Format::Jsonl, &RowSpec { chunk_rows, ..passthrough_spec() });
        let output = OutputSpec { format: Some(format), ..spec(&["bad", "go\"o,d\n"], LabelKind::Class) };
        let mut writer = PredictionWriter::create(&path, output, &input.row_schema()).expect("a writer");
        write(input, &mut writer, 2).expect("written");
        prop_assert_eq!(writer.finish().expect("finished"), cells.len() as u64);

        let read = |text: &str| {
            let spec = TableSpec { format: Some(format), ..TableSpec::new(&path, text).with_pair("note") };
            Table::read(&spec.with_label("id")).expect("a table")
        };
        let table = read("text");
        let pairs = table.pairs().expect("notes");
        for (row, (text, note, id)) in cells.iter().enumerate() {
            prop_assert_eq!((&table.texts()[row], &pairs[row]), (text, note));
            prop_assert_eq!(table.labels().expect("ids")[row].to_string(), id.to_string());
        }
        prop_assert!(read("predicted").texts().iter().all(|name| name == "go\"o,d\n"));
        prop_assert!(read("probability").texts().iter().all(|number| number == "0.75"));
    }
}

#[test]
fn predictions_of_several_models_have_prefixed_columns() {
    let input = || rows("text,label\na,1\nb,0\n", Format::Csv, &passthrough_spec());
    let prefixed = |prefix: &str, spec: OutputSpec| OutputSpec { prefix: prefix.into(), probabilities: true, ..spec };
    let films = || prefixed("films.", spec(&["bad", "good"], LabelKind::Class));
    let stars = || prefixed("stars.", spec(&["score"], LabelKind::Value));
    let sink = Sink::default();
    let stream = input();
    let specs = vec![films(), stars()];
    let schema = stream.row_schema();
    let mut writer = PredictionWriter::to_writer(sink.clone(), Format::Csv, specs, &schema).expect("a writer");
    for rows in stream {
        let rows = rows.expect("rows");
        let (class, probabilities) = last_class(&rows, 2);
        let values = vec![vec![2.5]; rows.len()];
        let films = PredictionRef::new(&class, &probabilities, &probabilities);
        let stars = PredictionRef::new(&[], &values, &values);
        assert!(matches!(writer.write_all(&rows, &[films]), Err(WriteError::Rows { unit: "models", .. })));
        writer.write_all(&rows, &[films, stars]).expect("written");
    }
    let text = sink.text();
    let lines: Vec<&str> = text.lines().collect();
    let header = "text,label,films.predicted,films.probability,films.probability_bad,films.probability_good,";
    assert_eq!(lines[0], format!("{header}stars.predicted"));
    assert_eq!(lines[1], "a,1,good,0.75,0.25,0.75,2.5");

    let first = prefixed("a.", spec(&["x.predicted", "y"], LabelKind::Class));
    let clash = vec![first, prefixed("a.probability_x.", spec(&["x", "y"], LabelKind::Class))];
    let error = PredictionWriter::to_writer(io::sink(), Format::Csv, clash, &schema).expect_err("they clash");
    assert!(error.to_string().contains("`a.probability_x.predicted`"), "{error}");
}
