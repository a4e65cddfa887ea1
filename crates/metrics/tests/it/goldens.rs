//! Cases of `metrics.json`, which lies beside the script that made it.

use std::collections::BTreeMap;

use sepal_metrics::{self as metrics, Average, Scores, multilabel};
use serde::Deserialize;
use serde_json::{Value, json};

const NEAR: f64 = 1e-9;

#[derive(Deserialize)]
struct Goldens {
    classes: Vec<Classes>,
    rankings: Vec<Ranking>,
    values: Vec<Values>,
    several: Vec<Several>,
}

#[derive(Deserialize)]
struct Classes {
    name: String,
    predicted: Vec<i64>,
    actual: Vec<i64>,
    probabilities: Vec<Vec<f64>>,
    expected: BTreeMap<String, Value>,
    calibration: Vec<Calibrated>,
}

#[derive(Deserialize)]
struct Calibrated {
    n_bins: usize,
    error: f64,
    bins: Vec<[f64; 3]>,
}

#[derive(Deserialize)]
struct Ranking {
    name: String,
    scores: Vec<f64>,
    positive: Vec<bool>,
    expected: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Values {
    name: String,
    predicted: Vec<f64>,
    actual: Vec<f64>,
    expected: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Several {
    name: String,
    scores: Vec<Vec<f64>>,
    predicted: Vec<Vec<bool>>,
    actual: Vec<Vec<bool>>,
    expected: BTreeMap<String, Value>,
}

fn goldens() -> Goldens {
    serde_json::from_str(include_str!("../../../testkit/goldens/metrics.json")).expect("goldens")
}

/// Checks that exactly the expected values are found.
fn check(case: &str, expected: &BTreeMap<String, Value>, found: &Value) {
    let found = found.as_object().expect("names and values");
    assert_eq!(expected.len(), found.len(), "{case}: {:?} {:?}", expected.keys(), found.keys());
    for (name, expected) in expected {
        near(&format!("{case}: {name}"), expected, &found[name]);
    }
}

fn near(what: &str, expected: &Value, found: &Value) {
    match (expected, found) {
        (Value::Array(expected), Value::Array(found)) => {
            assert_eq!(expected.len(), found.len(), "{what}");
            expected.iter().zip(found).for_each(|(expected, found)| near(what, expected, found));
        }
        (Value::Number(expected), Value::Number(found)) => {
            let (expected, found) = (expected.as_f64().expect("a number"), found.as_f64().expect("a number"));
            let far = (expected - found).abs() / expected.abs().max(1.0);
            assert!(far < NEAR, "{what}: expected {expected}, found {found}");
        }
        _ => assert_eq!(expected, found, "{what}"),
    }
}

/// SciPy and scikit-learn return NaN for zero by zero, which is null here; this crate returns 0.
fn nan_is(instead: f64, expected: &mut BTreeMap<String, Value>, names: &[&str]) {
    for name in names {
        let value = expected.get_mut(*name).expect("a metric");
        if value.is_null() {
            *value = json!(instead);
        }
    }
}

fn columns(scores: &[Scores]) -> Value {
    let column = |of: fn(&Scores) -> f64| scores.iter().map(of).collect::<Vec<_>>();
    json!([column(|s| s.precision), column(|s| s.recall), column(|s| s.f1)])
}

fn support(scores: &[Scores]) -> Vec<usize> {
    scores.iter().map(|scores| scores.support).collect()
}

fn three(scores: Scores) -> Value {
    json!([scores.precision, scores.recall, scores.f1])
}

#[test]
fn classes_equal_scikit_learn() {
    for mut case in goldens().classes {
        nan_is(0.0, &mut case.expected, &["kappa"]);
        check(&case.name, &case.expected, &class_values(&case).expect("measures"));
    }
}

fn class_values(case: &Classes) -> Result<Value, metrics::MetricError> {
    let Classes { predicted, actual, probabilities, .. } = case;
    let n_labels = probabilities[0].len();
    let per_class = metrics::per_class(predicted, actual, n_labels)?;
    let averaged = |how| metrics::averaged(predicted, actual, how).map(three);
    assert!(
        (metrics::macro_f1(predicted, actual)? - metrics::averaged(predicted, actual, Average::Macro)?.f1).abs() < NEAR
    );
    assert!((metrics::binary_f1(predicted, actual, 1)? - per_class[1].f1).abs() < NEAR);
    let area_of_second = match n_labels {
        2 => {
            let (scores, positive): (Vec<f64>, Vec<bool>) =
                probabilities.iter().zip(actual).map(|(row, &label)| (row[1], label == 1)).unzip();
            metrics::average_precision(&scores, &positive)?
        }
        _ => None,
    };
    let top_k = (1..=3).map(|k| metrics::top_k_accuracy(probabilities, actual, k)).collect::<Result<Vec<_>, _>>()?;
    Ok(json!({
        "accuracy": metrics::accuracy(predicted, actual)?,
        "balanced_accuracy": metrics::balanced_accuracy(predicted, actual)?,
        "mcc": metrics::matthews(predicted, actual)?,
        "kappa": metrics::cohen_kappa(predicted, actual)?,
        "confusion": metrics::confusion(predicted, actual, n_labels)?,
        "per_class": columns(&per_class),
        "support": support(&per_class),
        "macro": averaged(Average::Macro)?,
        "micro": averaged(Average::Micro)?,
        "weighted": averaged(Average::Weighted)?,
        "auroc": metrics::auroc(probabilities, actual)?,
        "average_precision": area_of_second,
        "brier": metrics::brier(probabilities, actual)?,
        "log_loss": metrics::log_loss(probabilities, actual)?,
        "top_k": top_k,
    }))
}

#[test]
fn calibration_equals_scikit_learn() {
    let mut compared = 0;
    for case in goldens().classes {
        for Calibrated { n_bins, error, bins } in case.calibration {
            let found = metrics::calibration(&case.probabilities, &case.actual, n_bins).expect("a calibration");
            let what = format!("{} in {n_bins} bins", case.name);
            near(&what, &json!(error), &json!(found.error));
            let found: Vec<_> = found.bins.iter().map(|bin| (bin.count as f64, bin.confidence, bin.accuracy)).collect();
            near(&what, &json!(bins), &json!(found));
            compared += 1;
        }
    }
    assert!(compared >= 40, "only {compared} calibrations");
}

#[test]
fn areas_equal_scikit_learn() {
    for case in goldens().rankings {
        let found = json!({
            "auroc": metrics::binary_auroc(&case.scores, &case.positive).expect("an area"),
            "average_precision": metrics::average_precision(&case.scores, &case.positive).expect("an area"),
        });
        check(&case.name, &case.expected, &found);
    }
}

#[test]
fn values_equal_scikit_learn_and_scipy() {
    for mut case in goldens().values {
        nan_is(0.0, &mut case.expected, &["pearson", "spearman"]);
        let value = |metric: fn(&[f64], &[f64]) -> Result<f64, metrics::MetricError>| {
            metric(&case.predicted, &case.actual).expect("a measure")
        };
        let found = json!({
            "mse": value(metrics::mean_squared_error),
            "rmse": value(metrics::root_mean_squared_error),
            "mae": value(metrics::mean_absolute_error),
            "r2": value(metrics::r2),
            "pearson": value(metrics::pearson),
            "spearman": value(metrics::spearman),
        });
        check(&case.name, &case.expected, &found);
    }
}

#[test]
fn multilabel_equals_scikit_learn() {
    for case in goldens().several {
        check(&case.name, &case.expected, &label_values(&case).expect("measures"));
    }
}

fn label_values(case: &Several) -> Result<Value, metrics::MetricError> {
    let Several { scores, predicted, actual, .. } = case;
    let per_label = multilabel::per_label(predicted, actual)?;
    let averaged = |how| multilabel::averaged(predicted, actual, how).map(three);
    Ok(json!({
        "exact_match": multilabel::exact_match(predicted, actual)?,
        "hamming_loss": multilabel::hamming_loss(predicted, actual)?,
        "per_label": columns(&per_label),
        "support": support(&per_label),
        "auroc": multilabel::auroc(scores, actual)?,
        "macro": averaged(Average::Macro)?,
        "micro": averaged(Average::Micro)?,
        "weighted": averaged(Average::Weighted)?,
    }))
}
