//! Measures of how well predictions agree with labels, as pure functions over slices.
//!
//! This crate knows no tensors, no models and no files; averages over batches are the caller's.
//!
//! Invariants: an empty input, a number that is not finite and inputs of different lengths are errors,
//! never a number. Where a formula divides zero by zero the result is 0, and the
//! function says so; an area under a curve that has no points is none. Values are those of scikit-learn and SciPy,
//! but where a function says otherwise.
//!
//! ```
//! let predicted = [1, 0, 1, 1];
//! let actual = [1, 0, 0, 1];
//! assert_eq!(sepal_metrics::accuracy(&predicted, &actual)?, 0.75);
//! assert_eq!(sepal_metrics::binary_f1(&predicted, &actual, 1)?, 0.8);
//! # Ok::<(), sepal_metrics::MetricError>(())
//! ```

mod classes;
mod counts;
pub mod glue;
mod names;
mod probabilities;
mod ranking;
pub mod several;
mod values;

pub use classes::{
    accuracy, averaged, balanced_accuracy, binary_f1, cohen_kappa, confusion, macro_f1, matthews, per_class,
};
pub use counts::{Average, Scores};
pub use names::{METRICS, Metric, UnknownMetric, names};
pub use probabilities::{
    Bin, CALIBRATION_BINS, Calibration, brier, calibration, log_loss, reliability, top_k_accuracy,
};
pub use ranking::{auroc, average_precision, binary_auroc};
pub use values::{mean_absolute_error, mean_squared_error, pearson, r2, root_mean_squared_error, spearman};

/// Inputs that have no measure.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MetricError {
    /// There is nothing to measure.
    #[error("measure predictions: there are none")]
    Empty,
    /// Each prediction needs its label.
    #[error("measure predictions: there are {predicted} of them, but {actual} labels")]
    Lengths {
        /// How many predictions there are.
        predicted: usize,
        /// How many labels there are.
        actual: usize,
    },
    /// A NaN or an infinity.
    #[error("measure predictions: row {row} is not a finite number")]
    NotFinite {
        /// The first such row.
        row: usize,
    },
    /// Each row has a number per label.
    #[error("measure predictions: row {row} has {found} labels instead of {expected}")]
    Width {
        /// The first such row.
        row: usize,
        /// How many labels there are.
        expected: usize,
        /// How many the row has.
        found: usize,
    },
    /// A class that does not exist.
    #[error("measure predictions: row {row} is of class {class}, but there are {n_labels} labels")]
    Class {
        /// The first such row.
        row: usize,
        /// Its class.
        class: i64,
        /// How many labels there are.
        n_labels: usize,
    },
    /// A number that is not from 0 to 1.
    #[error("measure predictions: row {row} has {value} for a probability")]
    NotProbability {
        /// The first such row.
        row: usize,
        /// The number.
        value: f64,
    },
}

/// Refuses what no metric is defined on.
fn check_lengths(predicted: usize, actual: usize) -> Result<(), MetricError> {
    match (predicted, actual) {
        _ if predicted != actual => Err(MetricError::Lengths { predicted, actual }),
        (0, _) => Err(MetricError::Empty),
        _ => Ok(()),
    }
}

/// Refuses classes outside of `0..n_labels`.
fn check_classes(classes: &[i64], n_labels: usize) -> Result<(), MetricError> {
    let known = |class: i64| usize::try_from(class).is_ok_and(|class| class < n_labels);
    match classes.iter().position(|&class| !known(class)) {
        Some(row) => Err(MetricError::Class { row, class: classes[row], n_labels }),
        None => Ok(()),
    }
}

/// `numerator / denominator`, and 0 where nothing divides.
fn quotient(numerator: f64, denominator: f64) -> f64 {
    if denominator == 0.0 { 0.0 } else { numerator / denominator }
}
