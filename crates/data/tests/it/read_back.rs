//! Written predictions, read back as labels.

use std::io::Cursor;

use proptest::prelude::*;
use sepal_data::{
    Format, LabelKind, LabelSet, Labels, OutputSpec, PredictionRef, PredictionWriter, RowSpec, RowStream, Table,
    TableSpec, predictions_parquet,
};

const FORMATS: [Format; 4] = [Format::Csv, Format::Tsv, Format::Jsonl, Format::Parquet];

/// Label names with numbers, truth values, blanks, quotation marks, separators and other scripts.
fn names() -> impl Strategy<Value = Vec<String>> {
    let name = prop_oneof![
        "[a-z]{1,4}( [a-z]{1,3})?",
        "[0-9]{1,2}(\\.[05])?",
        prop::sample::select(vec![
            "true",
            "FALSE",
            "yes",
            "no",
            "R&D, sales",
            "a;b",
            "[x]",
            "it's",
            "\"q\"",
            "été",
            "差评",
            "['a']"
        ])
        .prop_map(str::to_owned),
        " ?[a-z,;'\"\\[\\]\\t\\n]{2,5}",
    ];
    prop::collection::vec(name, 2..6).prop_filter("distinct names", |names| LabelSet::new(names).is_ok())
}

/// Predictions for rows with these numbers `[rows][n_labels]`, as labels.
fn expected(kind: LabelKind, numbers: &[Vec<f32>]) -> Labels {
    let best = |row: &Vec<f32>| (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best }) as i64;
    match kind {
        LabelKind::Class => Labels::Class(numbers.iter().map(best).collect()),
        LabelKind::Value => Labels::Value(numbers.iter().map(|row| row[0]).collect()),
        LabelKind::Multi => {
            let applies = |row: &Vec<f32>| row.iter().map(|&share| f32::from(u8::from(share >= 0.5))).collect();
            Labels::Multi(numbers.iter().map(applies).collect())
        }
        other => unreachable!("{other} is not written here"),
    }
}

fn write_and_read(set: &LabelSet, kind: LabelKind, numbers: &[Vec<f32>], format: Format) -> Labels {
    let texts: Vec<String> = (0..numbers.len()).map(|row| format!("text {row}")).collect();
    let table = written_table(&texts, set, kind, numbers, format);
    set.labels_as(&table, kind).unwrap_or_else(|error| panic!("{format}: {error}"))
}

