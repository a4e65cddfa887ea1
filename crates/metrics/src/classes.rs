use crate::counts::{Counts, averaged_scores, counts};
use crate::{Average, MetricError, Scores, check_classes, check_lengths, quotient};

/// Returns the share of rows whose prediction is the label: `hits / rows`, from 0 to 1.
///
/// # Errors
/// [`MetricError`] if there is no row or the lengths differ.
pub fn accuracy<T: PartialEq>(predicted: &[T], actual: &[T]) -> Result<f64, MetricError> {
    check_lengths(predicted.len(), actual.len())?;
    let hits = predicted.iter().zip(actual).filter(|(p, a)| p == a).count();
    Ok(hits as f64 / actual.len() as f64)
}

/// Returns the harmonic mean of precision and recall of the class `positive`: `2 tp / (2 tp + fp + fn)`, from 0 to 1.
///
/// It is 0 if `positive` is neither predicted nor a label.
///
/// # Errors
/// [`MetricError`] if there is no row or the lengths differ.
pub fn binary_f1(predicted: &[i64], actual: &[i64], positive: i64) -> Result<f64, MetricError> {
    check_lengths(predicted.len(), actual.len())?;
    Ok(counts(predicted, actual).get(&positive).map_or(0.0, |class| class.scores().f1))
}

/// Returns the unweighted mean of the F1 of each class that is predicted or a label (scikit-learn's
/// `f1_score(average="macro")`), from 0 to 1.
///
/// A class without hits counts as 0; a class that occurs on neither side is left out.
///
/// # Errors
/// [`MetricError`] if there is no row or the lengths differ.
pub fn macro_f1(predicted: &[i64], actual: &[i64]) -> Result<f64, MetricError> {
    Ok(averaged(predicted, actual, Average::Macro)?.f1)
}

/// Returns Matthews' correlation of predictions and labels, from -1 to 1.
///
/// For `s` rows, `c` hits, and class `k` predicted `p_k` times and a label `t_k` times:
/// `(c s - sum p_k t_k) / (sqrt(s² - sum p_k²) sqrt(s² - sum t_k²))` (Gorodkin 2004), which for two
/// classes is the usual `(tp tn - fp fn) / sqrt((tp + fp)(tp + fn)(tn + fp)(tn + fn))`.
///
/// It is 0 if either side has one class only, as in scikit-learn.
///
/// # Errors
/// [`MetricError`] if there is no row or the lengths differ.
pub fn matthews(predicted: &[i64], actual: &[i64]) -> Result<f64, MetricError> {
    check_lengths(predicted.len(), actual.len())?;
    let Sums { rows, hits, both, predictions, labels } = Sums::new(predicted, actual);
    let spread = (rows * rows - predictions) * (rows * rows - labels);
    Ok(quotient(hits * rows - both, spread.sqrt()))
}

/// Returns Cohen's kappa of predictions and labels, from -1 to 1: the agreement beyond the chance agreement of two
/// independent raters with the same class frequencies, `(agreement - chance) / (1 - chance)` (Cohen 1960).
///
/// It is 0 if both sides have one and the same class only, where scikit-learn returns NaN.
///
/// # Errors
/// [`MetricError`] if there is no row or the lengths differ.
pub fn cohen_kappa(predicted: &[i64], actual: &[i64]) -> Result<f64, MetricError> {
    check_lengths(predicted.len(), actual.len())?;
    let Sums { rows, hits, both, .. } = Sums::new(predicted, actual);
    Ok(quotient(hits * rows - both, rows * rows - both))
}

/// Returns the mean recall of the classes that are a label (scikit-learn's `balanced_accuracy_score`), from 0 to 1.
///
/// # Errors
/// [`MetricError`] if there is no row or the lengths differ.
pub fn balanced_accuracy(predicted: &[i64], actual: &[i64]) -> Result<f64, MetricError> {
    check_lengths(predicted.len(), actual.len())?;
    let labels: Vec<Counts> = counts(predicted, actual).into_values().filter(|class| class.actual > 0).collect();
    Ok(averaged_scores(&labels, Average::Macro).recall)
}

