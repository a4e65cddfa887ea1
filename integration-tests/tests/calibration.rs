//! Probabilities and decisions that are fitted on labelled rows, wherever they are used.

use std::fs;

use sepal_integration_tests::fixture::{Fixture, Run, failure_messages, json, stdout, success_messages};
use serde_json::{Value, json};

use crate::serve_task::Task;

/// Fixture whose validation rows have some wrong labels, so that no classifier predicts all of them.
fn fixture() -> Fixture {
    let fixture = Fixture::new("llama-gqa");
    let path = fixture.path("validation.csv");
    let rows = fs::read_to_string(&path).expect("rows");
    let flipped = |(i, row): (usize, &str)| match row.rsplit_once(',') {
        Some((text, label)) if i % 6 == 3 => format!("{text},{}\n", 1 - label.parse::<u8>().expect("a class")),
        _ => format!("{row}\n"),
    };
    fs::write(path, rows.lines().enumerate().map(flipped).collect::<String>()).expect("written");
    fixture
}

const ALL: [&str; 3] = ["calibrate.temperature=true", "calibrate.thresholds=f1", "train.max_steps=20"];

fn folder(run: &Run) -> &str {
    run.folder.to_str().expect("a path")
}

/// Predicted rows as JSON.
fn predicted(fixture: &Fixture, run: &Run, more: &[&str]) -> Vec<Value> {
    let args = ["predict", folder(run), "-i", "validation.csv", "-o", "out.jsonl", "--probabilities", "--overwrite"];
    success_messages(fixture.sepal(&[&args[..], more].concat()));
    let text = fs::read_to_string(fixture.path("out.jsonl")).expect("predictions");
    text.lines().map(json).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number: {value}"))
}

fn evaluated(fixture: &Fixture, run: &Run, more: &[&str]) -> Value {
    let args = ["evaluate", folder(run), "--data", "validation.csv", "--json"];
    json(&stdout(fixture.sepal(&[&args[..], more].concat())))["metrics"].clone()
}

#[test]
fn calibrated_run_predicts_evaluates_and_reports_alike() {
    let fixture = fixture();
    let run = fixture.run(&ALL);
    let calibration = run.manifest()["calibration"].clone();
    assert!(number(&calibration["temperature"]) > 0.0 && calibration["rows"] == 48, "{calibration}");
    assert!(number(&calibration["after"]["log_loss"]) <= number(&calibration["before"]["log_loss"]), "{calibration}");
    assert!(number(&calibration["after"]["f1"]) >= number(&calibration["before"]["f1"]), "{calibration}");
    assert!(run.stdout.contains("calibrated  temperature"), "{}", run.stdout);
    let threshold = number(&calibration["thresholds"]["good"]) as f32;
    let rows = predicted(&fixture, &run, &[]);
    for row in &rows {
        let good = number(&row["probability_good"]) as f32;
        assert_eq!(row["predicted"], if good >= threshold { "good" } else { "bad" }, "{row}");
    }
    let metrics = evaluated(&fixture, &run, &[]);
    for (name, expected) in
        calibration["after"].as_object().expect("measures").iter().filter(|(name, _)| *name != "log_loss")
    {
        assert!((number(&metrics[name]) - number(expected)).abs() < 1e-6, "{name}: {metrics}, {calibration}");
    }
    let report = fs::read_to_string(run.folder.join("report.html")).expect("a report");
    assert!(report.contains("Calibrated on 48"), "the report shows the fit");
}

