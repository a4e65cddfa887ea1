//! Measures of the agreement of predictions with labels, as pure functions over slices.
//!
//! Limits: this crate knows no tensors, models or files, and callers average over batches.
//!
//! Invariants: an empty input, a non-finite number and inputs of different lengths are errors. A quotient with a zero
//! denominator is 0, as the function documents, and the area under a curve without points is none. Values equal those
//! of scikit-learn and SciPy unless a function documents otherwise.
//!
//! ```
//! let predicted = [1, 0, 1, 1];
//! let actual = [1, 0, 0, 1];
//! assert_eq!(sepal_metrics::accuracy(&predicted, &actual)?, 0.75);
//! assert_eq!(sepal_metrics::binary_f1(&predicted, &actual, 1)?, 0.8);
//! # Ok::<(), sepal_metrics::MetricError>(())
//! ```

pub mod answers;
mod classes;
mod counts;
mod decisions;
pub mod entities;
pub mod glue;
pub mod multilabel;
mod names;
mod probabilities;
mod ranking;
mod temperature;
mod values;

pub use classes::{
    accuracy, averaged, balanced_accuracy, binary_f1, cohen_kappa, confusion, macro_f1, matthews, per_class,
};
pub use counts::{Average, Scores};
pub use decisions::{Covered, Threshold, best_f1_threshold, covered};
pub use names::{METRICS, Metric, UnknownMetric, names};
pub use probabilities::{
    Bin, CALIBRATION_BINS, Calibration, brier, calibration, log_loss, reliability, top_k_accuracy,
};
pub use ranking::{auroc, average_precision, binary_auroc};
pub use temperature::{TemperatureFit, class_temperature, label_temperature, scaled_sigmoid, scaled_softmax};
pub use values::{mean_absolute_error, mean_squared_error, pearson, r2, root_mean_squared_error, spearman};

/// Inputs without a defined measure.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum MetricError {
    /// There are no rows.
    #[error("measure predictions: there are none")]
    Empty,
    /// The numbers of predictions and labels differ.
    #[error("measure predictions: there are {predicted} of them, but {actual} labels")]
    Lengths { predicted: usize, actual: usize },
    /// A number is NaN or infinite.
    #[error("measure predictions: row {row} is not a finite number")]
    NotFinite { row: usize },
    /// A row has another number of labels.
    #[error("measure predictions: row {row} has {found} labels instead of {expected}")]
    Width { row: usize, expected: usize, found: usize },
    /// A class is out of range.
    #[error("measure predictions: row {row} is of class {class}, but there are {n_labels} labels")]
    Class { row: usize, class: i64, n_labels: usize },
    /// A number is outside of 0 to 1.
    #[error("measure predictions: row {row} has {value} for a probability")]
    NotProbability { row: usize, value: f64 },
}

fn check_lengths(predicted: usize, actual: usize) -> Result<(), MetricError> {
    match (predicted, actual) {
        _ if predicted != actual => Err(MetricError::Lengths { predicted, actual }),
        (0, _) => Err(MetricError::Empty),
        _ => Ok(()),
    }
}

fn check_classes(classes: &[i64], n_labels: usize) -> Result<(), MetricError> {
    let known = |class: i64| usize::try_from(class).is_ok_and(|class| class < n_labels);
    match classes.iter().position(|&class| !known(class)) {
        Some(row) => Err(MetricError::Class { row, class: classes[row], n_labels }),
        None => Ok(()),
    }
}

#[cfg(test)]
fn near(found: Result<f64, MetricError>, expected: f64) {
    let found = found.expect("a measure");
    assert!((found - expected).abs() < 1e-12, "expected {expected}, found {found}");
}

/// `numerator / denominator`, or 0 if the denominator is 0.
fn quotient(numerator: f64, denominator: f64) -> f64 {
    if denominator == 0.0 { 0.0 } else { numerator / denominator }
}
