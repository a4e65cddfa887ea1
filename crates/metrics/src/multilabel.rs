//! Measures for rows with any number of labels: `[rows][n_labels]`, true if the row has the label.
//!
//! All measures include each label, also one that occurs on neither side, as in scikit-learn.

use crate::counts::{Counts, averaged_scores};
use crate::{Average, MetricError, Scores, check_lengths, ranking};

/// Returns the share of rows with exactly the predicted labels (subset accuracy), from 0 to 1.
///
/// # Errors
/// [`MetricError`] if there is no row or no label, or the shapes differ.
pub fn exact_match(predicted: &[Vec<bool>], actual: &[Vec<bool>]) -> Result<f64, MetricError> {
    check(predicted, actual)?;
    let hits = predicted.iter().zip(actual).filter(|(p, a)| p == a).count();
    Ok(hits as f64 / actual.len() as f64)
}

/// Returns the share of wrong pairs of row and label, from 0 to 1; the accuracy over pairs is its complement.
///
/// # Errors
/// [`MetricError`] if there is no row or no label, or the shapes differ.
pub fn hamming_loss(predicted: &[Vec<bool>], actual: &[Vec<bool>]) -> Result<f64, MetricError> {
    let n_labels = check(predicted, actual)?;
    let misses = predicted.iter().flatten().zip(actual.iter().flatten()).filter(|(p, a)| p != a).count();
    Ok(misses as f64 / (actual.len() * n_labels) as f64)
}

/// Returns precision, recall and F1 of each label, `[n_labels]`.
///
/// # Errors
/// [`MetricError`] if there is no row or no label, or the shapes differ.
pub fn per_label(predicted: &[Vec<bool>], actual: &[Vec<bool>]) -> Result<Vec<Scores>, MetricError> {
    Ok(counts(predicted, actual)?.into_iter().map(Counts::scores).collect())
}

/// Returns precision, recall and F1 averaged over all labels, as in scikit-learn's `precision_recall_fscore_support`.
///
/// # Errors
/// [`MetricError`] if there is no row or no label, or the shapes differ.
pub fn averaged(predicted: &[Vec<bool>], actual: &[Vec<bool>], average: Average) -> Result<Scores, MetricError> {
    Ok(averaged_scores(&counts(predicted, actual)?, average))
}

/// Returns the mean over labels of [`binary_auroc`](crate::binary_auroc); none if a label belongs to no row or to all
/// rows.
///
/// `scores` is `[rows][n_labels]`: larger where the label is more likely.
///
/// # Errors
/// [`MetricError`] if there is no row or no label, the shapes differ, or a score is not finite.
pub fn auroc(scores: &[Vec<f64>], actual: &[Vec<bool>]) -> Result<Option<f64>, MetricError> {
    let n_labels = check(scores, actual)?;
    ranking::mean(0..n_labels, |label| {
        let scores: Vec<f64> = scores.iter().map(|row| row[label]).collect();
        let positive: Vec<bool> = actual.iter().map(|row| row[label]).collect();
        ranking::binary_auroc(&scores, &positive)
    })
}

fn counts(predicted: &[Vec<bool>], actual: &[Vec<bool>]) -> Result<Vec<Counts>, MetricError> {
    let mut labels = vec![Counts::default(); check(predicted, actual)?];
    for (p, a) in predicted.iter().zip(actual) {
        labels.iter_mut().zip(p.iter().zip(a)).for_each(|(label, (&p, &a))| label.add(p, a));
    }
    Ok(labels)
}

/// Checks the shapes, and returns the number of labels.
fn check<T>(predicted: &[Vec<T>], actual: &[Vec<bool>]) -> Result<usize, MetricError> {
    check_lengths(predicted.len(), actual.len())?;
    let expected = actual[0].len();
    let widths = predicted.iter().map(Vec::len).zip(actual.iter().map(Vec::len));
    for (row, (p, a)) in widths.enumerate() {
        if let Some(found) = [p, a].into_iter().find(|&found| found != expected) {
            return Err(MetricError::Width { row, expected, found });
        }
    }
    if expected == 0 { Err(MetricError::Empty) } else { Ok(expected) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[[u8; 3]]) -> Vec<Vec<bool>> {
        rows.iter().map(|row| row.map(|one| one == 1).to_vec()).collect()
    }

    #[test]
    fn measures_equal_manual_values() {
        let predicted = rows(&[[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]]);
        let actual = rows(&[[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]]);
        assert_eq!(exact_match(&predicted, &actual), Ok(0.25));
        assert_eq!(hamming_loss(&predicted, &actual), Ok(0.25));
        let f1: Vec<f64> = per_label(&predicted, &actual).expect("scores").iter().map(|label| label.f1).collect();
        assert_eq!(f1, [0.8, 0.0, 0.0]);
        let f1 = |how| averaged(&predicted, &actual, how).expect("scores").f1;
        assert!((f1(Average::Macro) - 0.8 / 3.0).abs() < 1e-12);
        assert!((f1(Average::Micro) - 4.0 / 7.0).abs() < 1e-12);
        assert!((f1(Average::Weighted) - 0.8 * 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn label_without_rows_has_no_area() {
        let scores = vec![vec![0.1, 0.2], vec![0.9, 0.1]];
        assert_eq!(auroc(&scores, &[vec![false, true], vec![true, false]]), Ok(Some(1.0)));
        assert_eq!(auroc(&scores, &[vec![false, false], vec![true, false]]), Ok(None));
    }

    #[test]
    fn different_shapes_are_errors() {
        let (one, two) = (vec![vec![true]], vec![vec![true, false]]);
        for metric in [exact_match, hamming_loss] {
            assert_eq!(metric(&[], &[]), Err(MetricError::Empty));
            assert_eq!(metric(&[vec![]], &[vec![]]), Err(MetricError::Empty));
            assert_eq!(metric(&one, &[]), Err(MetricError::Lengths { predicted: 1, actual: 0 }));
            assert_eq!(metric(&one, &two), Err(MetricError::Width { row: 0, expected: 2, found: 1 }));
        }
        assert!(matches!(auroc(&[vec![f64::NAN]], &one), Err(MetricError::NotFinite { row: 0 })));
    }
}
