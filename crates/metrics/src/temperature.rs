//! Temperature scaling of logits.

use crate::{MetricError, check_classes, check_lengths};

/// Natural logarithm of the largest inverse temperature; its negation belongs to the smallest one. The limits are those of
/// scikit-learn.
const MAX_LOG_INVERSE: f64 = 10.0;

/// Result of fitting a temperature.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TemperatureFit {
    /// Temperature with the smallest loss.
    Fitted(f64),
    /// Each label has the largest logit, so that the loss falls as the temperature approaches 0.
    AllCorrect,
    /// The logits say no more about the labels than chance, so that the loss falls as the temperature grows.
    Uninformative,
}

/// Fits the temperature `T` that makes the mean of `-ln softmax(logits / T)[label]` smallest (Guo et al. 2017, "On
/// Calibration of Modern Neural Networks"; scikit-learn's `CalibratedClassifierCV(method="temperature")`).
///
/// The loss is convex in `1 / T`. Bisection finds the zero of its derivative between `e^-10` and `e^10`, so that equal
/// inputs have equal results. `logits` is `[rows][n_labels]`.
///
/// # Errors
/// [`MetricError`] if there is no row, the lengths differ, a class is out of range, or a logit is not finite.
pub fn class_temperature(logits: &[Vec<f64>], actual: &[i64]) -> Result<TemperatureFit, MetricError> {
    check_lengths(logits.len(), actual.len())?;
    let n_labels = check_logits(logits)?;
    check_classes(actual, n_labels)?;
    Ok(fit(|inverse| {
        let slopes = logits.iter().zip(actual).map(|(row, &label)| expected(row, inverse) - row[label as usize]);
        slopes.sum()
    }))
}

/// Fits the temperature `T` that makes the mean binary cross entropy of `sigmoid(logits / T)` smallest, over all pairs of row
/// and label. Both are `[rows][n_labels]`.
///
/// # Errors
/// [`MetricError`] if there is no row, the lengths differ, or a logit is not finite.
pub fn label_temperature(logits: &[Vec<f64>], actual: &[Vec<bool>]) -> Result<TemperatureFit, MetricError> {
    check_lengths(logits.len(), actual.len())?;
    let n_labels = check_logits(logits)?;
    if let Some(row) = actual.iter().position(|labels| labels.len() != n_labels) {
        return Err(MetricError::Width { row, expected: n_labels, found: actual[row].len() });
    }
    let pairs = || logits.iter().flatten().zip(actual.iter().flatten());
    Ok(fit(|inverse| {
        let slopes =
            pairs().map(|(&logit, &is_label)| logit * (sigmoid(inverse * logit) - f64::from(u8::from(is_label))));
        slopes.sum()
    }))
}

/// Returns `softmax(logits / temperature)` in double precision.
pub fn scaled_softmax(logits: &[f32], temperature: f64) -> Vec<f32> {
    let scaled: Vec<f64> = logits.iter().map(|&logit| f64::from(logit) / temperature).collect();
    let largest = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = scaled.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| (power / sum) as f32).collect()
}

/// Returns `sigmoid(logits / temperature)` in double precision.
pub fn scaled_sigmoid(logits: &[f32], temperature: f64) -> Vec<f32> {
    logits.iter().map(|&logit| sigmoid(f64::from(logit) / temperature) as f32).collect()
}

fn sigmoid(logit: f64) -> f64 {
    1.0 / (1.0 + (-logit).exp())
}

/// Mean of the logits, weighted by their probabilities at this inverse temperature.
fn expected(logits: &[f64], inverse: f64) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let power = |logit: f64| (inverse * (logit - largest)).exp();
    let sum: f64 = logits.iter().map(|&logit| power(logit)).sum();
    logits.iter().map(|&logit| logit * power(logit)).sum::<f64>() / sum
}

