//! Several runs of one base model in one process: `sepal predict` and `sepal serve-task`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::serve_task::Task;
use sepal_integration_tests::fixture::{Fixture, Run, failure_messages, json, success_messages};
use serde_json::{Value, json};

const ADMIN: &str = "Authorization: Bearer fedcba9876543210\r\n";

/// Names of the runs, their labels and their tuning modes.
const RUNS: [(&str, [&str; 2], &str); 3] = [
    ("adapters", ["bad", "good"], "tuning={ use: lora, with: { r: 4, alpha: 6.0 } }"),
    ("deep", ["no", "yes"], "tuning={ use: deep-ptune, with: { pre_seq_len: 4 } }"),
    ("shallow", ["minus", "plus"], "tuning={ use: ptune, with: { pre_seq_len: 3 } }"),
];

fn trained(fixture: &Fixture) -> Vec<Run> {
    let run = |(name, labels, tuning): (&str, [&str; 2], &str)| {
        let labels = format!("task.with.labels=[{}]", labels.join(", "));
        fixture.run(&[&format!("name={name}"), &labels, tuning, "train.max_steps=20"])
    };
    RUNS.into_iter().map(run).collect()
}

fn folder(run: &Run) -> &str {
    run.folder.to_str().expect("a path")
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).expect("predictions").lines().map(json).collect()
}

/// Predictions of each run by `sepal predict` with this run only, by the names of the runs.
fn separate_predictions(fixture: &Fixture, runs: &[Run]) -> BTreeMap<&'static str, Vec<Value>> {
    let predict = |((name, ..), run): (&(&'static str, _, _), &Run)| {
        let output = format!("{name}.jsonl");
        let args = ["predict", folder(run), "-i", "validation.csv", "-o", &output, "--probabilities"];
        success_messages(fixture.sepal(&args));
        (*name, lines(&fixture.path(&output)))
    };
    RUNS.iter().zip(runs).map(predict).collect()
}

fn check_number(found: &Value, expected: &Value) {
    let (found, expected) = (found.as_f64().expect("a number"), expected.as_f64().expect("a number"));
    assert!((found - expected).abs() < 1e-5, "{found}, expected {expected}");
}

#[test]
fn predictions_of_several_runs_equal_those_of_each() {
    let fixture = Fixture::new("llama-gqa");
    let runs = trained(&fixture);
    let separate = separate_predictions(&fixture, &runs);
    let folders: Vec<&str> = runs.iter().map(folder).collect();
    let output = ["-i", "validation.csv", "-o", "all.jsonl", "--probabilities"];
    let messages = success_messages(fixture.sepal(&[&["predict"][..], &folders, &output].concat()));
    assert!(messages.contains("predicted 48 rows with 3 models"), "{messages}");
    let together = lines(&fixture.path("all.jsonl"));
    assert_eq!(together.len(), 48);
    for (name, labels, _) in RUNS {
        for (row, expected) in together.iter().zip(&separate[name]) {
            assert_eq!(row["sentence"], expected["sentence"]);
            assert_eq!(row[&format!("{name}.predicted")], expected["predicted"]);
            for label in labels {
                let column = format!("probability_{label}");
                check_number(&row[&format!("{name}.{column}")], &expected[&column]);
            }
        }
    }
    let named = [format!("one={}", folders[0]), format!("two={}", folders[0])];
    let args = ["predict", &named[0], &named[1], "-i", "validation.csv", "-o", "named.csv", "--only-predictions"];
    success_messages(fixture.sepal(&args));
    let text = fs::read_to_string(fixture.path("named.csv")).expect("predictions");
    assert!(text.starts_with("one.predicted,one.probability,two.predicted,two.probability\n"), "{text}");
}

/// Each run would read texts that it was not trained on, by the order of the arguments.
#[test]
fn runs_of_other_columns_need_the_name_of_one() {
    let fixture = Fixture::new("llama-gqa");
    for name in ["train.csv", "validation.csv"] {
        let rows = fs::read_to_string(fixture.path(name)).expect("rows");
        fs::write(fixture.path(&format!("body-{name}")), rows.replacen("sentence", "body", 1)).expect("written");
    }
    let sets = ["name=other", "train.max_steps=2", "data.train=body-train.csv", "data.validation=body-validation.csv"];
    let runs = [fixture.run(&["train.max_steps=2"]), fixture.run(&[&sets[..], &["data.text=body"]].concat())];
    let args = ["predict", folder(&runs[0]), folder(&runs[1]), "-i", "validation.csv", "-o", "-", "--only-predictions"];
    let messages = failure_messages(fixture.sepal(&args));
    let expected =
        "texts are in the column `sentence` for the first and `body` for the second; --text names one for all";
    assert!(messages.contains(expected), "{messages}");
    success_messages(fixture.sepal(&[&args[..], &["--text", "sentence"]].concat()));
}

