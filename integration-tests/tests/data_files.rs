//! Runs on rows in other files than csv, and names of labels with any characters.

use std::fs;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use sepal_integration_tests::fixture::{Fixture, failure_messages, stdout, success_messages};
use serde_json::{Value, json};

const SHORT: [&str; 2] = ["train.max_steps=2", "evaluate.every=end"];

/// Texts and labels of a csv file of the fixture.
fn rows(fixture: &Fixture, name: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(fixture.path(name)).expect("rows");
    let row = |line: &str| line.rsplit_once(',').map(|(text, label)| (text.to_owned(), label.to_owned()));
    text.lines().skip(1).filter_map(row).collect()
}

fn write(fixture: &Fixture, name: &str, content: &[u8]) {
    let path = fixture.path(name);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(path, content).expect("written");
}

fn compressed(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).expect("compressed");
    encoder.finish().expect("compressed")
}

#[test]
fn json_and_compressed_rows_train_as_csv_does() {
    let fixture = Fixture::new("llama-gqa");
    let csv = fixture.run(&SHORT);
    let object = |(text, label): (String, String)| json!({ "sentence": text, "label": label });
    let list: Value = rows(&fixture, "train.csv").into_iter().map(object).collect();
    write(&fixture, "train.json", serde_json::to_string_pretty(&list).expect("json").as_bytes());
    let plain = fs::read(fixture.path("validation.csv")).expect("rows");
    write(&fixture, "validation.csv.gz", &compressed(&plain));
    let other = fixture.run(&[&SHORT[..], &["data.train=train.json", "data.validation=validation.csv.gz"]].concat());
    for digest in ["train_digest", "validation_digest"] {
        assert_eq!(other.manifest()["data"][digest], csv.manifest()["data"][digest], "{digest}");
    }

    let folder = csv.folder.to_str().expect("a path");
    let predicted = |input: &str| stdout(fixture.sepal(&["predict", folder, "--input", input, "--only-predictions"]));
    assert_eq!(predicted("validation.csv.gz"), predicted("validation.csv"));
    assert_eq!(predicted("train.json"), predicted("train.csv"));
    let refused = failure_messages(fixture.sepal(&["predict", folder, "-i", "train.json", "-o", "out.csv.gz"]));
    assert!(refused.contains("leave out the ending .gz"), "{refused}");

    let messages = success_messages(fixture.sepal(&["init", "validation.csv.gz", "--model", "model"]));
    assert!(messages.contains("48 rows of 2 columns") && fixture.path("validation.yaml").is_file(), "{messages}");
    write(&fixture, "cut.csv.gz", &compressed(&plain)[..60]);
    let refused = fixture.failure(&["data.train=cut.csv.gz"]);
    assert!(refused.contains("its gzip data ends early"), "{refused}");
}

#[test]
fn folders_of_labels_are_rows_with_labels() {
    let fixture = Fixture::new("llama-gqa");
    for label in ["bad", "good"] {
        let texts = rows(&fixture, "train.csv").into_iter().filter(|row| row.1 == label_index(label));
        let texts: String = texts.map(|(text, _)| format!("{text}\n")).collect();
        write(&fixture, &format!("data/train/label={label}/part-0.csv"), format!("sentence\n{texts}").as_bytes());
    }
    let validation = fs::read(fixture.path("validation.csv")).expect("rows");
    write(&fixture, "data/val-0.csv", &validation);
    let run = fixture.run(&[&SHORT[..], &["data.train=data", "data.validation=data"]].concat());
    let facts = run.manifest()["data"].clone();
    assert_eq!((&facts["train_rows"], &facts["validation_rows"]), (&json!(192), &json!(48)), "{facts}");
    let messages = success_messages(fixture.sepal(&["init", "data", "--model", "model"]));
    assert!(messages.contains("data: 192 rows of 2 columns"), "{messages}");
    let drafted = fs::read_to_string(fixture.path("data.yaml")).expect("written");
    assert!(drafted.contains("  validation: ") && !drafted.contains("validation_split"), "{drafted}");
    let whole = fixture.run(&[&SHORT[..], &["data.train=data/train"]].concat());
    assert_eq!(whole.manifest()["data"]["train_digest"], facts["train_digest"], "a folder without splits");
    let refused = fixture.failure(&["data.train=data/train", "data.validation=data/train"]);
    assert!(refused.contains("(`data.validation`, or `data.validation_split` in its place)"), "{refused}");
    assert!(refused.contains("has no files of a split named validation, val"), "{refused}");
    assert!(
        refused.contains("but label=bad/part-0.csv, label=good/part-0.csv; name another folder or file"),
        "{refused}"
    );
}

