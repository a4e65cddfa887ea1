use std::error::Error;

use sepal_core::{LabelKind, Labels, Want};
use sepal_metrics::MetricError;
use tch::{TchError, Tensor};

use crate::measure;

/// Turns the hidden states that it asked for into a prediction and a loss.
pub trait TaskHead: Send {
    /// Which positions of the last block's output it reads.
    fn wants(&self) -> Want {
        Want::LastOfRows
    }

    /// Returns the logits of these hidden states, attached to the graph.
    ///
    /// # Errors
    /// [`HeadError`] if the shapes do not fit.
    fn forward(&self, hidden: &Hidden, phase: Phase) -> Result<Logits, HeadError>;

    /// Returns the mean loss of the rows, a scalar attached to the graph.
    ///
    /// # Errors
    /// [`HeadError`] if the labels are of another kind, or out of range.
    fn loss(&self, logits: &Logits, labels: &Labels) -> Result<Tensor, HeadError>;

    /// Receives the number of training rows of each class once, before the first loss, if rows have one class. Class
    /// weights may depend on it.
    ///
    /// # Errors
    /// [`HeadError`] if libtorch fails.
    fn see_class_rows(&mut self, rows: &[u64]) -> Result<(), HeadError> {
        let _ = rows;
        Ok(())
    }

    /// Converts logits to predictions on the host.
    ///
    /// # Errors
    /// [`HeadError`] if libtorch fails.
    fn predict(&self, logits: &Logits) -> Result<Prediction, HeadError>;

    /// Names of the labels, in the order of the logits; never empty.
    fn label_names(&self) -> &[String];

    /// Kind of the labels.
    fn label_kind(&self) -> LabelKind;

    /// Returns the metrics of predictions against the labels of the same rows: names and values, the most important
    /// first.
    ///
    /// Defaults:
    /// - for classes `accuracy`; `f1`, `precision` and `recall`, of the second class if there are two, else the mean
    ///   over classes; `f1_macro`, `f1_micro`, `mcc`, `auroc`, `ece` in 15 bins, and of each label `f1/NAME`;
    /// - for values `pearson`, `spearman`, `mse`, `mae` and `r2`;
    /// - for several labels, at a probability of one half, `accuracy` and `f1` over all pairs of row and label,
    ///   `f1_macro`, `exact_match` and `auroc`.
    ///
    /// `auroc` is missing if a class has no rows or all rows; `auroc` and `ece` are missing if a probability is NaN.
    ///
    /// # Errors
    /// [`HeadError`] if there are no rows, or the numbers of labels and predictions differ.
    fn metrics(&self, predictions: &Prediction, labels: &Labels) -> Result<Vec<(String, f64)>, HeadError> {
        measure::usual(self.label_names(), predictions, labels)
    }
}

/// Phase of a forward pass, for example for dropout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Training, with gradients.
    Train,
    /// Prediction, without gradients.
    Evaluate,
}

/// Hidden states for a head, after the model's final norm.
#[derive(Debug)]
pub struct Hidden {
    /// Hidden state of each row's last token: `[rows, hidden]`.
    pub pooled: Tensor,
}

/// Output of a head.
#[derive(Debug)]
pub struct Logits {
    /// Logits: `[rows, n_labels]`.
    pub values: Tensor,
}

/// Returns labels as a tensor: classes as int64 `[rows]`, values as fp32 `[rows]`, several labels as fp32
/// Logits: `[rows, n_labels]`.
///
/// # Errors
/// [`HeadError`] if libtorch fails.
pub fn label_tensor(labels: &Labels) -> Result<Tensor, HeadError> {
    Ok(match labels {
        Labels::Class(classes) => Tensor::f_from_slice(classes)?,
        Labels::Value(values) => Tensor::f_from_slice(values)?,
        Labels::Multi(rows) => {
            let size = [rows.len() as i64, rows.first().map_or(0, Vec::len) as i64]; // [rows, n_labels]
            Tensor::f_from_slice(&rows.concat())?.f_view(size)?
        }
    })
}

/// Predictions of a head. Each list has one entry per row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prediction {
    /// Index of the most probable label; 0 if there is only one label.
    pub class: Vec<i64>,
    /// Probability of each label, `[rows][n_labels]`. They sum to 1, except for independent labels
    /// ([`LabelKind::Multi`]). For [`LabelKind::Value`] the only entry is 1.
    pub probabilities: Vec<Vec<f32>>,
    /// Logits, `[rows][n_labels]`; for [`LabelKind::Value`] the predicted value.
    pub logits: Vec<Vec<f32>>,
}

impl Prediction {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.class.len()
    }

    /// Appends the rows of another batch.
    pub fn append(&mut self, mut other: Prediction) {
        self.class.append(&mut other.class);
        self.probabilities.append(&mut other.probabilities);
        self.logits.append(&mut other.logits);
    }
}

/// A head that failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum HeadError {
    /// Labels of another kind than the head's.
    #[error("use the labels: expected {expected}, found {found}")]
    Kind { expected: LabelKind, found: LabelKind },
    /// Class index out of range.
    #[error("use the labels: row {row} has class {class}, but there are only {n_labels} labels")]
    Class { row: usize, class: i64, n_labels: usize },
    /// Tensor with a wrong shape.
    #[error("use the {what}: expected shape {expected:?}, found {found:?}")]
    Shape { what: &'static str, expected: Vec<i64>, found: Vec<i64> },
    /// Metric that is undefined for these rows.
    #[error("compute the metrics")]
    Metric(#[from] MetricError),
    /// Failure of libtorch.
    #[error("compute with the head")]
    Torch(#[from] TchError),
    /// Failure specific to the plugin.
    #[error("compute with the head")]
    Other(#[source] Box<dyn Error + Send + Sync>),
}
