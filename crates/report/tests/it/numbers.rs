//! Numbers of a page.

use std::collections::BTreeMap;

use sepal_data::Labels;
use sepal_report::{Run, compare, report};
use sepal_track::Calibration;

use crate::fixture::{self, Rows, RunFixture, evaluation, manifest, pipeline, server, steps};
use crate::{parse, row, run, texts};

/// Four rows of three classes: a, a, b, c, predicted a, b, b, a.
fn small() -> RunFixture {
    let probabilities: Vec<Vec<f32>> =
        vec![vec![0.8, 0.1, 0.1], vec![0.25, 0.72, 0.03], vec![0.2, 0.6, 0.2], vec![0.95, 0.03, 0.02]];
    let names = ["a", "b", "c"].map(str::to_owned).to_vec();
    let rows = Rows {
        texts: ["first", "second", "third", "fourth"].map(str::to_owned).to_vec(),
        pairs: None,
        labels: Labels::Class(vec![0, 0, 1, 2]),
        class: vec![0, 1, 1, 0],
        logits: probabilities.clone(),
        probabilities,
        names: names.clone(),
    };
    let mut manifest = manifest("small");
    manifest.steps = 20;
    manifest.metrics = [("accuracy".to_owned(), 0.5), ("f1".to_owned(), 0.3889)].into();
    let first = evaluation(10, 4, 1.5, &[("accuracy", 0.75), ("f1", 0.2)]);
    let evaluations = vec![first, evaluation(20, 4, 1.25, &[("accuracy", 0.5), ("f1", 0.3889)])];
    let pipeline = pipeline("small", &names);
    RunFixture { manifest, pipeline, steps: steps(20, 4), evaluations, predictions: Some(rows) }
}

#[test]
fn calibration_is_shown_with_measures_before_and_after() {
    let mut fixture = small();
    let measures = |ece: f64| BTreeMap::from([("ece".to_owned(), ece), ("log_loss".to_owned(), 2.0 * ece)]);
    fixture.manifest.calibration = Some(Calibration {
        temperature: Some(1.5),
        thresholds: [("b".to_owned(), 0.25)].into(),
        data: "rows.csv".to_owned(),
        rows: 4,
        before: measures(0.25),
        after: measures(0.125),
    });
    let html = parse(&report(&run("calibrated", &fixture)));
    let caption = "Calibrated on 4 rows of rows.csv: temperature 1.5000, b from 0.2500";
    assert!(texts(&html, "caption").iter().any(|found| found == caption), "{:?}", texts(&html, "caption"));
    assert_eq!(row(&html, caption, "Calibration error"), ["Calibration error", "0.2500", "0.1250"]);
}

#[test]
fn class_numbers() {
    let html = parse(&report(&run("small", &small())));
    assert_eq!(row(&html, "Each class", "a"), ["a", "0.5000", "0.5000", "0.5000", "2"]);
    assert_eq!(row(&html, "Each class", "b"), ["b", "0.5000", "1.0000", "0.6667", "1"]);
    assert_eq!(row(&html, "Each class", "c"), ["c", "–", "0.0000", "0.0000", "1"]);
    assert_eq!(row(&html, "Each class", "mean of all")[1..], ["0.3333", "0.5000", "0.3889", "4"]);
    assert_eq!(row(&html, "Each class", "mean by rows")[1..], ["0.3750", "0.5000", "0.4167", "4"]);
    assert_eq!(row(&html, "Rows of each true class", "a"), ["a", "150.0 %", "150.0 %", "00.0 %", "2"]);
    assert_eq!(row(&html, "Rows of each true class", "c"), ["c", "1100.0 %", "00.0 %", "00.0 %", "1"]);
    // |0 - 0.95| + |1 - 0.8| + |0 - 0.72| + |1 - 0.6|, over four rows in bins of their own.
    assert_eq!(texts(&html, "figure.square figcaption span"), ["expected calibration error 0.5675"]);
    assert_eq!(row(&html, "Bins of probability", "93–100 %")[1..], ["1", "95.0 %", "0.0 %"]);
    // Empty bins at both ends are left out, those between are not.
    let bins = texts(&html, "tbody th").into_iter().filter(|first| first.contains('–') && first.ends_with('%'));
    assert_eq!(bins.collect::<Vec<_>>(), ["60–67 %", "67–73 %", "73–80 %", "80–87 %", "87–93 %", "93–100 %"]);
    let mistakes = texts(&html, ".mistakes > li .text");
    assert_eq!(mistakes, ["fourth", "second"]);
    let facts = ["labelled", "predicted", "probability", "of the label", "validation row"];
    assert_eq!(texts(&html, ".mistakes > li:first-child dt"), facts);
    assert_eq!(texts(&html, ".mistakes > li:first-child dd"), ["c", "a", "95.0 %", "2.0 %", "4"]);
}