fn label_index(label: &str) -> &'static str {
    if label == "bad" { "0" } else { "1" }
}

#[test]
fn names_of_labels_may_have_any_characters() {
    let fixture = Fixture::new("llama-gqa");
    let names = ["a/b\n\"c\", |d|", "é\t\u{1b}[31m😀"];
    for file in ["train.csv", "validation.csv"] {
        let rows = rows(&fixture, file);
        let index = |label: &str| usize::from(label == "good" || label == "1");
        let lines: String = rows
            .iter()
            .map(|(text, label)| format!("{}\n", json!({ "sentence": text, "label": names[index(label)] })))
            .collect();
        write(&fixture, &file.replace(".csv", ".jsonl"), lines.as_bytes());
    }
    let labels = format!("task.with.labels={}", json!(names));
    let data = ["data.train=train.jsonl", "data.validation=validation.jsonl", &labels, "track=[{use: tensorboard}]"];
    let run = fixture.run(&[&SHORT[..], &data].concat());
    let metrics = run.manifest()["metrics"].clone();
    assert!(names.iter().all(|name| metrics[format!("f1/{name}")].is_number()), "{metrics}");

    let folder = run.folder.to_str().expect("a path");
    let predict = ["predict", folder, "--input", "validation.jsonl", "--probabilities", "--only-predictions"];
    for format in ["csv", "tsv", "jsonl"] {
        let out = format!("out.{format}");
        success_messages(fixture.sepal(&[&predict[..], &["--output", &out]].concat()));
    }
    let first = fs::read_to_string(fixture.path("out.jsonl")).expect("rows");
    let first: Value = serde_json::from_str(first.lines().next().expect("a row")).expect("json");
    assert!(names.iter().all(|name| first[format!("probability_{name}")].is_number()), "{first}");
    let tsv = fs::read_to_string(fixture.path("out.tsv")).expect("rows");
    assert!(
        tsv.starts_with("predicted\tprobability\tprobability_a/b \"c\", |d|\tprobability_é \u{1b}[31m😀\n"),
        "{tsv}"
    );
    let evaluated = stdout(fixture.sepal(&["evaluate", folder, "--data", "validation.jsonl"]));
    assert!(evaluated.contains("f1/a/b\\u{a}\"c\", |d|") && !evaluated.contains('\u{1b}'), "{evaluated}");

    let exported = stdout(fixture.sepal(&["export", "peft", folder, "exported"]));
    assert!(exported.contains("labels a/b\\u{a}\"c\", |d|, é\\u{9}\\u{1b}[31m😀"), "{exported}");
    success_messages(fixture.sepal(&["import", "peft", "exported", "imported", "--model", "model"]));
    let predicted = |run: &str| -> Vec<Value> {
        let rows = ["predict", run, "--input", "validation.jsonl", "--output-format", "jsonl"];
        let row = |line: &str| serde_json::from_str::<Value>(line).expect("json")["predicted"].clone();
        stdout(fixture.sepal(&rows)).lines().map(row).collect()
    };
    assert_eq!(predicted("imported"), predicted(folder));

    let adapter = format!("tuning.with.init={{adapter: {folder}}}");
    let again = [&SHORT[..], &data, &[adapter.as_str()]].concat();
    let (_, messages) = fixture.run_with_messages(&again);
    assert!(messages.contains("the head starts as that of"), "{messages}");
}
