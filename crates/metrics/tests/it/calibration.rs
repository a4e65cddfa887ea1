//! Cases of `calibration.json`, which lies beside the script that made it, and properties of fits.

use proptest::prelude::*;
use sepal_metrics::{
    TemperatureFit, best_f1_threshold, class_temperature, label_temperature, scaled_sigmoid, scaled_softmax,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Goldens {
    classes: Vec<Case<i64>>,
    labels: Vec<Case<Vec<bool>>>,
}

#[derive(Deserialize)]
struct Case<T> {
    name: String,
    logits: Vec<Vec<f64>>,
    actual: Vec<T>,
    temperature: f64,
    probabilities: Vec<Vec<f64>>,
    /// Threshold and F1 of the second of two classes, or of each label.
    thresholds: Vec<[f64; 2]>,
}

fn goldens() -> Goldens {
    serde_json::from_str(include_str!("../../../testkit/goldens/calibration.json")).expect("goldens")
}

/// Checks the temperature, and returns the probabilities with it.
fn check_temperature<T>(case: &Case<T>, fit: TemperatureFit, scaled: fn(&[f32], f64) -> Vec<f32>) -> Vec<Vec<f32>> {
    let TemperatureFit::Fitted(found) = fit else { panic!("{}: {fit:?}", case.name) };
    let far = (found / case.temperature - 1.0).abs();
    assert!(far < 1e-6, "{}: expected {}, found {found}", case.name, case.temperature);
    let rows: Vec<Vec<f32>> = case.logits.iter().map(|row| row.iter().map(|&logit| logit as f32).collect()).collect();
    let probabilities: Vec<Vec<f32>> = rows.iter().map(|row| scaled(row, found)).collect();
    for (found, expected) in probabilities.iter().flatten().zip(case.probabilities.iter().flatten()) {
        assert!((f64::from(*found) - expected).abs() < 1e-6, "{}: expected {expected}, found {found}", case.name);
    }
    probabilities
}

fn check_threshold(name: &str, scores: &[f32], positive: &[bool], [threshold, f1]: [f64; 2]) {
    let scores: Vec<f64> = scores.iter().map(|&score| f64::from(score)).collect();
    let found = best_f1_threshold(&scores, positive).expect("scores").expect("both kinds of rows");
    assert!((found.f1 - f1).abs() < 1e-12, "{name}: expected {f1}, found {found:?}");
    assert!((found.threshold - threshold).abs() < 1e-6, "{name}: expected {threshold}, found {found:?}");
}

#[test]
fn classes_equal_scikit_learn() {
    for case in goldens().classes {
        let fit = class_temperature(&case.logits, &case.actual).expect("logits");
        let probabilities = check_temperature(&case, fit, scaled_softmax);
        if let [expected] = case.thresholds[..] {
            let scores: Vec<f32> = probabilities.iter().map(|row| row[1]).collect();
            let positive: Vec<bool> = case.actual.iter().map(|&label| label == 1).collect();
            check_threshold(&case.name, &scores, &positive, expected);
        }
    }
}

#[test]
fn labels_equal_scikit_learn() {
    for case in goldens().labels {
        let fit = label_temperature(&case.logits, &case.actual).expect("logits");
        let probabilities = check_temperature(&case, fit, scaled_sigmoid);
        for (label, &expected) in case.thresholds.iter().enumerate() {
            let scores: Vec<f32> = probabilities.iter().map(|row| row[label]).collect();
            let positive: Vec<bool> = case.actual.iter().map(|row| row[label]).collect();
            check_threshold(&format!("{}, label {label}", case.name), &scores, &positive, expected);
        }
    }
}

/// Mean of `-ln softmax(logits * inverse)[label]`.
fn loss(logits: &[Vec<f64>], actual: &[i64], inverse: f64) -> f64 {
    let cost = |(row, &label): (&Vec<f64>, &i64)| {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|logit| (inverse * (logit - largest)).exp()).sum();
        sum.ln() - inverse * (row[label as usize] - largest)
    };
    logits.iter().zip(actual).map(cost).sum::<f64>() / actual.len() as f64
}

proptest! {
    #[test]
    fn no_other_temperature_has_a_smaller_loss(
        rows in prop::collection::vec((prop::array::uniform3(-8.0_f64..8.0), 0_i64..3), 1..40),
        factor in 0.2_f64..5.0,
    ) {
        let logits: Vec<Vec<f64>> = rows.iter().map(|(row, _)| row.to_vec()).collect();
        let actual: Vec<i64> = rows.iter().map(|(_, label)| *label).collect();
        match class_temperature(&logits, &actual).expect("finite logits") {
            TemperatureFit::Fitted(found) => {
                let best = loss(&logits, &actual, 1.0 / found);
                prop_assert!(best <= loss(&logits, &actual, factor / found) + 1e-9);
                // The derivative of the loss by the inverse temperature is zero.
                let step = 1e-4 / found;
                let (above, below) = (loss(&logits, &actual, 1.0 / found + step), loss(&logits, &actual, 1.0 / found - step));
                prop_assert!(((above - below) / (2.0 * step)).abs() < 1e-4 * found.max(1.0), "{} {}", above, below);
            }
            TemperatureFit::AllCorrect => {
                let is_right = |(row, &label): (&Vec<f64>, &i64)| row.iter().all(|logit| *logit <= row[label as usize]);
                prop_assert!(logits.iter().zip(&actual).all(is_right));
            }
            TemperatureFit::Uninformative => {
                prop_assert!(loss(&logits, &actual, 0.0) <= loss(&logits, &actual, factor) + 1e-9);
            }
        }
    }

    #[test]
    fn no_other_threshold_has_a_larger_f1(
        rows in prop::collection::vec((0_u8..12, any::<bool>()), 1..40),
    ) {
        let scores: Vec<f64> = rows.iter().map(|(twelfths, _)| f64::from(*twelfths) / 12.0).collect();
        let positive: Vec<bool> = rows.iter().map(|(_, positive)| *positive).collect();
        let f1 = |threshold: f64| {
            let predicted: Vec<i64> = scores.iter().map(|&score| i64::from(score >= threshold)).collect();
            let actual: Vec<i64> = positive.iter().map(|&positive| i64::from(positive)).collect();
            sepal_metrics::binary_f1(&predicted, &actual, 1).expect("an F1")
        };
        match best_f1_threshold(&scores, &positive).expect("finite scores") {
            Some(found) => {
                prop_assert!((f1(found.threshold) - found.f1).abs() < 1e-12);
                for &score in &scores {
                    let other = f1(score);
                    prop_assert!(other < found.f1 + 1e-12, "{} has {}", score, other);
                    prop_assert!(other < found.f1 - 1e-12 || score >= found.threshold, "{} is lower", score);
                }
            }
            None => prop_assert!(positive.iter().all(|&is_positive| is_positive == positive[0])),
        }
    }
}
