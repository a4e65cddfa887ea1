use crate::{MetricError, check_classes, check_lengths, quotient};

/// Rounding tolerance of probabilities outside of 0 to 1.
const SLACK: f64 = 1e-6;

/// Returns the mean of `-ln p`, where `p` is the probability of the row's label: from 0, in nats.
///
/// Probabilities are clamped away from 0 and 1 by the rounding of fp64, as in scikit-learn, so one row costs at most
/// 36.04. `probabilities` is `[rows][n_labels]`; its rows should sum to 1, which is not checked.
///
/// # Errors
/// [`MetricError`] if there is no row, the lengths differ, a class is out of range, or a number is not a probability.
pub fn log_loss(probabilities: &[Vec<f64>], actual: &[i64]) -> Result<f64, MetricError> {
    check_probabilities(probabilities, actual)?;
    let cost = |(row, &label): (&Vec<f64>, &i64)| -row[label as usize].clamp(f64::EPSILON, 1.0 - f64::EPSILON).ln();
    Ok(probabilities.iter().zip(actual).map(cost).sum::<f64>() / actual.len() as f64)
}

/// Returns the mean squared distance of probabilities and labels (Brier 1950; scikit-learn's `brier_score_loss`).
///
/// For two classes `(p - y)²` of the second one, from 0 to 1; for several `sum over classes (p - y)²`, from 0 to 2.
/// `probabilities` is `[rows][n_labels]`.
///
/// # Errors
/// [`MetricError`] if there is no row, the lengths differ, a class is out of range, or a number is not a probability.
pub fn brier(probabilities: &[Vec<f64>], actual: &[i64]) -> Result<f64, MetricError> {
    let n_labels = check_probabilities(probabilities, actual)?;
    let skipped = usize::from(n_labels == 2);
    let distance = |(row, &label): (&Vec<f64>, &i64)| {
        let squares = row.iter().enumerate().map(|(class, p)| (p - f64::from(class as i64 == label)).powi(2));
        squares.skip(skipped).sum::<f64>()
    };
    Ok(probabilities.iter().zip(actual).map(distance).sum::<f64>() / actual.len() as f64)
}

/// Returns the share of rows whose label is among the `k` most probable, from 0 to 1.
///
/// Of equally probable classes the first ranks higher. (scikit-learn's `top_k_accuracy_score` ranks the last one higher
/// for more than two classes.) `probabilities` is `[rows][n_labels]`.
///
/// # Errors
/// [`MetricError`] if there is no row, the lengths differ, a class is out of range, or a number is not a probability.
pub fn top_k_accuracy(probabilities: &[Vec<f64>], actual: &[i64], k: usize) -> Result<f64, MetricError> {
    check_probabilities(probabilities, actual)?;
    let hit = |&(row, &label): &(&Vec<f64>, &i64)| {
        let label = label as usize;
        let before = |class: usize, p: f64| p > row[label] || (p == row[label] && class < label);
        row.iter().enumerate().filter(|&(class, &p)| before(class, p)).count() < k
    };
    Ok(probabilities.iter().zip(actual).filter(hit).count() as f64 / actual.len() as f64)
}

/// Number of bins of the reported `ece`.
pub const CALIBRATION_BINS: usize = 15;

/// Difference between the probability of the predicted class and its accuracy.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// Expected calibration error, from 0 to 1: mean of `|accuracy - confidence|` over bins, weighted by their rows.
    pub error: f64,
    /// Equal intervals of 0 to 1 in order, for a reliability diagram.
    pub bins: Vec<Bin>,
}

/// Rows whose largest probability lies in one interval.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bin {
    /// Number of rows.
    pub count: usize,
    /// Mean of their largest probabilities; 0 without rows.
    pub confidence: f64,
    /// Share of them whose most probable class is the label; 0 without rows.
    pub accuracy: f64,
}

/// Returns the expected calibration error and its bins (Guo et al. 2017, "On Calibration of Modern Neural Networks").
///
/// Bin `i` of `n_bins` holds the rows whose largest probability is in `(i / n_bins, (i + 1) / n_bins]`, and the first
/// one 0 too. Of equally probable classes the first counts as predicted. `probabilities` is `[rows][n_labels]`; 10 and
/// 15 bins are usual, and at least one is made.
///
/// # Errors
/// [`MetricError`] if there is no row, the lengths differ, a class is out of range, or a number is not a probability.
pub fn calibration(probabilities: &[Vec<f64>], actual: &[i64], n_bins: usize) -> Result<Calibration, MetricError> {
    check_probabilities(probabilities, actual)?;
    let rows = probabilities.iter().zip(actual).map(|(row, &label)| {
        let (class, confidence) = top(row);
        (confidence, class as i64 == label)
    });
    reliability(rows, n_bins)
}

