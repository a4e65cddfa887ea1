//! `sepal init`: pipeline files written for data files.

use std::fs;

use sepal_integration_tests::fixture::{Fixture, failure_messages, json, stdout, success_messages};
use serde_json::Value;

fn write_labelled_rows(fixture: &Fixture, name: &str, labels: [&str; 2]) {
    let row =
        |i: usize| format!("the film was {} and the plot, number {i}\t{}\n", ["dull", "warm"][i % 2], labels[i % 2]);
    let rows: String = (0..300).map(row).collect();
    fs::write(fixture.path(name), format!("sentence\tlabel\n{rows}")).expect("written");
}

#[test]
fn init_from_a_data_file_can_be_planned_and_run() {
    let fixture = Fixture::new("llama-gqa");
    write_labelled_rows(&fixture, "reviews.tsv", ["bad", "good"]);
    let output = fixture.sepal(&["init", "reviews.tsv", "--model", "model"]).output().expect("sepal runs");
    let messages = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "next: sepal plan reviews.yaml\n", "{messages}");
    for words in ["text        `sentence`", "label       `label`", "bad 150, good 150", "tokenizer of model"] {
        assert!(messages.contains(words), "{words} is not in\n{messages}");
    }
    let spec = json(&stdout(fixture.sepal(&["render", "reviews.yaml", "--json"])));
    let value = |key: &str| spec[key]["value"].clone();
    assert_eq!(value("task.with.labels"), serde_json::json!(["bad", "good"]));
    assert_eq!(value("data.validation_split"), 0.1);
    // Nine words, a comma and the words of the template: 11 tokens and 3 more, rounded up to 8.
    assert_eq!(value("data.max_length"), 16);
    stdout(fixture.sepal(&["validate", "reviews.yaml"]));
    let plan = json(&stdout(fixture.sepal(&["plan", "reviews.yaml", "--json", "--probe-steps", "1"])));
    assert_eq!(plan["data"]["train_rows"], 270);
    stdout(fixture.sepal(&["run", "reviews.yaml", "--set", "train.max_steps=4", "train.threads=1"]));

    failure_messages(fixture.sepal(&["init", "reviews.tsv", "--model", "model"]));
    stdout(fixture.sepal(&["init", "reviews.tsv", "--model", "model", "--force"]));
}

#[test]
fn init_reports_rows_and_columns_that_a_run_refuses() {
    let fixture = Fixture::new("llama-gqa");
    write_labelled_rows(&fixture, "reviews.tsv", ["bad", "good"]);
    let rows = fs::read_to_string(fixture.path("reviews.tsv")).expect("rows");
    fs::write(fixture.path("reviews.tsv"), format!("{rows}an hour\t\n")).expect("written");
    let messages = success_messages(fixture.sepal(&["init", "reviews.tsv", "--model", "model"]));
    let note = "1 row has no label, row 301: `data.skip_empty: true` leaves it out";
    assert!(messages.contains(&format!("note        {note}\n")), "{messages}");
    let yaml = fs::read_to_string(fixture.path("reviews.yaml")).expect("written");
    assert!(yaml.contains(&format!("  # Note: {note}.\n")), "{yaml}");
    let refused = failure_messages(fixture.sepal(&["run", "reviews.yaml"]));
    assert!(refused.contains("row 301 of reviews.tsv") && refused.contains("data.skip_empty: true"), "{refused}");
    let skipping = ["run", "reviews.yaml", "--set", "data.skip_empty=true", "train.max_steps=1", "model.source=model"];
    let messages = success_messages(fixture.sepal(&skipping));
    assert!(messages.contains("1 empty row is left out, the first is row 301 of reviews.tsv"), "{messages}");

    let ids: String = (0..2000).map(|i| format!("{i},it is number {i},{}\n", ["bad", "good"][i % 2])).collect();
    fs::write(fixture.path("ids.csv"), format!("id,review,sentiment\n{ids}")).expect("written");
    fs::write(fixture.path("empty.csv"), "").expect("written");
    fs::write(fixture.path("header.csv"), "id,review\n").expect("written");
    for (args, expected) in [
        (vec!["ids.csv", "--label", "sentimnt"], "did you mean `sentiment`?"),
        (vec!["ids.csv", "--label", "sent"], "did you mean `sentiment`?"),
        (vec!["ids.csv", "--label", "id"], "it has 2000 different whole numbers"),
        (vec!["ids.csv", "--label", "review"], "it is the column of texts"),
        (vec!["empty.csv"], "it is empty"),
        (vec!["header.csv"], "it has the names of columns and no row"),
    ] {
        let args = [vec!["init"], args].concat();
        let messages = failure_messages(fixture.sepal(&args));
        assert!(messages.contains(expected), "{args:?}: {messages}");
    }
}

/// Runs `sepal init` on 200 rows with alternating labels, and the written pipeline. Returns the pipeline and the
/// messages.
fn init_and_run(fixture: &Fixture, name: &str, labels: &[&str], more: &[&str]) -> (Value, String) {
    let row = |i: usize| format!("the film was {i},\"{}\"\n", labels[i % labels.len()]);
    fs::write(fixture.path(name), "text,topic\n".to_owned() + &(0..200).map(row).collect::<String>()).expect("written");
    let args = [&["init", name, "--model", "model", "--output", "p.yaml", "--force"], more].concat();
    let messages = success_messages(fixture.sepal(&args));
    stdout(fixture.sepal(&["run", "p.yaml", "--set", "train.max_steps=1", "train.threads=1"]));
    (json(&stdout(fixture.sepal(&["render", "p.yaml", "--json"]))), messages)
}