#[test]
fn runs_of_one_name_or_of_other_models_are_refused() {
    let fixture = Fixture::new("llama-gqa");
    let first = fixture.run(&["train.max_steps=1"]);
    copy_with_other_weights(&fixture.path("model"), &fixture.path("other"));
    let second = fixture.run(&["train.max_steps=1", "model.source=other"]);
    let predict = |runs: [&str; 2]| {
        failure_messages(fixture.sepal(&["predict", runs[0], runs[1], "-i", "validation.csv", "-o", "out.csv"]))
    };
    let messages = predict([folder(&first), folder(&second)]);
    assert!(messages.contains("both are named `tiny`") && messages.contains("tiny-1="), "{messages}");
    let named = format!("second={}", folder(&second));
    let messages = predict([folder(&first), &named]);
    assert!(messages.contains("does not share the base model of"), "{messages}");
    assert!(!fixture.path("out.csv").exists());
    let messages = failure_messages(fixture.sepal(&["serve-task", folder(&first), &named, "--listen", "127.0.0.1:0"]));
    assert!(messages.contains("does not share the base model of"), "{messages}");
    let messages = predict([folder(&first), "validation.csv"]);
    assert!(messages.contains("validation.csv: it is a file"), "{messages}");
}

fn copy_with_other_weights(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let mut content = fs::read(&path).expect("a file");
        if path.extension().is_some_and(|ending| ending == "safetensors") {
            let last = content.len() - 2;
            content[last] ^= 1;
        }
        fs::write(to.join(path.file_name().expect("a name")), content).expect("written");
    }
}

/// Checks the answer of a model for this row against the row of `sepal predict`.
fn check_prediction(predicted: &Value, expected: &Value, labels: [&str; 2]) {
    assert_eq!(predicted["label"], expected["predicted"], "{expected}");
    for label in labels {
        check_number(&predicted["probabilities"][label], &expected[&format!("probability_{label}")]);
    }
}

#[test]
fn served_runs_answer_as_each_alone() {
    let fixture = Fixture::new("llama-gqa");
    let runs = trained(&fixture);
    let separate = separate_predictions(&fixture, &runs);
    let folders: Vec<String> = runs.iter().map(|run| folder(run).to_owned()).collect();
    let task = Task::start_all(&fixture, &folders, &[]);
    task.until("ready");
    thread::scope(|scope| {
        for (name, labels, _) in RUNS {
            for rows in [1, 5] {
                let (task, expected) = (&task, &separate[name]);
                scope.spawn(move || {
                    for rows in expected.chunks(rows) {
                        let texts: Vec<&Value> = rows.iter().map(|row| &row["sentence"]).collect();
                        let (status, answer) = task.ask(&json!({ "model": name, "texts": texts }), "");
                        assert_eq!((status, &answer["model"]), (200, &json!(name)), "{answer}");
                        let predictions = answer["predictions"].as_array().expect("predictions");
                        assert_eq!(predictions.len(), rows.len());
                        predictions.iter().zip(rows).for_each(|(found, row)| check_prediction(found, row, labels));
                    }
                });
            }
        }
    });
    let text = &separate["deep"][0]["sentence"];
    let (status, answer) = task.ask(&json!({ "models": "*", "text": text }), "");
    assert_eq!(status, 200, "{answer}");
    for ((name, labels, _), result) in RUNS.into_iter().zip(answer["results"].as_array().expect("results")) {
        assert_eq!(result["model"], name);
        check_prediction(&result["predictions"][0], &separate[name][0], labels);
    }
    let (status, problem) = task.ask(&json!({ "text": text }), "");
    assert_eq!(status, 422, "{problem}");
    let (status, problem) = task.ask(&json!({ "model": "sallow", "text": text }), "");
    assert_eq!(status, 404, "{problem}");
    assert!(problem["detail"].as_str().expect("a detail").contains("did you mean `shallow`"), "{problem}");
    let (_, listed) = task.get("/v1/models");
    let names: Vec<&str> = listed["models"]
        .as_array()
        .expect("models")
        .iter()
        .map(|model| model["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(names, RUNS.map(|(name, ..)| name));
    assert_eq!(listed["models"][1]["labels"], json!(["no", "yes"]));
    task.stop();
}

#[test]
fn runs_are_loaded_and_unloaded_under_traffic() {
    let fixture = Fixture::new("llama-gqa");
    let runs = trained(&fixture);
    let separate = separate_predictions(&fixture, &runs);
    fs::write(fixture.path("admin"), "fedcba9876543210\n").expect("written");
    fs::write(fixture.path("runs/file"), "no run").expect("written");
    let args = ["--admin-token", "admin", "--runs-root", "runs"];
    let task = Task::start_all(&fixture, &[folder(&runs[0]).to_owned()], &args);
    task.until("ready");
    let load = |name: &str, run: &str, headers: &str| {
        task.send("POST", "/v1/models", headers, &json!({ "name": name, "run": run }).to_string())
    };
    let name_of = |run: &Run| run.folder.file_name().expect("a name").to_str().expect("text").to_owned();
    let row = &separate["adapters"][0];
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut n = 0;
            while !is_done.load(Ordering::SeqCst) {
                let (status, answer) = task.ask(&json!({ "model": "adapters", "text": row["sentence"] }), "");
                assert_eq!(status, 200, "{answer}");
                check_prediction(&answer["predictions"][0], row, RUNS[0].1);
                n += 1;
            }
            n
        });
        for round in 0..2 {
            let (status, answer) = load("other", &name_of(&runs[1 + round]), ADMIN);
            // The second run replaces the first one.
            assert_eq!(status, if round == 0 { 201 } else { 200 }, "{answer}");
            let (name, labels, _) = RUNS[1 + round];
            assert_eq!(answer["labels"], json!(labels));
            let expected = &separate[name][3];
            let body = json!({ "text": expected["sentence"] }).to_string();
            let (status, answer) = task.send("POST", "/v1/models/other/classify", "", &body);
            assert_eq!(status, 200, "{answer}");
            check_prediction(&answer["predictions"][0], expected, labels);
        }
        assert_eq!(task.send("DELETE", "/v1/models/other", ADMIN, "").0, 200);
        assert_eq!(task.ask(&json!({ "model": "other", "text": "a film" }), "").0, 404);
        is_done.store(true, Ordering::SeqCst);
        assert!(traffic.join().expect("no panic") > 0);
    });
    assert_eq!(load("other", &name_of(&runs[1]), "").0, 401);
    let outside = fixture.path("model");
    for run in ["nowhere", "../model", ".", "file", outside.to_str().expect("a path")] {
        let (status, problem) = load("other", run, ADMIN);
        assert_eq!(status, 422, "{run}: {problem}");
    }
    assert_eq!(task.get("/health").1["models"], json!({ "adapters": "ready" }));
    task.stop();
}

