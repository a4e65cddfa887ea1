use crate::{MetricError, check_lengths, quotient};

/// Returns the mean of `(predicted - actual)²`.
///
/// # Errors
/// [`MetricError`] if there is no row, the lengths differ, or a number is not finite.
pub fn mean_squared_error(predicted: &[f64], actual: &[f64]) -> Result<f64, MetricError> {
    check(predicted, actual)?;
    Ok(squared(predicted, actual) / actual.len() as f64)
}

/// Returns the root of [`mean_squared_error`], in the unit of the labels.
///
/// # Errors
/// [`MetricError`] if there is no row, the lengths differ, or a number is not finite.
pub fn root_mean_squared_error(predicted: &[f64], actual: &[f64]) -> Result<f64, MetricError> {
    mean_squared_error(predicted, actual).map(f64::sqrt)
}

/// Returns the mean of `|predicted - actual|`, in the unit of the labels.
///
/// # Errors
/// [`MetricError`] if there is no row, the lengths differ, or a number is not finite.
pub fn mean_absolute_error(predicted: &[f64], actual: &[f64]) -> Result<f64, MetricError> {
    check(predicted, actual)?;
    Ok(predicted.iter().zip(actual).map(|(p, a)| (p - a).abs()).sum::<f64>() / actual.len() as f64)
}

/// Returns the share of the labels' variance that the predictions explain, at most 1: `1 - sum (a - p)² / sum (a - mean
/// a)²`. It is negative if the mean of the labels predicts better.
///
/// For equal labels (also for a single row) it is 1 if each prediction is right and 0 otherwise, as in scikit-learn,
/// which returns NaN for a single row.
///
/// # Errors
/// [`MetricError`] if there is no row, the lengths differ, or a number is not finite.
pub fn r2(predicted: &[f64], actual: &[f64]) -> Result<f64, MetricError> {
    check(predicted, actual)?;
    let (residual, total) = (squared(predicted, actual), deviations(actual).iter().map(|d| d * d).sum::<f64>());
    Ok(match (residual == 0.0, total == 0.0) {
        (true, _) => 1.0,
        (false, true) => 0.0,
        (false, false) => 1.0 - residual / total,
    })
}

/// Returns Pearson's correlation, from -1 to 1: `sum dp da / sqrt(sum dp² sum da²)`, where `dp` and `da` are the
/// differences from the means.
///
/// It is 0 if either side is constant (also for a single row), where SciPy returns NaN.
///
/// # Errors
/// [`MetricError`] if there is no row, the lengths differ, or a number is not finite.
pub fn pearson(predicted: &[f64], actual: &[f64]) -> Result<f64, MetricError> {
    check(predicted, actual)?;
    let (p, a) = (deviations(predicted), deviations(actual));
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    Ok(quotient(dot(&p, &a), dot(&p, &p).sqrt() * dot(&a, &a).sqrt()).clamp(-1.0, 1.0))
}

/// Returns Spearman's correlation, from -1 to 1: [`pearson`] of the ranks, where equal numbers share the mean of their
/// ranks.
///
/// It is 0 if either side is constant.
///
/// # Errors
/// [`MetricError`] if there is no row, the lengths differ, or a number is not finite.
pub fn spearman(predicted: &[f64], actual: &[f64]) -> Result<f64, MetricError> {
    check(predicted, actual)?;
    pearson(&ranks(predicted), &ranks(actual))
}

fn squared(predicted: &[f64], actual: &[f64]) -> f64 {
    predicted.iter().zip(actual).map(|(p, a)| (p - a).powi(2)).sum()
}

fn check(predicted: &[f64], actual: &[f64]) -> Result<(), MetricError> {
    check_lengths(predicted.len(), actual.len())?;
    match predicted.iter().zip(actual).position(|(p, a)| !(p.is_finite() && a.is_finite())) {
        Some(row) => Err(MetricError::NotFinite { row }),
        None => Ok(()),
    }
}

/// Differences from the mean; exactly zero for equal values, regardless of rounding.
fn deviations(values: &[f64]) -> Vec<f64> {
    if values.iter().all(|value| *value == values[0]) {
        return vec![0.0; values.len()];
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    values.iter().map(|value| value - mean).collect()
}

pub(crate) fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for ties in order.chunk_by(|&i, &j| values[i] == values[j]) {
        let rank = first as f64 + (ties.len() + 1) as f64 / 2.0;
        ties.iter().for_each(|&i| ranks[i] = rank);
        first += ties.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::near;

    #[test]
    fn measures_equal_manual_values() {
        // Deviations (-2, -1, 0, 1, 2) and (-1, -2, 1, 0, 2): 8 / 10.
        near(pearson(&[1.0, 2.0, 3.0, 4.0, 5.0], &[2.0, 1.0, 4.0, 3.0, 5.0]), 0.8);
        near(pearson(&[1.0, 2.0, 3.0], &[2.0, 4.0, 6.5]), 4.5 / (2.0_f64 * 10.166_666_666_666_666).sqrt());
        near(pearson(&[1.0, 2.0], &[5.0, 3.0]), -1.0);
        near(mean_squared_error(&[1.0, 2.0], &[0.0, 4.0]), 2.5);
        near(root_mean_squared_error(&[1.0, 5.0], &[0.0, -2.0]), 5.0);
        near(mean_absolute_error(&[1.0, 2.0], &[0.0, 4.0]), 1.5);
        // 1 + 4 of (-2)² + 2².
        near(r2(&[1.0, 2.0], &[0.0, 4.0]), 3.0 / 8.0);
    }

    #[test]
    fn spearman_ignores_scale() {
        near(spearman(&[1.0, 10.0, 100.0], &[0.1, 0.2, 9.0]), 1.0);
        // Ranks (1, 2.5, 2.5, 4) and (1, 2, 3, 4): deviations give 4.5 / sqrt(4.5 * 5).
        near(spearman(&[1.0, 2.0, 2.0, 3.0], &[1.0, 2.0, 3.0, 4.0]), 4.5 / (4.5_f64 * 5.0).sqrt());
        near(spearman(&[0.0, -0.0], &[1.0, 2.0]), 0.0);
    }

    #[test]
    fn constant_side_has_no_correlation() {
        near(pearson(&[0.1, 0.1, 0.1], &[1.0, 2.0, 3.0]), 0.0);
        near(spearman(&[1.0, 2.0, 3.0], &[0.1, 0.1, 0.1]), 0.0);
        near(pearson(&[1.0], &[2.0]), 0.0);
        near(r2(&[1.0, 2.0], &[0.1, 0.1]), 0.0);
        near(r2(&[0.1, 0.1], &[0.1, 0.1]), 1.0);
    }

    #[test]
    fn invalid_inputs_are_errors() {
        type Metric = fn(&[f64], &[f64]) -> Result<f64, MetricError>;
        let metrics: [Metric; 6] =
            [pearson, spearman, mean_squared_error, root_mean_squared_error, mean_absolute_error, r2];
        for metric in metrics {
            assert_eq!(metric(&[], &[]), Err(MetricError::Empty));
            assert_eq!(metric(&[1.0, 2.0], &[1.0]), Err(MetricError::Lengths { predicted: 2, actual: 1 }));
            assert_eq!(metric(&[1.0, f64::NAN], &[1.0, 0.0]), Err(MetricError::NotFinite { row: 1 }));
            assert_eq!(metric(&[1.0], &[f64::INFINITY]), Err(MetricError::NotFinite { row: 0 }));
        }
    }
}