#[test]
fn improbable_labels_are_left_out_of_files_answers_and_measures() {
    let fixture = fixture();
    let run = fixture.run(&ALL);
    let threshold = number(&run.manifest()["calibration"]["thresholds"]["good"]);
    let rows = predicted(&fixture, &run, &[]);
    // Half of the rows are more probable than this.
    let mut probabilities: Vec<f64> = rows.iter().map(|row| number(&row["probability"])).collect();
    probabilities.sort_by(f64::total_cmp);
    let least = (probabilities[23] + probabilities[24]) / 2.0;
    let expected = rows.iter().filter(|row| number(&row["probability"]) < least).count();
    let abstain = ["--abstain-below", &least.to_string()];
    let rows = predicted(&fixture, &run, &abstain);
    for row in &rows {
        assert_eq!(row["abstained"], json!(number(&row["probability"]) < least), "{row}");
        assert_eq!(row["abstained"], json!(row["predicted"].is_null()), "{row}");
    }
    assert_eq!(rows.iter().filter(|row| row["abstained"] == true).count(), expected);
    let metrics = evaluated(&fixture, &run, &abstain);
    assert!((number(&metrics["coverage"]) - (48 - expected) as f64 / 48.0).abs() < 1e-9, "{metrics}");
    assert!(metrics["covered_accuracy"].is_number(), "{metrics}");

    let task = Task::start(&fixture, &run, &abstain);
    task.until("ready");
    let texts: Vec<&Value> = rows.iter().map(|row| &row["sentence"]).collect();
    let (status, answer) = task.ask(&json!({ "texts": texts }), "");
    assert_eq!(status, 200, "{answer}");
    for (answer, row) in answer["predictions"].as_array().expect("predictions").iter().zip(&rows) {
        // Batches of another size may differ in the last bits, which matters only for rows at the limit, and for the row whose
        // probability is the fitted threshold.
        if (number(&row["probability_good"]) - threshold).abs() < 1e-5 {
            continue;
        }
        assert!((number(&answer["probability"]) - number(&row["probability"])).abs() < 1e-5, "{answer} {row}");
        let is_at_the_limit = (number(&row["probability"]) - least).abs() < 1e-5;
        assert!(is_at_the_limit || answer["label"] == row["predicted"], "{answer} {row}");
    }
    let (_, answer) = task.ask(&json!({ "text": "a warm film", "abstain_below": 1.0 }), "");
    assert_eq!(
        answer["predictions"][0]["abstained"],
        number(&answer["predictions"][0]["probability"]) < 1.0,
        "{answer}"
    );
    let (status, problem) = task.ask(&json!({ "text": "a warm film", "abstain_below": 2 }), "");
    assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!("#/abstain_below")), "{problem}");
}

#[test]
fn existing_run_is_calibrated_as_a_new_one() {
    let fixture = fixture();
    let calibrated = fixture.run(&ALL);
    let expected = calibrated.manifest()["calibration"].clone();
    let run = fixture.run(&["train.max_steps=20"]);
    assert!(run.manifest().get("calibration").is_none());
    let args = ["calibrate", folder(&run), "--data", "validation.csv", "--thresholds"];
    let text = stdout(fixture.sepal(&args));
    assert!(text.starts_with("calibrated  temperature"), "{text}");
    let found = run.manifest()["calibration"].clone();
    assert!(
        (number(&found["temperature"]) / number(&expected["temperature"]) - 1.0).abs() < 1e-4,
        "{found} {expected}"
    );
    let of_good = |calibration: &Value| number(&calibration["thresholds"]["good"]);
    assert!((of_good(&found) - of_good(&expected)).abs() < 1e-4, "{found} {expected}");
    // A second fit does not start from the first.
    stdout(fixture.sepal(&args));
    assert_eq!(run.manifest()["calibration"], found);
    let without = ["calibrate", folder(&run), "--data", "validation.csv", "--no-temperature"];
    let output = fixture.sepal(&without).output().expect("sepal runs");
    assert_eq!(output.status.code(), Some(2), "nothing is to be fitted");
    assert!(String::from_utf8_lossy(&output.stderr).contains("--thresholds"));
}