/// Finds the zero of the loss's derivative by the inverse temperature, which never falls.
fn fit(derivative: impl Fn(f64) -> f64) -> TemperatureFit {
    let (mut low, mut high) = (-MAX_LOG_INVERSE, MAX_LOG_INVERSE);
    if derivative(low.exp()) >= 0.0 {
        return TemperatureFit::Uninformative;
    }
    if derivative(high.exp()) <= 0.0 {
        return TemperatureFit::AllCorrect;
    }
    loop {
        let middle = low + (high - low) / 2.0;
        if middle <= low || middle >= high {
            return TemperatureFit::Fitted((-middle).exp());
        }
        if derivative(middle.exp()) < 0.0 {
            low = middle;
        } else {
            high = middle;
        }
    }
}

fn check_logits(logits: &[Vec<f64>]) -> Result<usize, MetricError> {
    let n_labels = logits.first().map_or(0, Vec::len);
    for (row, values) in logits.iter().enumerate() {
        if values.len() != n_labels {
            return Err(MetricError::Width { row, expected: n_labels, found: values.len() });
        }
        if values.iter().any(|value| !value.is_finite()) {
            return Err(MetricError::NotFinite { row });
        }
    }
    Ok(n_labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temperature_makes_probabilities_as_frequent_as_labels() {
        // Three of four rows have the label of the larger logit, so that its probability becomes 3/4: 2 / T = ln 3.
        let logits = vec![vec![2.0, 0.0]; 4];
        let Ok(TemperatureFit::Fitted(found)) = class_temperature(&logits, &[0, 0, 0, 1]) else { panic!("a fit") };
        assert!((found - 2.0 / 3.0_f64.ln()).abs() < 1e-12, "{found}");
        let logits = vec![vec![2.0, -2.0]; 4];
        let actual = [vec![true, false], vec![true, true], vec![true, false], vec![false, false]];
        let Ok(TemperatureFit::Fitted(found)) = label_temperature(&logits, &actual) else { panic!("a fit") };
        assert!((found - 2.0 / 3.0_f64.ln()).abs() < 1e-12, "{found}");
    }

    #[test]
    fn rows_without_a_best_temperature_have_a_reason() {
        let logits = [vec![2.0, 0.0], vec![0.0, 1.0]];
        assert_eq!(class_temperature(&logits, &[0, 1]), Ok(TemperatureFit::AllCorrect));
        assert_eq!(class_temperature(&logits, &[1, 0]), Ok(TemperatureFit::Uninformative));
        assert_eq!(class_temperature(&[vec![1.0, 1.0]], &[0]), Ok(TemperatureFit::Uninformative), "equal logits");
        assert_eq!(label_temperature(&[vec![1.0, -1.0]], &[vec![true, false]]), Ok(TemperatureFit::AllCorrect));
    }

    #[test]
    fn invalid_logits_are_errors() {
        assert_eq!(class_temperature(&[], &[]), Err(MetricError::Empty));
        assert_eq!(class_temperature(&[vec![0.0, f64::NAN]], &[0]), Err(MetricError::NotFinite { row: 0 }));
        let error = MetricError::Class { row: 0, class: 2, n_labels: 2 };
        assert_eq!(class_temperature(&[vec![0.0, 1.0]], &[2]), Err(error));
        let error = MetricError::Width { row: 0, expected: 1, found: 2 };
        assert_eq!(label_temperature(&[vec![0.0]], &[vec![true, true]]), Err(error));
    }

    #[test]
    fn scaled_probabilities_divide_the_logits() {
        let found = scaled_softmax(&[0.0, 2.0 * 3.0_f32.ln()], 2.0);
        assert!((found[1] - 0.75).abs() < 1e-6 && (found[0] - 0.25).abs() < 1e-6, "{found:?}");
        let found = scaled_sigmoid(&[2.0 * 3.0_f32.ln(), 0.0], 2.0);
        assert!((found[0] - 0.75).abs() < 1e-6 && found[1] == 0.5, "{found:?}");
        assert_eq!(scaled_softmax(&[1e30, -1e30], 1e-4), [1.0, 0.0]);
    }
}
