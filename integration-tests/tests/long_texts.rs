//! Texts that are longer than the limit of tokens, divided into windows.

use std::fs::{self, File};

use arrow::array::AsArray;
use arrow::datatypes::Float32Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sepal_integration_tests::fixture::{Fixture, Run, failure_messages, stdout};
use serde_json::json;

use crate::serve_task::Task;

/// Ten words with a token each.
const LONG: &str = "the film was a plot and the cast is warm";
/// Its windows of four words that share one word: each begins three words later, and the last one ends with the text.
const WINDOWS: [&str; 3] = ["the film was a", "a plot and the", "the cast is warm"];

/// Logits of texts, `[rows][n_labels]`.
fn logits(fixture: &Fixture, run: &Run, texts: &[&str]) -> Vec<Vec<f32>> {
    let rows: String = texts.iter().map(|text| format!("{text},0\n")).collect();
    fs::write(fixture.path("texts.csv"), format!("sentence,label\n{rows}")).expect("written");
    let folder = run.folder.to_str().expect("a path");
    stdout(fixture.sepal(&["evaluate", folder, "--data", "texts.csv", "--predictions", "logits.parquet"]));
    let file = File::open(fixture.path("logits.parquet")).expect("predictions");
    let batches = ParquetRecordBatchReaderBuilder::try_new(file).expect("parquet").build().expect("a reader");
    let mut logits = Vec::new();
    for batch in batches {
        let batch = batch.expect("rows");
        let column = batch.column_by_name("logits").expect("logits").as_fixed_size_list().clone();
        logits
            .extend((0..batch.num_rows()).map(|row| column.value(row).as_primitive::<Float32Type>().values().to_vec()));
    }
    logits
}

fn trained(pool: &str) -> (Fixture, Run) {
    let fixture = Fixture::new("llama-gqa");
    let windows = format!("data.long_texts={{windows: {{stride: 1, pool: {pool}}}}}");
    let run = fixture.run(&["data.max_length=4", &windows, "train.max_steps=20"]);
    (fixture, run)
}

#[test]
fn logits_of_a_long_text_are_those_of_its_windows_pooled() {
    for pool in ["mean", "max"] {
        let (fixture, run) = trained(pool);
        let found = logits(&fixture, &run, &[&[LONG][..], &WINDOWS].concat());
        assert_eq!(found.len(), 4, "a row for each text");
        assert_ne!(found[1], found[3], "windows differ");
        for label in 0..2 {
            let windows = [found[1][label], found[2][label], found[3][label]];
            let expected = match pool {
                "mean" => windows.iter().sum::<f32>() / 3.0,
                _ => windows.into_iter().fold(f32::NEG_INFINITY, f32::max),
            };
            assert!((found[0][label] - expected).abs() < 1e-4, "{pool}: expected {expected}, found {found:?}");
        }
    }
}

#[test]
fn texts_in_windows_are_counted_once_and_served_as_predicted() {
    let (fixture, run) = trained("mean");
    let manifest = run.manifest();
    assert_eq!((&manifest["data"]["validation_rows"], &manifest["data"]["truncated_rows"]), (&json!(48), &json!(0)));
    let description = manifest["data"]["long_texts"].as_str().expect("a description");
    assert_eq!(description, "windows that share 1 tokens, and the mean of their logits");
    assert_eq!(run.records("evaluation")[0]["rows"], 48);
    let text = stdout(fixture.sepal(&[
        "evaluate",
        run.folder.to_str().expect("a path"),
        "--data",
        "validation.csv",
        "--json",
    ]));
    let found: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert!((found["metrics"]["accuracy"].as_f64().expect("one") - run.accuracy()).abs() < 1e-9, "{found}");

    let logits = logits(&fixture, &run, &[LONG]).remove(0);
    let expected = 1.0 / (1.0 + f64::from(logits[0] - logits[1]).exp());
    let task = Task::start(&fixture, &run, &[]);
    task.until("ready");
    let (status, answer) = task.ask(&json!({ "text": LONG }), "");
    let good = answer["predictions"][0]["probabilities"]["good"].as_f64();
    assert!(status == 200 && (good.expect("a probability") - expected).abs() < 1e-5, "{answer}");
}

#[test]
fn served_text_of_too_many_windows_is_refused() {
    let (fixture, run) = trained("mean");
    let task = Task::start(&fixture, &run, &["--set", "data.long_texts.windows.max_windows=20"]);
    task.until("ready");
    let endless = [LONG; 10].join(" ");
    let (status, answer) = task.ask(&json!({ "texts": ["warm", endless] }), "");
    assert_eq!(status, 422, "{answer}");
    assert!(answer["detail"].as_str().is_some_and(|detail| detail.contains("at most 20 are computed")), "{answer}");
    assert_eq!(task.ask(&json!({ "texts": ["warm", LONG] }), "").0, 200);
}

#[test]
fn text_of_too_many_windows_is_named_by_its_row_in_the_file() {
    let (fixture, run) = trained("mean");
    let folder = run.folder.to_str().expect("a path");
    // The long text is in the second chunk of rows.
    let short = "warm,1\n".repeat(1500);
    fs::write(fixture.path("long.csv"), format!("sentence,label\n{short}{LONG},1\n")).expect("written");
    let few = ["--set", "data.long_texts.windows.max_windows=2"];
    for args in [
        &["predict", folder, "--input", "long.csv", "--output", "out.csv"][..],
        &["evaluate", folder, "--data", "long.csv"],
    ] {
        let text = failure_messages(fixture.sepal(&[args, &few].concat()));
        assert!(text.contains("tokenize row 1501 of long.csv") && text.contains("at most 2 are made"), "{text}");
        assert_eq!(text.matches("row ").count(), 1, "the row is named once: {text}");
    }
    assert!(!fixture.path("out.csv").exists());
}

#[test]
fn windows_that_cannot_be_made_are_refused() {
    let fixture = Fixture::new("llama-gqa");
    let text = fixture.failure(&["data.long_texts={windows: {stride: 16}}"]);
    assert!(text.contains("data.long_texts.windows.stride") && text.contains("`data.max_length` (16)"), "{text}");
    let text = fixture.failure(&["data.long_texts=pieces"]);
    assert!(text.contains("long_texts") && text.contains("windows"), "{text}");
    // The template leaves room for two tokens of a text.
    let narrow = ["data.max_length=4", "data.long_texts={windows: {stride: 3}}", "data.template=a {text} was"];
    let text = fixture.failure(&narrow);
    assert!(text.contains("share 3 tokens") && text.contains("room for 2 tokens"), "{text}");
    let few = ["data.max_length=4", "data.long_texts={windows: {stride: 1, max_windows: 2}}"];
    fs::write(fixture.path("validation.csv"), format!("sentence,label\n{LONG},1\n")).expect("written");
    let text = fixture.failure(&few);
    assert!(text.contains("at most 2 are made") && text.contains("`data.long_texts.windows.max_windows`"), "{text}");
    assert!(
        text.contains("tokenize row ") && text.contains(" of train.csv\n") && text.matches("row ").count() == 1,
        "{text}"
    );
    let pipeline = fs::read_to_string(fixture.path("pipeline.yaml")).expect("a pipeline file");
    let task = "task: { use: sequence-classification, with: { labels: [bad, good] } }";
    assert!(pipeline.contains(task), "{pipeline}");
    fs::write(fixture.path("pipeline.yaml"), pipeline.replace(task, "task: { use: causal-lm }")).expect("written");
    let text = fixture.failure(&["data.long_texts=windows"]);
    assert!(text.contains("`data.long_texts`") && text.contains("one text per row"), "{text}");
}