/// Returns precision, recall and F1 of each class, `[n_labels]`.
///
/// # Errors
/// [`MetricError`] if there is no row, the lengths differ, or a class is not in `0..n_labels`.
pub fn per_class(predicted: &[i64], actual: &[i64], n_labels: usize) -> Result<Vec<Scores>, MetricError> {
    check_both(predicted, actual, n_labels)?;
    let found = counts(predicted, actual);
    let scores = |class: usize| found.get(&(class as i64)).copied().unwrap_or_default().scores();
    Ok((0..n_labels).map(scores).collect())
}

/// Returns precision, recall and F1 averaged over all classes that are predicted or a label, as in scikit-learn's
/// `precision_recall_fscore_support`.
///
/// # Errors
/// [`MetricError`] if there is no row or the lengths differ.
pub fn averaged(predicted: &[i64], actual: &[i64], average: Average) -> Result<Scores, MetricError> {
    check_lengths(predicted.len(), actual.len())?;
    Ok(averaged_scores(&counts(predicted, actual).into_values().collect::<Vec<_>>(), average))
}

/// Returns the number of rows by class, `[actual][predicted]`, both `n_labels` long.
///
/// # Errors
/// [`MetricError`] if there is no row, the lengths differ, or a class is not in `0..n_labels`.
pub fn confusion(predicted: &[i64], actual: &[i64], n_labels: usize) -> Result<Vec<Vec<usize>>, MetricError> {
    check_both(predicted, actual, n_labels)?;
    let mut matrix = vec![vec![0; n_labels]; n_labels];
    for (&p, &a) in predicted.iter().zip(actual) {
        matrix[a as usize][p as usize] += 1;
    }
    Ok(matrix)
}

fn check_both(predicted: &[i64], actual: &[i64], n_labels: usize) -> Result<(), MetricError> {
    check_lengths(predicted.len(), actual.len())?;
    check_classes(predicted, n_labels)?;
    check_classes(actual, n_labels)
}

/// Sums for Matthews' correlation and Cohen's kappa.
struct Sums {
    rows: f64,
    hits: f64,
    /// Sums over classes: predicted times label, predicted squared, label squared.
    both: f64,
    predictions: f64,
    labels: f64,
}

