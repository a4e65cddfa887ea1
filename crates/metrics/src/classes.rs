use std::collections::BTreeMap;

use crate::{MetricError, check_lengths, quotient};

/// The share of rows whose prediction is the label: `hits / rows`, from 0 to 1.
///
/// # Errors
/// [`MetricError`] if there is no row or the lengths differ.
pub fn accuracy<T: PartialEq>(predicted: &[T], actual: &[T]) -> Result<f64, MetricError> {
    check_lengths(predicted.len(), actual.len())?;
    let hits = predicted.iter().zip(actual).filter(|(p, a)| p == a).count();
    Ok(hits as f64 / actual.len() as f64)
}

/// The harmonic mean of precision and recall of the class `positive`:
/// `2 tp / (2 tp + fp + fn)`, from 0 to 1.
///
/// It is 0 if `positive` is neither predicted nor a label.
///
/// # Errors
/// [`MetricError`] if there is no row or the lengths differ.
pub fn binary_f1(predicted: &[i64], actual: &[i64], positive: i64) -> Result<f64, MetricError> {
    check_lengths(predicted.len(), actual.len())?;
    Ok(counts(predicted, actual).get(&positive).map_or(0.0, Counts::f1))
}

/// The plain mean of the F1 of each class that is predicted or a label (scikit-learn's
/// `f1_score(average="macro")`), from 0 to 1.
///
/// A class that is never hit counts as 0; one that occurs on neither side does not count.
///
/// # Errors
/// [`MetricError`] if there is no row or the lengths differ.
pub fn macro_f1(predicted: &[i64], actual: &[i64]) -> Result<f64, MetricError> {
    check_lengths(predicted.len(), actual.len())?;
    let classes = counts(predicted, actual);
    Ok(classes.values().map(Counts::f1).sum::<f64>() / classes.len() as f64)
}

/// Matthews' correlation of predictions and labels, from -1 to 1.
///
/// For `s` rows, `c` hits, and class `k` predicted `p_k` times and a label `t_k` times:
/// `(c s - sum p_k t_k) / (sqrt(s² - sum p_k²) sqrt(s² - sum t_k²))` (Gorodkin 2004), which for two
/// classes is the usual `(tp tn - fp fn) / sqrt((tp + fp)(tp + fn)(tn + fp)(tn + fn))`.
///
/// It is 0 if either side knows one class only, as in scikit-learn.
///
/// # Errors
/// [`MetricError`] if there is no row or the lengths differ.
pub fn matthews(predicted: &[i64], actual: &[i64]) -> Result<f64, MetricError> {
    check_lengths(predicted.len(), actual.len())?;
    let rows = actual.len() as f64;
    let (mut hits, mut both, mut predictions, mut labels) = (0.0, 0.0, 0.0, 0.0);
    for class in counts(predicted, actual).values() {
        let (p, t) = (class.predicted as f64, class.actual as f64);
        hits += class.hits as f64;
        both += p * t;
        predictions += p * p;
        labels += t * t;
    }
    let spread = (rows * rows - predictions) * (rows * rows - labels);
    Ok(quotient(hits * rows - both, spread.sqrt()))
}

/// How often one class occurs.
#[derive(Default)]
struct Counts {
    predicted: usize,
    actual: usize,
    hits: usize,
}

impl Counts {
    /// `2 tp / (predicted + actual)`; a class that was counted occurs at least once.
    fn f1(&self) -> f64 {
        2.0 * self.hits as f64 / (self.predicted + self.actual) as f64
    }
}

/// Counts of each class that occurs.
fn counts(predicted: &[i64], actual: &[i64]) -> BTreeMap<i64, Counts> {
    let mut classes: BTreeMap<i64, Counts> = BTreeMap::new();
    for (&p, &a) in predicted.iter().zip(actual) {
        classes.entry(p).or_default().predicted += 1;
        let label = classes.entry(a).or_default();
        label.actual += 1;
        label.hits += usize::from(p == a);
    }
    classes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(found: Result<f64, MetricError>, expected: f64) {
        let found = found.expect("a measure");
        assert!((found - expected).abs() < 1e-12, "expected {expected}, found {found}");
    }

    /// tp 4, fn 2, fp 1, tn 3 for class 1.
    const PREDICTED: [i64; 10] = [1, 1, 1, 1, 0, 0, 1, 0, 0, 0];
    const ACTUAL: [i64; 10] = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0];

    #[test]
    fn two_classes() {
        check(accuracy(&PREDICTED, &ACTUAL), 0.7);
        check(binary_f1(&PREDICTED, &ACTUAL, 1), 8.0 / 11.0);
        check(binary_f1(&PREDICTED, &ACTUAL, 0), 6.0 / 9.0);
        check(macro_f1(&PREDICTED, &ACTUAL), (8.0 / 11.0 + 6.0 / 9.0) / 2.0);
        check(matthews(&PREDICTED, &ACTUAL), (4.0 * 3.0 - 1.0 * 2.0) / (5.0_f64 * 6.0 * 4.0 * 5.0).sqrt());
    }

    #[test]
    fn three_classes() {
        let predicted = [0, 2, 1, 0, 0, 1];
        let actual = [0, 1, 2, 0, 1, 2];
        // Class 0: 2 hits of 3 predictions and 2 labels; classes 1 and 2: none.
        check(macro_f1(&predicted, &actual), (4.0 / 5.0) / 3.0);
        // c = 2, s = 6, sum p t = 3*2 + 2*2 + 1*2 = 12, sum p² = 14, sum t² = 12.
        check(matthews(&predicted, &actual), (2.0 * 6.0 - 12.0) / (22.0_f64 * 24.0).sqrt());
        check(matthews(&actual, &actual), 1.0);
        check(matthews(&[1, 0, 1, 0], &[0, 1, 0, 1]), -1.0);
    }

    #[test]
    fn nothing_divided_is_zero() {
        check(binary_f1(&[0, 0], &[0, 0], 1), 0.0);
        check(matthews(&[1, 1, 1], &[0, 1, 0]), 0.0);
        check(matthews(&[0, 1, 0], &[1, 1, 1]), 0.0);
        check(macro_f1(&[7, 7], &[7, 7]), 1.0);
    }

    #[test]
    fn words_are_compared_too() {
        check(accuracy(&["a", "b"], &["a", "c"]), 0.5);
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        type Metric = fn(&[i64], &[i64]) -> Result<f64, MetricError>;
        let metrics: [Metric; 4] = [accuracy, macro_f1, matthews, |p, a| binary_f1(p, a, 1)];
        for metric in metrics {
            assert_eq!(metric(&[], &[]), Err(MetricError::Empty));
            assert_eq!(metric(&[1], &[1, 0]), Err(MetricError::Lengths { predicted: 1, actual: 2 }));
            assert_eq!(metric(&[], &[0]), Err(MetricError::Lengths { predicted: 0, actual: 1 }));
        }
    }
}