fn written_table(texts: &[String], set: &LabelSet, kind: LabelKind, numbers: &[Vec<f32>], format: Format) -> Table {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out");
    let texts = texts.join("\n");
    let spec = RowSpec { passthrough: sepal_data::Passthrough::All, chunk_rows: 3, ..RowSpec::default() };
    let input = RowStream::from_reader(Cursor::new(texts), "standard input", Format::Lines, &spec).expect("a stream");
    let output = OutputSpec { format: Some(format), ..OutputSpec::new(set.clone(), kind) };
    let mut writer = PredictionWriter::create(&path, output, &input.row_schema()).expect("a writer");
    let Labels::Class(class) = expected(LabelKind::Class, numbers) else { unreachable!("the kind is `Class`") };
    let mut start = 0;
    for rows in input {
        let rows = rows.expect("rows");
        let range = start..start + rows.len();
        let (class, numbers) = (&class[range.clone()], &numbers[range.clone()]);
        writer.write(&rows, PredictionRef::new(class, numbers, numbers)).expect("written");
        start = range.end;
    }
    writer.finish().expect("finished");
    let spec = TableSpec { format: Some(format), ..TableSpec::new(&path, "text").with_label("predicted") };
    Table::read(&spec).expect("a table")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn class_and_value_predictions_are_read_back(names in names(), rows in prop::collection::vec(any::<[u8; 5]>(), 1..9)) {
        let set = LabelSet::new(&names).expect("names");
        let score = LabelSet::new(["score"]).expect("a name");
        let numbers = |n: usize| -> Vec<Vec<f32>> {
            rows.iter().map(|row| row[..n].iter().map(|&byte| f32::from(byte) / 255.0).collect()).collect()
        };
        for format in FORMATS {
            let (kind, classes) = (LabelKind::Class, numbers(names.len()));
            prop_assert_eq!(write_and_read(&set, kind, &classes, format), expected(kind, &classes), "{}", format);
            let (kind, values) = (LabelKind::Value, numbers(1));
            prop_assert_eq!(write_and_read(&score, kind, &values, format), expected(kind, &values), "{}", format);
        }
    }

    #[test]
    fn texts_are_read_back(texts in prop::collection::vec("\"?[\"a,']{1,3}\"?", 1..4), byte in any::<u8>()) {
        let set = LabelSet::new(["a", "\"b\""]).expect("names");
        let share = f32::from(byte) / 255.0;
        let numbers: Vec<Vec<f32>> = texts.iter().map(|_| vec![share, 1.0 - share]).collect();
        for format in FORMATS {
            let table = written_table(&texts, &set, LabelKind::Class, &numbers, format);
            prop_assert_eq!(table.texts(), &texts[..], "{}", format);
        }
    }

    #[test]
    fn multi_label_predictions_are_read_back(names in names(), rows in prop::collection::vec(any::<[u8; 5]>(), 1..9)) {
        let set = LabelSet::new(&names).expect("names");
        let numbers: Vec<Vec<f32>> =
            rows.iter().map(|row| row[..names.len()].iter().map(|&byte| f32::from(byte) / 255.0).collect()).collect();
        let expected = expected(LabelKind::Multi, &numbers);
        for format in FORMATS {
            let found = write_and_read(&set, LabelKind::Multi, &numbers, format);
            prop_assert_eq!(&found, &expected, "{} {:?}", format, names);
        }
    }
}

#[test]
fn names_that_are_also_a_multi_hot_vector_are_read_back() {
    for names in [&["0", "1"][..], &["1", "0.5"], &["true", "false"], &["0", "1", "0.5"]] {
        let set = LabelSet::new(names.iter().copied()).expect("names");
        for numbers in [vec![vec![0.9_f32; names.len()]; 2], vec![vec![0.9; names.len()], vec![0.1; names.len()]]] {
            let expected = expected(LabelKind::Multi, &numbers);
            for format in FORMATS {
                assert_eq!(write_and_read(&set, LabelKind::Multi, &numbers, format), expected, "{format} {names:?}");
            }
        }
    }
}

#[test]
fn predictions_file_is_read_as_labels() {
    let folder = tempfile::tempdir().expect("a folder");
    let rows = folder.path().join("rows.tsv");
    std::fs::write(&rows, "text\tlabel\ngood film\t1\nbad film\t0\n").expect("written");
    let table = Table::read(&TableSpec::new(rows, "text").with_label("label")).expect("a table");
    let numbers = [vec![0.25, 0.75], vec![0.75, 0.25]];
    for (labels, names) in [
        (Labels::Class(vec![1, 0]), &["False", "True"][..]),
        (Labels::Class(vec![1, 0]), &["2.0", "1.0"]),
        (Labels::Value(vec![0.5, -2.0]), &["score"]),
        (Labels::Multi(vec![vec![0.0, 1.0], vec![1.0, 0.0]]), &["a|b", "c"]),
    ] {
        let set = LabelSet::new(names.iter().copied()).expect("names");
        let numbers = if names.len() == 1 { [vec![0.5], vec![-2.0]] } else { numbers.clone() };
        let predicted = PredictionRef::new(&[1, 0], &numbers, &numbers);
        let bytes = predictions_parquet(&table, &labels, set.names(), predicted).expect("a file");
        let path = folder.path().join("predictions.parquet");
        std::fs::write(&path, bytes).expect("written");
        for column in ["label", "predicted"] {
            let again = Table::read(&TableSpec::new(&path, "text").with_label(column)).expect("a table");
            assert_eq!(set.labels_as(&again, labels.kind()), Ok(labels.clone()), "{column} of {names:?}");
        }
    }
}
