use std::error::Error;
use std::fmt;

use sepal_core::Want;
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

/// What a row's label is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelKind {
    /// One of the label names.
    Class,
    /// A number.
    Value,
    /// Any number of the label names.
    Multi,
}

impl fmt::Display for LabelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LabelKind::Class => "one class per row",
            LabelKind::Value => "one number per row",
            LabelKind::Multi => "any number of labels per row",
        })
    }
}

/// The labels of some rows.
#[derive(Debug)]
pub enum Labels {
    /// The index of each row's class: int64 `[rows]`.
    Class(Tensor),
    /// Each row's number: fp32 `[rows]`.
    Value(Tensor),
    /// One where the row has the label: fp32 `[rows, n_labels]`.
    Multi(Tensor),
}

impl Labels {
    /// What each label is.
    pub fn kind(&self) -> LabelKind {
        match self {
            Labels::Class(_) => LabelKind::Class,
            Labels::Value(_) => LabelKind::Value,
            Labels::Multi(_) => LabelKind::Multi,
        }
    }

    /// The numbers, whatever they are.
    pub fn tensor(&self) -> &Tensor {
        match self {
            Labels::Class(tensor) | Labels::Value(tensor) | Labels::Multi(tensor) => tensor,
        }
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.tensor().size().first().map_or(0, |&rows| rows.unsigned_abs() as usize)
    }

    /// The labels of several batches, one after the other.
    ///
    /// # Errors
    /// [`HeadError`] if there is no batch, or they are of different kinds.
    pub fn cat(batches: &[Labels]) -> Result<Labels, HeadError> {
        let first = batches.first().ok_or(HeadError::Metric(MetricError::Empty))?.kind();
        if let Some(other) = batches.iter().map(Labels::kind).find(|&kind| kind != first) {
            return Err(HeadError::Kind { expected: first, found: other });
        }
        let all = Tensor::f_cat(&batches.iter().map(Labels::tensor).collect::<Vec<_>>(), 0)?; // [sum of rows, ..]
        Ok(match first {
            LabelKind::Class => Labels::Class(all),
            LabelKind::Value => Labels::Value(all),
            LabelKind::Multi => Labels::Multi(all),
        })
    }
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