#[test]
fn metrics_and_headline_numbers() {
    let mut made = small();
    let html = parse(&report(&run("small", &made)));
    assert_eq!(texts(&html, ".main b"), ["50.00 %"]);
    assert_eq!(texts(&html, ".main span"), ["Accuracy, last, after step 20"]);
    assert_eq!(row(&html, "2 evaluations", "Accuracy"), ["Accuracy", "75.00 %", "75.00 %", "10", "50.00 %"]);
    assert_eq!(row(&html, "2 evaluations", "Loss"), ["Loss", "1.5000", "1.2500", "20", "1.2500"]);
    made.manifest.best = Some(sepal_track::BestEvaluation { step: 10, metric: "accuracy".into(), value: 0.75 });
    let html = parse(&report(&run("small", &made)));
    assert_eq!(texts(&html, ".main b"), ["75.00 %"]);
    assert_eq!(texts(&html, ".main span"), ["Accuracy, best, after step 10"]);
    let facts = texts(&html, ".facts b");
    assert_eq!(facts, ["11:51", "20", "286,818", "401", "1.03 GB", "355 MB"]);
}

#[test]
fn clipped_steps_are_counted() {
    let made = small();
    let clipped = made.steps.iter().filter(|step| step.grad_norm > 1.0).count();
    assert!(clipped > 0 && clipped < 20);
    let html = parse(&report(&run("small", &made)));
    assert!(texts(&html, "figcaption span").contains(&format!("clipped in {clipped} of 20 steps")));
}

#[test]
fn value_numbers() {
    let mut made = fixture::scores();
    let rows = made.predictions.as_mut().expect("rows");
    rows.texts = ["p", "q", "r"].map(str::to_owned).to_vec();
    rows.pairs = Some(["s", "t", "u"].map(str::to_owned).to_vec());
    rows.labels = Labels::Value(vec![0.0, 2.0, 4.0]);
    rows.logits = vec![vec![1.0], vec![2.0], vec![2.0]];
    (rows.class, rows.probabilities) = (vec![0; 3], vec![vec![1.0]; 3]);
    let html = parse(&report(&run("values", &made)));
    let measure = |name: &str| row(&html, "Predicted numbers", name)[1].clone();
    assert_eq!((measure("Mean absolute error"), measure("Mean error")), ("1.000".into(), "−0.3333".into()));
    assert_eq!((measure("Root mean squared error"), measure("R²")), ("1.291".into(), "0.3750".into()));
    assert_eq!(measure("Pearson's correlation"), "0.8660");
    assert_eq!(texts(&html, ".cloud circle").len(), 3);
    assert_eq!(texts(&html, ".mistakes > li:first-child .text"), ["r", "u"]);
    assert_eq!(texts(&html, ".mistakes > li:first-child dd"), ["4.000", "2.000", "−2.000", "3"]);
}