#[test]
fn exports_carry_the_calibration() {
    let fixture = fixture();
    let run = fixture.run(&ALL);
    let expected = run.manifest()["calibration"].clone();
    let out = ["export", "peft", folder(&run), "exported", "--base-model", "owner/name"];
    success_messages(fixture.sepal(&out));
    let file = fs::read_to_string(fixture.path("exported/calibration.json")).expect("a file");
    assert_eq!(json(&file)["temperature"], expected["temperature"]);
    let card = fs::read_to_string(fixture.path("exported/README.md")).expect("a card");
    assert!(card.contains("divide the logits by the temperature"), "{card}");
    success_messages(fixture.sepal(&["import", "peft", "exported", "imported", "--model", "model"]));
    let manifest = json(&fs::read_to_string(fixture.path("imported/manifest.json")).expect("a manifest"));
    assert_eq!(manifest["calibration"]["thresholds"], expected["thresholds"]);
    let imported = Run { folder: fixture.path("imported"), stdout: String::new() };
    for (found, expected) in predicted(&fixture, &imported, &[]).iter().zip(predicted(&fixture, &run, &[])) {
        let far = (number(&found["probability"]) - number(&expected["probability"])).abs();
        assert!(far < 1e-5, "{found} {expected}");
    }
}

#[test]
fn labels_have_thresholds_in_files_and_answers() {
    let fixture = Fixture::new("llama-gqa");
    for name in ["train.csv", "validation.csv"] {
        let rows = fs::read_to_string(fixture.path(name)).expect("rows");
        let label = |(i, row): (usize, &str)| match row.rsplit_once(',') {
            Some((text, _)) if i > 0 && i % 7 == 0 => format!("{text},bad|good\n"),
            Some((text, "0")) => format!("{text},bad\n"),
            Some((text, "1")) => format!("{text},good\n"),
            _ => format!("{row}\n"),
        };
        fs::write(fixture.path(name), rows.lines().enumerate().map(label).collect::<String>()).expect("written");
    }
    let run = fixture.run(&[&ALL[..], &["task.with.multi_label=true"]].concat());
    let thresholds = run.manifest()["calibration"]["thresholds"].clone();
    let threshold = |name: &str| number(&thresholds[name]) as f32;
    let rows = predicted(&fixture, &run, &[]);
    for row in &rows {
        let is_predicted = |name: &&str| number(&row[&format!("probability_{name}")]) as f32 >= threshold(name);
        let names: Vec<&str> = ["bad", "good"].into_iter().filter(is_predicted).collect();
        assert_eq!(row["predicted"], json!(names), "{row}");
    }
    let messages = failure_messages(fixture.sepal(&[
        "serve-task",
        folder(&run),
        "--listen",
        "127.0.0.1:0",
        "--abstain-below",
        "0.9",
    ]));
    assert!(messages.contains("one class per row"), "{messages}");
    let task = Task::start(&fixture, &run, &[]);
    task.until("ready");
    let texts: Vec<&Value> = rows.iter().map(|row| &row["sentence"]).collect();
    let (_, answer) = task.ask(&json!({ "texts": texts }), "");
    for (answer, row) in answer["predictions"].as_array().expect("predictions").iter().zip(&rows) {
        let is_near = |name: &str| (number(&answer["probabilities"][name]) - number(&thresholds[name])).abs() < 1e-5;
        assert!(["bad", "good"].into_iter().any(is_near) || answer["labels"] == row["predicted"], "{answer} {row}");
    }
}

#[test]
fn fits_that_cannot_be_made_are_refused_before_the_training() {
    let fixture = fixture();
    let text = fixture.failure(&["calibrate.temperature=true", "task.with.labels=[score]"]);
    assert!(text.contains("`calibrate.temperature`") && text.contains("one number per row"), "{text}");
    let text = fixture.failure(&["calibrate.thresholds=f1", "task.with.labels=[bad, good, other]"]);
    assert!(text.contains("`calibrate.thresholds`"), "{text}");
    let text = fixture.failure(&["calibrate.temperature=true", "evaluate.every=never"]);
    assert!(text.contains("calibrate") && text.contains("`evaluate.every`"), "{text}");
    assert!(!fixture.path("runs").exists(), "nothing was trained");
}
