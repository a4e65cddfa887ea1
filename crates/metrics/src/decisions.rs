//! Decisions by the probability of a prediction: thresholds, and predictions that are left out.

use crate::{MetricError, check_lengths, quotient};

/// Threshold with its F1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    /// Least score of a positive decision.
    pub threshold: f64,
    /// F1 of the decisions.
    pub f1: f64,
}

/// Returns the threshold with the largest F1 among the scores, `[rows]`: a row is positive if its score is at least the
/// threshold. Of thresholds with equal F1 it is the lowest one, as the first maximum over the thresholds of scikit-learn's
/// `precision_recall_curve`.
///
/// It is none if no row is positive or none is negative, as every threshold or none would be right.
///
/// ```
/// let found = sepal_metrics::best_f1_threshold(&[0.2, 0.3, 0.4], &[false, true, true])?;
/// assert_eq!(found.map(|found| (found.threshold, found.f1)), Some((0.3, 1.0)));
/// # Ok::<(), sepal_metrics::MetricError>(())
/// ```
///
/// # Errors
/// [`MetricError`] if there is no row, the lengths differ, or a score is not finite.
pub fn best_f1_threshold(scores: &[f64], positive: &[bool]) -> Result<Option<Threshold>, MetricError> {
    check_lengths(scores.len(), positive.len())?;
    if let Some(row) = scores.iter().position(|score| !score.is_finite()) {
        return Err(MetricError::NotFinite { row });
    }
    let n_positive = positive.iter().filter(|&&positive| positive).count();
    if n_positive == 0 || n_positive == positive.len() {
        return Ok(None);
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]));
    let mut best: Option<Threshold> = None;
    let (mut n_predicted, mut hits) = (0, 0);
    for ties in order.chunk_by(|&i, &j| scores[i] == scores[j]) {
        n_predicted += ties.len();
        hits += ties.iter().filter(|&&row| positive[row]).count();
        let f1 = 2.0 * hits as f64 / (n_predicted + n_positive) as f64;
        if best.is_none_or(|best| f1 >= best.f1) {
            best = Some(Threshold { threshold: scores[ties[0]], f1 });
        }
    }
    Ok(best)
}

/// Predictions of at least some confidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Covered {
    /// Share of such predictions.
    pub coverage: f64,
    /// Share of them that is right; none without such predictions.
    pub accuracy: Option<f64>,
}

/// Returns the share of predictions with a confidence of at least `threshold`, and the accuracy among them. Both lists are
/// `[rows]`.
///
/// # Errors
/// [`MetricError`] if there is no row, or the lengths differ.
pub fn covered(confidences: &[f64], correct: &[bool], threshold: f64) -> Result<Covered, MetricError> {
    check_lengths(confidences.len(), correct.len())?;
    let outcomes = || confidences.iter().zip(correct).filter(|(confidence, _)| **confidence >= threshold);
    let n_covered = outcomes().count();
    let n_correct = outcomes().filter(|(_, correct)| **correct).count();
    let accuracy = (n_covered > 0).then(|| quotient(n_correct as f64, n_covered as f64));
    Ok(Covered { coverage: n_covered as f64 / correct.len() as f64, accuracy })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowest_of_equal_thresholds_is_best() {
        // F1 of the thresholds from above: 2/3, 2/4, 4/5 and 4/6.
        let found = best_f1_threshold(&[0.9, 0.5, 0.7, 0.1], &[true, true, false, false]).expect("scores");
        assert_eq!(found, Some(Threshold { threshold: 0.5, f1: 0.8 }));
        let found = best_f1_threshold(&[0.9, 0.8, 0.7, 0.6], &[true, false, false, true]).expect("scores");
        assert_eq!(found, Some(Threshold { threshold: 0.6, f1: 4.0 / 6.0 }));
        let found = best_f1_threshold(&[0.5, 0.5, 0.5], &[true, true, false]).expect("scores");
        assert_eq!(found, Some(Threshold { threshold: 0.5, f1: 0.8 }), "equal scores are one decision");
    }

    #[test]
    fn one_kind_of_rows_has_no_threshold() {
        assert_eq!(best_f1_threshold(&[0.9, 0.5], &[true, true]), Ok(None));
        assert_eq!(best_f1_threshold(&[0.9, 0.5], &[false, false]), Ok(None));
        assert_eq!(best_f1_threshold(&[], &[]), Err(MetricError::Empty));
        assert_eq!(best_f1_threshold(&[0.9, f64::NAN], &[true, false]), Err(MetricError::NotFinite { row: 1 }));
    }

    #[test]
    fn uncovered_rows_do_not_count() {
        let (confidences, correct) = ([0.9, 0.6, 0.55, 0.8], [true, false, true, false]);
        let found = covered(&confidences, &correct, 0.6).expect("rows");
        assert_eq!(found, Covered { coverage: 0.75, accuracy: Some(1.0 / 3.0) });
        let found = covered(&confidences, &correct, 0.95).expect("rows");
        assert_eq!(found, Covered { coverage: 0.0, accuracy: None });
        assert_eq!(covered(&[0.5], &[], 0.5), Err(MetricError::Lengths { predicted: 1, actual: 0 }));
    }
}
