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

    /// The logits of these hidden states, attached to the graph.
    ///
    /// # Errors
    /// [`HeadError`] if the shapes do not fit.
    fn forward(&self, hidden: &Hidden, phase: Phase) -> Result<Logits, HeadError>;

    /// The mean loss of the rows, a scalar attached to the graph.
    ///
    /// # Errors
    /// [`HeadError`] if the labels are of another kind, or out of range.
    fn loss(&self, logits: &Logits, labels: &Labels) -> Result<Tensor, HeadError>;

    /// Tells how many training rows each class has, where rows have one class: once, before the first loss. Weights of
    /// classes may depend on it.
    ///
    /// # Errors
    /// [`HeadError`] if libtorch refuses.
    fn see_class_rows(&mut self, rows: &[u64]) -> Result<(), HeadError> {
        let _ = rows;
        Ok(())
    }

    /// What the logits say, as plain numbers.
    ///
    /// # Errors
    /// [`HeadError`] if libtorch refuses.
    fn predict(&self, logits: &Logits) -> Result<Prediction, HeadError>;

    /// The names of the labels, in the order of the logits; never empty.
    fn label_names(&self) -> &[String];

    /// What a row's label is.
    fn label_kind(&self) -> LabelKind;

    /// How well predictions agree with the labels of the same rows: names and values, the headline first.
    ///
    /// Unless a head says otherwise:
    /// - for classes `accuracy`; `f1`, `precision` and `recall`, of the second class if there are two, else the mean
    ///   over classes; `f1_macro`, `f1_micro`, `mcc`, `auroc`, `ece` in 15 bins, and of each label `f1/NAME`;
    /// - for values `pearson`, `spearman`, `mse`, `mae` and `r2`;
    /// - for several labels, at a probability of one half, `accuracy` and `f1` over all pairs of row and label,
    ///   `f1_macro`, `exact_match` and `auroc`.
    ///
    /// There is no `auroc` where a class is no row's, or each row's; neither it nor `ece` where a probability is NaN.
    ///
    /// # Errors
    /// [`HeadError`] if there are no rows, or not as many labels as predictions.
    fn metrics(&self, predictions: &Prediction, labels: &Labels) -> Result<Vec<(String, f64)>, HeadError> {
        measure::usual(self.label_names(), predictions, labels)
    }
}

/// Whether the head is being trained; dropout asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Gradients will be wanted.
    Train,
    /// Only predictions are wanted.
    Evaluate,
}

/// The hidden states that a head asked for, after the model's final norm.
#[derive(Debug)]
pub struct Hidden {
    /// The last token of each row: `[rows, hidden]`.
    pub pooled: Tensor,
}

/// A head's output.
#[derive(Debug)]
pub struct Logits {
    /// `[rows, n_labels]`.
    pub values: Tensor,
}

/// Returns labels as a tensor: classes as int64 `[rows]`, values as fp32 `[rows]`, several labels as fp32
/// `[rows, n_labels]`.
///
/// # Errors
/// [`HeadError`] if libtorch refuses.
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

/// What a head predicts for some rows. Each list has one entry per row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prediction {
    /// The index of the most probable label; 0 where there is only one.
    pub class: Vec<i64>,
    /// The probability of each label, `[rows][n_labels]`: they add up to 1, unless each label stands alone
    /// ([`LabelKind::Multi`]). For [`LabelKind::Value`] the one entry is 1.
    pub probabilities: Vec<Vec<f32>>,
    /// The numbers that the head computed, `[rows][n_labels]`; for [`LabelKind::Value`] the prediction itself.
    pub logits: Vec<Vec<f32>>,
}

impl Prediction {
    /// How many rows.
    pub fn rows(&self) -> usize {
        self.class.len()
    }

    /// Adds the rows of another batch.
    pub fn append(&mut self, mut other: Prediction) {
        self.class.append(&mut other.class);
        self.probabilities.append(&mut other.probabilities);
        self.logits.append(&mut other.logits);
    }
}

/// What a head cannot compute.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// Labels of a kind that the head does not train on.
    #[error("use the labels: expected {expected}, found {found}")]
    Kind {
        /// What the head trains on.
        expected: LabelKind,
        /// What it was given.
        found: LabelKind,
    },
    /// A class that does not exist.
    #[error("use the labels: row {row} has class {class}, but there are only {n_labels} labels")]
    Class {
        /// The first such row.
        row: usize,
        /// Its class.
        class: i64,
        /// How many labels there are.
        n_labels: usize,
    },
    /// A tensor of a shape that the head cannot use.
    #[error("use the {what}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// What the tensor is.
        what: &'static str,
        /// The shape that fits.
        expected: Vec<i64>,
        /// The shape it has.
        found: Vec<i64>,
    },
    /// There is no such metric of these rows.
    #[error("compute the metrics")]
    Metric(#[from] MetricError),
    /// libtorch refused.
    #[error("compute with the head")]
    Torch(#[from] TchError),
    /// A reason of the plugin's own.
    #[error("compute with the head")]
    Other(#[source] Box<dyn Error + Send + Sync>),
}