#[test]
fn init_with_tags_writes_a_multi_label_task() {
    let fixture = Fixture::new("llama-gqa");
    let cells = ["Refund; Account access", "Refund", "Billing;Refund", "Billing", "Account access; Billing"];
    let task = |spec: &Value, key: &str| spec[format!("task.with.{key}")]["value"].clone();
    let (spec, messages) = init_and_run(&fixture, "tags.csv", &cells, &[]);
    assert_eq!(task(&spec, "labels"), serde_json::json!(["Account access", "Billing", "Refund"]));
    assert_eq!(task(&spec, "multi_label"), true);
    assert!(messages.contains("several to a row: Account access 80, Billing 120, Refund 120"), "{messages}");
    assert!(messages.contains("question    does each row have several labels?"), "{messages}");
    let (spec, messages) = init_and_run(&fixture, "tags.csv", &cells, &["--as", "class"]);
    assert_eq!(task(&spec, "labels").as_array().map(Vec::len), Some(5), "{messages}");
}

#[test]
fn init_with_unusual_labels_asks_questions() {
    let fixture = Fixture::new("llama-gqa");
    let (spec, messages) = init_and_run(&fixture, "stars.csv", &["1", "2", "3", "4", "5"], &[]);
    assert_eq!(spec["task.with.labels"]["value"], serde_json::json!(["1", "2", "3", "4", "5"]));
    assert!(messages.contains("question    are the labels degrees, from 1 to 5?"), "{messages}");
    assert!(messages.contains("--as number"), "{messages}");
    let (spec, messages) = init_and_run(&fixture, "stars.csv", &["1", "2", "3", "4", "5"], &["--as", "number"]);
    assert_eq!(spec["task.with.labels"]["value"], serde_json::json!(["topic"]));
    assert!(!messages.contains("question") && !messages.contains("warning"), "{messages}");
    let many: Vec<String> = (0..40).map(|i| format!("class {i}")).collect();
    let (_, messages) = init_and_run(&fixture, "many.csv", &many.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    assert!(messages.contains("question    are 40 labels meant? Each has 5.0 rows"), "{messages}");
    let rare: Vec<&str> = (0..200).map(|i| if i == 7 { "badd" } else { ["bad", "good"][i % 2] }).collect();
    let (_, messages) = init_and_run(&fixture, "rare.csv", &rare, &[]);
    assert!(messages.contains("question    is `badd` a label? It has one row"), "{messages}");
}

#[test]
fn init_writes_delimiter_and_encoding() {
    let fixture = Fixture::new("llama-gqa");
    let row = |i: usize| format!("{i};un été, no {i};{}\n", ["bad", "good"][i % 2]);
    let content = "id;review;sentiment\n".to_owned() + &(0..60).map(row).collect::<String>();
    let latin: Vec<u8> = content.chars().map(|letter| u8::try_from(u32::from(letter)).expect("latin-1")).collect();
    fs::write(fixture.path("reviews.csv"), &latin).expect("written");
    let messages = failure_messages(fixture.sepal(&["init", "reviews.csv", "--model", "model"]));
    let expected =
        "line 2: the byte 0xe9 is not valid UTF-8; the file may be in windows-1252 (latin-1)\n  hint: set --encoding, ";
    assert!(messages.contains(expected), "{messages}");

    stdout(fixture.sepal(&["init", "reviews.csv", "--model", "model", "--encoding", "latin-1"]));
    let yaml = fs::read_to_string(fixture.path("reviews.yaml")).expect("written");
    assert!(yaml.contains("  delimiter: \";\"\n  encoding: windows-1252\n  text: review\n"), "{yaml}");
    let run = ["run", "reviews.yaml", "--set", "train.max_steps=0", "evaluate.every=end"];
    stdout(fixture.sepal(&run));
    let run = fs::read_dir(fixture.path("runs")).expect("runs").next().expect("a run").expect("a run").path();
    let run = run.display().to_string();
    // The dialect is that of the training, unless the file is UTF-8.
    fs::write(fixture.path("utf8.csv"), &content).expect("written");
    for input in ["reviews.csv", "utf8.csv"] {
        stdout(fixture.sepal(&["predict", &run, "--input", input, "--output", "out.csv", "--overwrite"]));
        let written = fs::read_to_string(fixture.path("out.csv")).expect("written");
        assert!(written.contains("\n3,\"un été, no 3\",good,"), "{written}");
    }
}

#[test]
fn init_with_numeric_labels_takes_names() {
    let fixture = Fixture::new("llama-gqa");
    write_labelled_rows(&fixture, "reviews.tsv", ["0", "1"]);
    let labels = |more: &[&str]| {
        let args = [&["init", "reviews.tsv", "--output", "p.yaml", "--force", "--model", "not-here"], more].concat();
        let messages = success_messages(fixture.sepal(&args));
        let spec = json(&stdout(fixture.sepal(&["render", "p.yaml", "--json"])));
        (spec["task.with.labels"]["value"].clone(), messages)
    };
    let (unnamed, messages) = labels(&[]);
    assert_eq!(unnamed, serde_json::json!(["label_0", "label_1"]));
    assert!(messages.contains("name them by --labels"), "{messages}");
    assert!(messages.contains("words, taken for 1.5 tokens each"), "{messages}");
    assert_eq!(labels(&["--labels", "bad,good"]).0, serde_json::json!(["bad", "good"]));
    failure_messages(fixture.sepal(&["init", "reviews.tsv", "--output", "q.yaml", "--labels", "a,b,c"]));
    let messages = failure_messages(fixture.sepal(&["init", "reviews.tsv", "--output", "q.yaml", "--labels", "1,2"]));
    assert!(messages.contains("use names with a word in them"), "{messages}");
    assert!(!fixture.path("q.yaml").exists());
}
