//! `sepal init`: pipeline files written for data files.

use std::fs;

use serde_json::Value;

use sepal_integration_tests::fixture::{Fixture, json, stdout};

/// 300 sentences with such labels.
fn labelled(fixture: &Fixture, name: &str, labels: [&str; 2]) {
    let row =
        |i: usize| format!("the film was {} and the plot, number {i}\t{}\n", ["dull", "warm"][i % 2], labels[i % 2]);
    let rows: String = (0..300).map(row).collect();
    fs::write(fixture.path(name), format!("sentence\tlabel\n{rows}")).expect("written");
}

#[test]
fn init_from_a_data_file_can_be_planned_and_run() {
    let fixture = Fixture::new("llama-gqa");
    labelled(&fixture, "reviews.tsv", ["bad", "good"]);
    let output = fixture.sepal(&["init", "reviews.tsv", "--model", "model"]).output().expect("sepal runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "next: sepal plan reviews.yaml");
    for words in ["text        `sentence`", "label       `label`", "bad 150, good 150", "tokenizer of model"] {
        assert!(said.contains(words), "{words} is not in\n{said}");
    }
    let spec = json(&stdout(&mut fixture.sepal(&["render", "reviews.yaml", "--json"])));
    let value = |key: &str| spec[key]["value"].clone();
    assert_eq!(value("task.with.labels"), serde_json::json!(["bad", "good"]));
    assert_eq!(value("data.validation_split"), 0.1);
    // Nine words, a comma and the template's: 11 tokens and 3 more, in steps of 8.
    assert_eq!(value("data.max_length"), 16);
    stdout(&mut fixture.sepal(&["validate", "reviews.yaml"]));
    let plan = json(&stdout(&mut fixture.sepal(&["plan", "reviews.yaml", "--json", "--probe-steps", "1"])));
    assert_eq!(plan["data"]["train_rows"], 270);
    stdout(&mut fixture.sepal(&["run", "reviews.yaml", "--set", "train.max_steps=4", "train.threads=1"]));

    let again = fixture.sepal(&["init", "reviews.tsv", "--model", "model"]).output().expect("sepal runs");
    assert_eq!(again.status.code(), Some(1), "nothing is written over");
    stdout(&mut fixture.sepal(&["init", "reviews.tsv", "--model", "model", "--force"]));
}

#[test]
fn init_reports_rows_and_columns_that_a_run_refuses() {
    let fixture = Fixture::new("llama-gqa");
    labelled(&fixture, "reviews.tsv", ["bad", "good"]);
    let rows = fs::read_to_string(fixture.path("reviews.tsv")).expect("rows");
    fs::write(fixture.path("reviews.tsv"), format!("{rows}an hour\t\n")).expect("written");
    let output = fixture.sepal(&["init", "reviews.tsv", "--model", "model"]).output().expect("sepal runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let note = "1 row has no label, row 301: a run stops there; take it out or give it one";
    assert!(output.status.success() && said.contains(&format!("note        {note}\n")), "{said}");
    let yaml = fs::read_to_string(fixture.path("reviews.yaml")).expect("written");
    assert!(yaml.contains(&format!("  # Note: {note}.\n")), "{yaml}");
    let run = fixture.sepal(&["run", "reviews.yaml"]).output().expect("sepal runs");
    assert!(String::from_utf8_lossy(&run.stderr).contains("row 301 of reviews.tsv"));

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
        let output = fixture.sepal(&args).output().expect("sepal runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(expected), "{args:?}: {said}");
    }
}

/// Drafts and runs a pipeline for 200 rows with these labels in turn; the pipeline, and the messages of `sepal init`.
fn drafted(fixture: &Fixture, name: &str, labels: &[&str], more: &[&str]) -> (Value, String) {
    let row = |i: usize| format!("the film was {i},\"{}\"\n", labels[i % labels.len()]);
    fs::write(fixture.path(name), "text,topic\n".to_owned() + &(0..200).map(row).collect::<String>()).expect("written");
    let args = [&["init", name, "--model", "model", "--output", "p.yaml", "--force"], more].concat();
    let output = fixture.sepal(&args).output().expect("sepal runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    stdout(&mut fixture.sepal(&["run", "p.yaml", "--set", "train.max_steps=1", "train.threads=1"]));
    (json(&stdout(&mut fixture.sepal(&["render", "p.yaml", "--json"]))), said)
}

#[test]
fn init_with_tags_writes_a_multi_label_task() {
    let fixture = Fixture::new("llama-gqa");
    let cells = ["Refund; Account access", "Refund", "Billing;Refund", "Billing", "Account access; Billing"];
    let task = |spec: &Value, key: &str| spec[format!("task.with.{key}")]["value"].clone();
    let (spec, said) = drafted(&fixture, "tags.csv", &cells, &[]);
    assert_eq!(task(&spec, "labels"), serde_json::json!(["Account access", "Billing", "Refund"]));
    assert_eq!(task(&spec, "multi_label"), true);
    assert!(said.contains("several to a row: Account access 80, Billing 120, Refund 120"), "{said}");
    assert!(said.contains("question    does each row have several labels?"), "{said}");
    let (spec, said) = drafted(&fixture, "tags.csv", &cells, &["--as", "class"]);
    assert_eq!(task(&spec, "labels").as_array().map(Vec::len), Some(5), "{said}");
}

#[test]
fn init_with_unusual_labels_asks_questions() {
    let fixture = Fixture::new("llama-gqa");
    let (spec, said) = drafted(&fixture, "stars.csv", &["1", "2", "3", "4", "5"], &[]);
    assert_eq!(spec["task.with.labels"]["value"], serde_json::json!(["1", "2", "3", "4", "5"]));
    assert!(
        said.contains("question    are the labels degrees, from 1 to 5?") && said.contains("--as number"),
        "{said}"
    );
    let (spec, said) = drafted(&fixture, "stars.csv", &["1", "2", "3", "4", "5"], &["--as", "number"]);
    assert_eq!(spec["task.with.labels"]["value"], serde_json::json!(["topic"]));
    assert!(!said.contains("question") && !said.contains("warning"), "{said}");
    let many: Vec<String> = (0..40).map(|i| format!("class {i}")).collect();
    let (_, said) = drafted(&fixture, "many.csv", &many.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    assert!(said.contains("question    are 40 labels meant? Each has 5.0 rows"), "{said}");
    let rare: Vec<&str> = (0..200).map(|i| if i == 7 { "badd" } else { ["bad", "good"][i % 2] }).collect();
    let (_, said) = drafted(&fixture, "rare.csv", &rare, &[]);
    assert!(said.contains("question    is `badd` a label? It has one row"), "{said}");
}

#[test]
fn init_writes_delimiter_and_encoding() {
    let fixture = Fixture::new("llama-gqa");
    let row = |i: usize| format!("{i};un été, no {i};{}\n", ["bad", "good"][i % 2]);
    let content = "id;review;sentiment\n".to_owned() + &(0..60).map(row).collect::<String>();
    let latin: Vec<u8> = content.chars().map(|letter| u8::try_from(u32::from(letter)).expect("latin-1")).collect();
    fs::write(fixture.path("reviews.csv"), &latin).expect("written");
    let output = fixture.sepal(&["init", "reviews.csv", "--model", "model"]).output().expect("sepal runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("line 2: the byte 0xe9 is not valid UTF-8; set `encoding` to that of the file"), "{said}");

    stdout(&mut fixture.sepal(&["init", "reviews.csv", "--model", "model", "--encoding", "latin-1"]));
    let yaml = fs::read_to_string(fixture.path("reviews.yaml")).expect("written");
    assert!(yaml.contains("  delimiter: \";\"\n  encoding: windows-1252\n  text: review\n"), "{yaml}");
    let run = ["run", "reviews.yaml", "--set", "train.max_steps=0", "evaluate.every=end"];
    stdout(&mut fixture.sepal(&run));
    let run = fs::read_dir(fixture.path("runs")).expect("runs").next().expect("a run").expect("a run").path();
    let run = run.display().to_string();
    // as in training, unless it is UTF-8
    fs::write(fixture.path("utf8.csv"), &content).expect("written");
    for input in ["reviews.csv", "utf8.csv"] {
        stdout(&mut fixture.sepal(&["predict", &run, "--input", input, "--output", "out.csv", "--overwrite"]));
        let written = fs::read_to_string(fixture.path("out.csv")).expect("written");
        assert!(written.contains("\n3,\"un été, no 3\",good,"), "{written}");
    }
}

#[test]
fn init_with_numeric_labels_takes_names() {
    let fixture = Fixture::new("llama-gqa");
    labelled(&fixture, "reviews.tsv", ["0", "1"]);
    let labels = |more: &[&str]| {
        let args = [&["init", "reviews.tsv", "--output", "p.yaml", "--force", "--model", "not-here"], more].concat();
        let output = fixture.sepal(&args).output().expect("sepal runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let spec = json(&stdout(&mut fixture.sepal(&["render", "p.yaml", "--json"])));
        (spec["task.with.labels"]["value"].clone(), said)
    };
    let (unnamed, said) = labels(&[]);
    assert_eq!(unnamed, serde_json::json!(["label_0", "label_1"]));
    assert!(said.contains("name them by --labels") && said.contains("words, taken for 1.5 tokens each"), "{said}");
    assert_eq!(labels(&["--labels", "bad,good"]).0, serde_json::json!(["bad", "good"]));
    let wrong =
        fixture.sepal(&["init", "reviews.tsv", "--output", "q.yaml", "--labels", "a,b,c"]).output().expect("runs");
    assert_eq!(wrong.status.code(), Some(1));
    let values =
        fixture.sepal(&["init", "reviews.tsv", "--output", "q.yaml", "--labels", "1,2"]).output().expect("runs");
    let said = String::from_utf8_lossy(&values.stderr).into_owned();
    assert!(values.status.code() == Some(1) && said.contains("use names with a word in them"), "{said}");
    assert!(!fixture.path("q.yaml").exists());
}