#[test]
fn model_that_would_take_the_last_memory_is_not_loaded() {
    let fixture = Fixture::new("llama-gqa");
    let run = fixture.run(&["train.max_steps=2"]);
    fs::write(fixture.path("admin"), "fedcba9876543210\n").expect("written");
    let args = ["serve-task", folder(&run), "--admin-token", "admin", "--runs-root", "runs"];
    let task = Task::start_command(fixture.sepal(&args).env("SEPAL_FREE_MB", "100"));
    task.until("ready");
    let name = run.folder.file_name().expect("a name").to_str().expect("text");
    let (status, problem) =
        task.send("POST", "/v1/models", ADMIN, &json!({ "name": "other", "run": name }).to_string());
    let detail = problem["detail"].as_str().expect("a detail");
    assert!(status == 422 && detail.contains("100 MB of memory are free"), "{detail}");
    assert_eq!(task.ask(&json!({ "text": "a film" }), "").0, 200);
    task.stop();
}

#[test]
fn limits_of_one_model_are_enforced() {
    let fixture = Fixture::new("llama-gqa");
    let run = fixture.run(&["train.max_steps=2"]);
    let runs = ["one", "two"].map(|name| format!("{name}={}", folder(&run)));
    let task = Task::start_all(&fixture, &runs, &["--max-model-requests", "1", "--batch-rows", "1"]);
    task.until("ready");
    let texts = vec!["a good film"; 200];
    thread::scope(|scope| {
        let large = scope.spawn(|| task.ask(&json!({ "model": "one", "texts": texts }), ""));
        let mut refused = 0;
        while !large.is_finished() && refused == 0 {
            let (status, answer) = task.ask(&json!({ "model": "one", "text": "a film" }), "");
            refused += usize::from(status == 503);
            assert!(status == 200 || status == 503, "{answer}");
            assert_eq!(task.ask(&json!({ "model": "two", "text": "a film" }), "").0, 200);
        }
        let (status, answer) = large.join().expect("no panic");
        // The large request may itself be the one that came second.
        assert!(refused == 1 || status == 503, "{answer}");
    });
    let listed = task.get("/v1/models").1;
    assert_eq!(listed["models"][0]["limits"]["open_requests"], 1);
    task.stop();
}