#[test]
fn label_numbers() {
    let mut made = fixture::tags();
    let rows = made.predictions.as_mut().expect("rows");
    rows.texts = ["p", "q"].map(str::to_owned).to_vec();
    rows.names = ["x", "y"].map(str::to_owned).to_vec();
    made.manifest.labels = rows.names.clone();
    rows.labels = Labels::Multi(vec![vec![1.0, 0.0], vec![1.0, 1.0]]);
    rows.probabilities = vec![vec![0.9, 0.75], vec![0.125, 0.5]];
    (rows.logits, rows.class) = (rows.probabilities.clone(), vec![0; 2]);
    let html = parse(&report(&run("tags", &made)));
    assert_eq!(row(&html, "Each label; 0.00 % of rows", "x"), ["x", "1.0000", "0.5000", "0.6667", "2"]);
    assert_eq!(row(&html, "Each label", "y"), ["y", "0.5000", "1.0000", "0.6667", "1"]);
    assert_eq!(texts(&html, ".mistakes > li:first-child dt"), ["missed", "its probability", "validation row"]);
    assert_eq!(texts(&html, ".mistakes > li:first-child dd"), ["x", "12.5 %", "2"]);
    assert_eq!(texts(&html, ".mistakes > li:last-child dd"), ["y", "75.0 %", "1"]);
    assert!(texts(&html, "figcaption span").contains(&"4 steps skipped".to_owned()));
}

#[test]
fn compare_shows_runs_in_columns() {
    let (one, mut other) = (small(), small());
    other.manifest.metrics.insert("accuracy".into(), 0.25);
    other.pipeline = other.pipeline.replace("lr: 0.003", "lr: 0.01");
    let html = parse(&compare(&[run("one", &one), run("other", &other)]));
    assert_eq!(texts(&html, "#runs thead th"), ["Run", "one", "other"]);
    assert_eq!(row(&html, "Metrics", "Outcome")[1..], ["✓ finished", "✓ finished"]);
    assert_eq!(row(&html, "Metrics", "Accuracy")[1..], ["★ 50.00 %", "25.00 %"]);
    assert_eq!(row(&html, "Metrics", "F1")[1..], ["0.3889", "0.3889"]);
    assert_eq!(texts(&html, "#options tbody th"), ["optimizer.with.lr"]);
    assert_eq!(row(&html, "Options", "optimizer.with.lr")[1..], ["0.003", "0.01"]);
    // Too many runs for columns have a row each.
    let many: Vec<Run> = (0..7).map(|i| run(&format!("run-{i}"), &one)).collect();
    let html = parse(&compare(&many));
    assert_eq!(row(&html, "Metrics", "run-6")[1..4], ["✓ finished", "50.00 %", "0.3889"]);
}

#[test]
fn compare_option_map_is_shown_once() {
    let (mut one, mut other) = (small(), small());
    one.pipeline += "evaluate:\n  every: null\n";
    other.pipeline += "evaluate:\n  every:\n    steps: 20\n";
    let html = parse(&compare(&[run("one", &one), run("other", &other)]));
    assert_eq!(texts(&html, "#options tbody th"), ["evaluate.every.steps"]);
    assert_eq!(row(&html, "Options", "evaluate.every.steps")[1..], ["none", "20"]);
}

#[test]
fn compare_leaves_out_copies_of_accuracy() {
    let with_micro = |micro: f64| {
        let mut made = small();
        made.evaluations.iter_mut().for_each(|one| _ = one.metrics.insert("f1_micro".into(), one.metrics["accuracy"]));
        made.manifest.metrics.extend([("f1_micro".to_owned(), micro), ("f1/a".to_owned(), 0.5)]);
        texts(&parse(&compare(&[run("one", &made), run("two", &small())])), "#curves figcaption b").join("; ")
    };
    assert_eq!(with_micro(0.5), "Training loss; Training accuracy, %; Loss; Accuracy, %; F1");
    assert_eq!(with_micro(0.6), "Training loss; Training accuracy, %; Loss; Accuracy, %; F1; F1 micro");
}

#[test]
fn in_process_traffic_is_not_called_sent() {
    let mut made = small();
    made.manifest.servers = vec![server("embedded", "0:30", 9, 0)];
    let html = parse(&report(&run("here", &made)));
    assert!(texts(&html, ".facts span").contains(&"to the blocks, in this process".to_owned()));
    assert!(texts(&html, "#servers p")[0].contains("none over a network"));
    made.manifest.servers.push(server("10.0.0.5:4000", "0:30", 9, 0));
    let html = parse(&report(&run("there", &made)));
    assert!(texts(&html, ".facts span").contains(&"sent to servers".to_owned()));
}
