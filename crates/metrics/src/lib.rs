//! Measures of how well predictions agree with labels, as pure functions over slices.
//!
//! This crate knows no tensors, no models and no files; averages over batches are the caller's.
//!
//! Invariants: an empty input, a number that is not finite and inputs of different lengths are errors,
//! never a number. Where a formula divides zero by zero the result is 0, and the
//! function says so.
//!
//! ```
//! let predicted = [1, 0, 1, 1];
//! let actual = [1, 0, 0, 1];
//! assert_eq!(sepal_metrics::accuracy(&predicted, &actual)?, 0.75);
//! assert_eq!(sepal_metrics::binary_f1(&predicted, &actual, 1)?, 0.8);
//! # Ok::<(), sepal_metrics::MetricError>(())
//! ```

mod classes;
mod values;

pub use classes::{accuracy, binary_f1, macro_f1, matthews};
pub use values::{mean_squared_error, pearson, spearman};

/// Inputs that have no measure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
}

/// Refuses what no metric is defined on.
fn check_lengths(predicted: usize, actual: usize) -> Result<(), MetricError> {
    match (predicted, actual) {
        _ if predicted != actual => Err(MetricError::Lengths { predicted, actual }),
        (0, _) => Err(MetricError::Empty),
        _ => Ok(()),
    }
}

/// `numerator / denominator`, and 0 where nothing divides.
fn quotient(numerator: f64, denominator: f64) -> f64 {
    if denominator == 0.0 { 0.0 } else { numerator / denominator }
}
