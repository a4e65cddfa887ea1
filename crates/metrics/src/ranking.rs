use crate::probabilities::check_probabilities;
use crate::values::ranks;
use crate::{MetricError, check_lengths};

/// Returns the area under the receiver operating characteristic, from 0 to 1: the probability that a positive row has a
/// larger score than a negative one, equal scores counting one half (the Mann-Whitney statistic by its rank sum).
///
/// It is none, as it is undefined, if no row is positive or none is negative.
///
/// ```
/// let area = sepal_metrics::binary_auroc(&[0.9, 0.4, 0.6, 0.4], &[true, true, false, false])?;
/// assert_eq!(area, Some((1.0 + 1.0 + 0.0 + 0.5) / 4.0));
/// # Ok::<(), sepal_metrics::MetricError>(())
/// ```
///
/// # Errors
/// [`MetricError`] if there is no row, the lengths differ, or a score is not finite.
pub fn binary_auroc(scores: &[f64], positive: &[bool]) -> Result<Option<f64>, MetricError> {
    check(scores, positive)?;
    let positives = positive.iter().filter(|&&positive| positive).count() as f64;
    let negatives = positive.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 {
        return Ok(None);
    }
    let of_positives: f64 = ranks(scores).iter().zip(positive).filter(|(_, p)| **p).map(|(rank, _)| rank).sum();
    Ok(Some((of_positives - positives * (positives + 1.0) / 2.0) / (positives * negatives)))
}

/// Returns [`binary_auroc`] of the probabilities `[rows][n_labels]`: of the second one of two classes, otherwise the
/// mean over classes of each against the others (scikit-learn's `roc_auc_score(multi_class="ovr", average="macro")`).
///
/// It is none if a class is the label of no row or of all rows.
///
/// # Errors
/// [`MetricError`] if there is no row, the lengths differ, a class is out of range, or a number is not a probability.
pub fn auroc(probabilities: &[Vec<f64>], actual: &[i64]) -> Result<Option<f64>, MetricError> {
    let n_labels = check_probabilities(probabilities, actual)?;
    let classes = if n_labels == 2 { 1..2 } else { 0..n_labels };
    mean(classes, |class| {
        let scores: Vec<f64> = probabilities.iter().map(|row| row[class]).collect();
        let positive: Vec<bool> = actual.iter().map(|&label| label == class as i64).collect();
        binary_auroc(&scores, &positive)
    })
}

/// Returns the area under precision over recall as a sum of steps, from 0 to 1: over falling thresholds, `sum (recall_i
/// - recall_(i-1)) precision_i`, rows of equal scores making one step (scikit-learn's `average_precision_score`).
///
/// It is none if no row is positive, where scikit-learn returns 0.
///
/// # Errors
/// [`MetricError`] if there is no row, the lengths differ, or a score is not finite.
pub fn average_precision(scores: &[f64], positive: &[bool]) -> Result<Option<f64>, MetricError> {
    check(scores, positive)?;
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]));
    let (mut rows, mut hits, mut sum) = (0, 0, 0.0);
    for ties in order.chunk_by(|&i, &j| scores[i] == scores[j]) {
        let found = ties.iter().filter(|&&row| positive[row]).count();
        rows += ties.len();
        hits += found;
        sum += found as f64 * hits as f64 / rows as f64;
    }
    Ok((hits > 0).then(|| sum / hits as f64))
}

/// Mean of areas; none if one of them is none.
pub(crate) fn mean(
    classes: impl ExactSizeIterator<Item = usize>,
    area: impl Fn(usize) -> Result<Option<f64>, MetricError>,
) -> Result<Option<f64>, MetricError> {
    let n_classes = classes.len() as f64;
    let areas = classes.map(area).collect::<Result<Option<Vec<f64>>, _>>()?;
    Ok(areas.map(|areas| areas.iter().sum::<f64>() / n_classes))
}

fn check(scores: &[f64], positive: &[bool]) -> Result<(), MetricError> {
    check_lengths(scores.len(), positive.len())?;
    match scores.iter().position(|score| !score.is_finite()) {
        Some(row) => Err(MetricError::NotFinite { row }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_equal_manual_values() {
        let positive = [true, false, true, false];
        assert_eq!(binary_auroc(&[0.8, 0.7, 0.6, 0.5], &positive), Ok(Some(0.75)));
        assert_eq!(average_precision(&[0.8, 0.7, 0.6, 0.5], &positive), Ok(Some((1.0 + 2.0 / 3.0) / 2.0)));
        assert_eq!(binary_auroc(&[0.5; 4], &positive), Ok(Some(0.5)));
        assert_eq!(average_precision(&[0.0, -0.0, 0.0, 0.0], &positive), Ok(Some(0.5)));
    }

    #[test]
    fn missing_class_has_no_area() {
        assert_eq!(binary_auroc(&[0.1, 0.2], &[true, true]), Ok(None));
        assert_eq!(binary_auroc(&[0.1, 0.2], &[false, false]), Ok(None));
        assert_eq!(average_precision(&[0.1, 0.2], &[false, false]), Ok(None));
        assert_eq!(average_precision(&[0.1, 0.2], &[true, true]), Ok(Some(1.0)));
        assert_eq!(auroc(&[vec![0.2, 0.3, 0.5], vec![0.5, 0.3, 0.2]], &[0, 1]), Ok(None));
        assert_eq!(auroc(&[vec![1.0], vec![1.0]], &[0, 0]), Ok(None));
    }

    #[test]
    fn invalid_scores_are_errors() {
        for metric in [binary_auroc, average_precision] {
            assert_eq!(metric(&[], &[]), Err(MetricError::Empty));
            assert_eq!(metric(&[0.1], &[true, false]), Err(MetricError::Lengths { predicted: 1, actual: 2 }));
            assert_eq!(metric(&[0.1, f64::NAN], &[true, false]), Err(MetricError::NotFinite { row: 1 }));
        }
    }
}