impl Sums {
    fn new(predicted: &[i64], actual: &[i64]) -> Self {
        let mut sums = Self { rows: actual.len() as f64, hits: 0.0, both: 0.0, predictions: 0.0, labels: 0.0 };
        for class in counts(predicted, actual).values() {
            let (p, t) = (class.predicted as f64, class.actual as f64);
            sums.hits += class.hits as f64;
            sums.both += p * t;
            sums.predictions += p * p;
            sums.labels += t * t;
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::near;

    /// tp 4, fn 2, fp 1, tn 3 for class 1.
    const PREDICTED: [i64; 10] = [1, 1, 1, 1, 0, 0, 1, 0, 0, 0];
    const ACTUAL: [i64; 10] = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0];

    #[test]
    fn measures_of_two_classes() {
        near(accuracy(&PREDICTED, &ACTUAL), 0.7);
        near(binary_f1(&PREDICTED, &ACTUAL, 1), 8.0 / 11.0);
        near(binary_f1(&PREDICTED, &ACTUAL, 0), 6.0 / 9.0);
        near(macro_f1(&PREDICTED, &ACTUAL), (8.0 / 11.0 + 6.0 / 9.0) / 2.0);
        near(matthews(&PREDICTED, &ACTUAL), (4.0 * 3.0 - 1.0 * 2.0) / (5.0_f64 * 6.0 * 4.0 * 5.0).sqrt());
    }

    #[test]
    fn measures_of_three_classes() {
        let predicted = [0, 2, 1, 0, 0, 1];
        let actual = [0, 1, 2, 0, 1, 2];
        // Class 0: 2 hits of 3 predictions and 2 labels; classes 1 and 2: none.
        near(macro_f1(&predicted, &actual), (4.0 / 5.0) / 3.0);
        // c = 2, s = 6, sum p t = 3*2 + 2*2 + 1*2 = 12, sum p² = 14, sum t² = 12.
        near(matthews(&predicted, &actual), (2.0 * 6.0 - 12.0) / (22.0_f64 * 24.0).sqrt());
        near(matthews(&actual, &actual), 1.0);
        near(matthews(&[1, 0, 1, 0], &[0, 1, 0, 1]), -1.0);
    }

    #[test]
    fn zero_denominator_is_zero() {
        near(binary_f1(&[0, 0], &[0, 0], 1), 0.0);
        near(matthews(&[1, 1, 1], &[0, 1, 0]), 0.0);
        near(matthews(&[0, 1, 0], &[1, 1, 1]), 0.0);
        near(cohen_kappa(&[1, 1], &[1, 1]), 0.0);
        near(macro_f1(&[7, 7], &[7, 7]), 1.0);
    }

    #[test]
    fn per_class_scores_and_confusion() {
        let scores = per_class(&PREDICTED, &ACTUAL, 3).expect("scores");
        let [zero, one, two] = scores[..] else { panic!("not three") };
        assert_eq!(one, Scores { precision: 0.8, recall: 4.0 / 6.0, f1: 8.0 / 11.0, support: 6 });
        assert_eq!(zero, Scores { precision: 0.6, recall: 0.75, f1: 6.0 / 9.0, support: 4 });
        assert_eq!(two, Scores { precision: 0.0, recall: 0.0, f1: 0.0, support: 0 });
        assert_eq!(confusion(&PREDICTED, &ACTUAL, 3), Ok(vec![vec![3, 1, 0], vec![2, 4, 0], vec![0, 0, 0]]));
        near(balanced_accuracy(&PREDICTED, &ACTUAL), (4.0 / 6.0 + 0.75) / 2.0);
        // Agreement 0.7, chance 0.5 * 0.6 + 0.5 * 0.4.
        near(cohen_kappa(&PREDICTED, &ACTUAL), (0.7 - 0.5) / 0.5);
    }

    #[test]
    fn averaged_uses_weights() {
        let averaged = |how| averaged(&PREDICTED, &ACTUAL, how).map(|scores| scores.precision);
        near(averaged(Average::Macro), 0.7);
        near(averaged(Average::Weighted), 0.6 * 0.8 + 0.4 * 0.6);
        near(averaged(Average::Micro), 0.7);
    }

    #[test]
    fn class_out_of_range_is_error() {
        assert_eq!(per_class(&[0, 2], &[0, 1], 2), Err(MetricError::Class { row: 1, class: 2, n_labels: 2 }));
        assert_eq!(confusion(&[0], &[-1], 2), Err(MetricError::Class { row: 0, class: -1, n_labels: 2 }));
    }

    #[test]
    fn accuracy_compares_strings() {
        near(accuracy(&["a", "b"], &["a", "c"]), 0.5);
    }

    #[test]
    fn invalid_inputs_are_errors() {
        type Metric = fn(&[i64], &[i64]) -> Result<f64, MetricError>;
        let metrics: [Metric; 6] =
            [accuracy, macro_f1, matthews, cohen_kappa, balanced_accuracy, |p, a| binary_f1(p, a, 1)];
        for metric in metrics {
            assert_eq!(metric(&[], &[]), Err(MetricError::Empty));
            assert_eq!(metric(&[1], &[1, 0]), Err(MetricError::Lengths { predicted: 1, actual: 2 }));
            assert_eq!(metric(&[], &[0]), Err(MetricError::Lengths { predicted: 0, actual: 1 }));
        }
    }
}