/// Same as [`calibration`], for predictions given as a probability and its outcome.
///
/// # Errors
/// [`MetricError`] if there is no prediction, or a number is not a probability.
pub fn reliability(
    predictions: impl IntoIterator<Item = (f64, bool)>,
    n_bins: usize,
) -> Result<Calibration, MetricError> {
    let edges = edges(n_bins);
    let mut sums = vec![(0, 0.0, 0_usize); edges.len() + 1];
    let mut all = 0;
    for (row, (confidence, hit)) in predictions.into_iter().enumerate() {
        if !(-SLACK..=1.0 + SLACK).contains(&confidence) {
            return Err(MetricError::NotProbability { row, value: confidence });
        }
        let bin = &mut sums[edges.partition_point(|&edge| edge < confidence)];
        *bin = (bin.0 + 1, bin.1 + confidence, bin.2 + usize::from(hit));
        all += 1;
    }
    check_lengths(all, all)?;
    let bins: Vec<Bin> = sums.into_iter().map(|(count, confidence, hits)| bin(count, confidence, hits)).collect();
    let gap = |bin: &Bin| bin.count as f64 * (bin.accuracy - bin.confidence).abs();
    let error = bins.iter().map(gap).sum::<f64>() / all as f64;
    Ok(Calibration { error, bins })
}

fn bin(count: usize, confidence: f64, hits: usize) -> Bin {
    let rows = count as f64;
    Bin { count, confidence: quotient(confidence, rows), accuracy: quotient(hits as f64, rows) }
}

/// Inner edges of the bins, rounded like NumPy's `linspace`.
fn edges(n_bins: usize) -> Vec<f64> {
    let step = 1.0 / n_bins.max(1) as f64;
    (1..n_bins.max(1)).map(|edge| edge as f64 * step).collect()
}

/// First of the most probable classes, and its probability.
fn top(row: &[f64]) -> (usize, f64) {
    let larger = |best: (usize, f64), next: (usize, f64)| if next.1 > best.1 { next } else { best };
    row.iter().copied().enumerate().reduce(larger).unwrap_or_default()
}

/// Checks probabilities and labels, and returns the number of classes.
pub(crate) fn check_probabilities(probabilities: &[Vec<f64>], actual: &[i64]) -> Result<usize, MetricError> {
    check_lengths(probabilities.len(), actual.len())?;
    let n_labels = probabilities[0].len();
    for (row, values) in probabilities.iter().enumerate() {
        if values.len() != n_labels {
            return Err(MetricError::Width { row, expected: n_labels, found: values.len() });
        }
        if values.iter().any(|value| !value.is_finite()) {
            return Err(MetricError::NotFinite { row });
        }
        if let Some(&value) = values.iter().find(|value| !(-SLACK..=1.0 + SLACK).contains(*value)) {
            return Err(MetricError::NotProbability { row, value });
        }
    }
    check_classes(actual, n_labels)?;
    Ok(n_labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::near;

    fn rows() -> Vec<Vec<f64>> {
        vec![vec![0.2, 0.8], vec![0.5, 0.5], vec![1.0, 0.0]]
    }

    #[test]
    fn measures_equal_manual_values() {
        near(log_loss(&rows(), &[1, 0, 0]), -(0.8_f64.ln() + 0.5_f64.ln()) / 3.0);
        near(log_loss(&rows()[2..], &[1]), -f64::EPSILON.ln());
        near(brier(&rows(), &[1, 0, 1]), (0.04 + 0.25 + 1.0) / 3.0);
        near(brier(&[vec![0.5, 0.25, 0.25]], &[0]), 0.25 + 0.0625 + 0.0625);
        near(top_k_accuracy(&rows(), &[1, 1, 0], 1), 2.0 / 3.0);
        near(top_k_accuracy(&rows(), &[0, 1, 1], 2), 1.0);
        near(top_k_accuracy(&rows(), &[1, 0, 0], 0), 0.0);
    }

    #[test]
    fn calibration_edge_belongs_to_lower_bin() {
        let found = calibration(&rows(), &[1, 1, 0], 2).expect("a calibration");
        let below = Bin { count: 1, confidence: 0.5, accuracy: 0.0 };
        let above = Bin { count: 2, confidence: 0.9, accuracy: 1.0 };
        assert_eq!(found.bins, [below, above]);
        assert!((found.error - (0.5 + 2.0 * 0.1) / 3.0).abs() < 1e-12);
        assert_eq!(calibration(&rows(), &[1, 1, 0], 0).expect("a calibration").bins.len(), 1);
    }

    #[test]
    fn invalid_probabilities_are_errors() {
        type Metric = fn(&[Vec<f64>], &[i64]) -> Result<f64, MetricError>;
        let metrics: [Metric; 4] =
            [log_loss, brier, |p, a| top_k_accuracy(p, a, 1), |p, a| calibration(p, a, 10).map(|found| found.error)];
        for metric in metrics {
            assert_eq!(metric(&[], &[]), Err(MetricError::Empty));
            assert_eq!(metric(&rows(), &[0]), Err(MetricError::Lengths { predicted: 3, actual: 1 }));
            assert_eq!(metric(&rows(), &[0, 1, 2]), Err(MetricError::Class { row: 2, class: 2, n_labels: 2 }));
            let ragged = [vec![0.5, 0.5], vec![1.0]];
            assert_eq!(metric(&ragged, &[0, 0]), Err(MetricError::Width { row: 1, expected: 2, found: 1 }));
            assert_eq!(metric(&[vec![f64::NAN, 0.5]], &[0]), Err(MetricError::NotFinite { row: 0 }));
            assert_eq!(metric(&[vec![1.5, 0.5]], &[0]), Err(MetricError::NotProbability { row: 0, value: 1.5 }));
            assert!(metric(&[vec![1.000_000_1, 0.0]], &[0]).is_ok(), "rounding is no mistake");
        }
    }
}
