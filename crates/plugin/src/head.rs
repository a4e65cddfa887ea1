use std::error::Error;

use sepal_core::{LabelKind, Labels, Ragged, Task, Want, WindowPool};
use sepal_metrics::MetricError;
use tch::{Kind, TchError, Tensor};

use crate::{HiddenView, measure};

/// Turns the hidden states that it asked for into a prediction and a loss.
pub trait TaskHead: Send {
    /// Positions of the last block's output that [`forward`](Self::forward) reads, all but [`Want::All`], which is for
    /// servers.
    fn wants(&self) -> Want {
        Want::LastOfRows
    }

    /// Returns the logits of these hidden states, attached to the graph.
    ///
    /// # Errors
    /// [`HeadError`] if the shapes do not fit.
    fn forward(&self, hidden: &HiddenView<'_>, phase: Phase) -> Result<Logits, HeadError>;

    /// Returns the mean loss of the rows, a scalar attached to the graph. It does not depend on the division of rows into
    /// batches.
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

    /// Texts without content whose logits [`calibrate`](Self::calibrate) receives before predictions; none by default.
    fn calibration_texts(&self) -> &[String] {
        &[]
    }

    /// Receives the logits of the [`calibration_texts`](Self::calibration_texts) for the current parameters, before each
    /// pass over rows to predict.
    ///
    /// # Errors
    /// [`HeadError`] if libtorch fails.
    fn calibrate(&self, logits: &Logits) -> Result<(), HeadError> {
        let _ = logits;
        Ok(())
    }

    /// Converts logits to predictions on the host.
    ///
    /// # Errors
    /// [`HeadError`] if libtorch fails.
    fn predict(&self, logits: &Logits) -> Result<Prediction, HeadError>;

    /// Description of the task: the names and the kind of its labels, and all that follows from them.
    fn task(&self) -> &Task;

    /// Names of the labels, in the order of the logits.
    fn label_names(&self) -> &[String] {
        self.task().labels()
    }

    /// Kind of the labels.
    fn label_kind(&self) -> LabelKind {
        self.task().kind()
    }

    /// Returns the number of rows that the largest logit classifies correctly; `None` unless rows have one class.
    ///
    /// # Errors
    /// [`HeadError`] if libtorch fails.
    fn count_correct(&self, logits: &Logits, labels: &Labels) -> Result<Option<usize>, HeadError> {
        let Labels::Class(classes) = labels else { return Ok(None) };
        let classes = Tensor::f_from_slice(classes)?; // [rows]
        let correct = logits.values.f_argmax(-1, false)?.f_eq_tensor(&classes)?.f_sum(Kind::Int64)?;
        Ok(Some(i64::try_from(&correct)?.unsigned_abs() as usize))
    }

    /// Returns the metrics of predictions against the labels of the same rows: names and values, the most important
    /// first.
    ///
    /// Defaults:
    /// - for classes `accuracy`; `f1`, `precision` and `recall`, of the second class if there are two, else the mean
    ///   over classes; `f1_macro`, `f1_micro`, `mcc`, `auroc`, `ece` in 15 bins, and of each label `f1/NAME`;
    /// - for values `pearson`, `spearman`, `mse`, `mae` and `r2`;
    /// - for several labels, at a probability of one half or their thresholds, `accuracy` and `f1` over all pairs of row and label,
    ///   `f1_macro`, `exact_match` and `auroc`;
    /// - for options `accuracy`;
    /// - for tags, over entities as seqeval counts them, `f1`, `precision` and `recall`; `accuracy` over words, and of each
    ///   type of entity `f1/TYPE`;
    /// - for texts `perplexity` and `token_accuracy` over the tokens of the answers, and `exact_match`.
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

/// Output of a head.
#[derive(Debug)]
pub struct Logits {
    /// Logits: `[rows, n_labels]`, or a row for each item of [`items`](Self::items).
    pub values: Tensor,
    /// Items that the rows of `values` belong to; `None` if each belongs to one row of the task.
    pub items: Option<Items>,
}

/// Items of the rows of a task: options, words, or tokens of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Items {
    /// Number of items of each row, `[rows]`.
    pub lengths: Vec<usize>,
    /// Item of each row of the logits, counted over all rows of the task. Items without logits, for example words that
    /// truncation removed, are left out.
    pub indices: Vec<usize>,
    /// Token ids, if the items are tokens of an answer.
    pub tokens: Option<AnswerTokens>,
}

/// Tokens of answers, one for each row of the logits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerTokens {
    /// Ids of the most probable tokens.
    pub predicted: Vec<i64>,
    /// Ids of the tokens of the answers.
    pub actual: Vec<i64>,
}

impl Items {
    /// Items with one row of logits each.
    pub fn of_lengths(lengths: Vec<usize>) -> Self {
        let total: usize = lengths.iter().sum();
        Self { lengths, indices: (0..total).collect(), tokens: None }
    }

    /// Row of the task that each row of the logits belongs to.
    pub fn rows(&self) -> Vec<usize> {
        let ends: Vec<usize> = self
            .lengths
            .iter()
            .scan(0, |end, &length| {
                *end += length;
                Some(*end)
            })
            .collect();
        self.indices.iter().map(|&item| ends.partition_point(|&end| end <= item)).collect()
    }

    /// Weight of each row of the logits, fp32 `[rows of the logits]`, in the mean over the rows of the task of the mean over
    /// each row's items. This mean does not depend on the division of rows into batches.
    ///
    /// # Errors
    /// [`HeadError::Torch`] if libtorch fails.
    pub fn weights(&self) -> Result<Tensor, HeadError> {
        let rows = self.rows();
        let mut counts = vec![0_usize; self.lengths.len()];
        for &row in &rows {
            counts[row] += 1;
        }
        let n_rows = self.lengths.len() as f64;
        let weights: Vec<f32> = rows.iter().map(|&row| (1.0 / (counts[row] as f64 * n_rows)) as f32).collect();
        Ok(Tensor::f_from_slice(&weights)?)
    }

    /// Divides values of the rows of the logits by the rows of the task; items without logits have `missing`.
    pub fn by_row<T: Clone>(&self, values: impl IntoIterator<Item = T>, missing: T) -> Vec<Vec<T>> {
        let total: usize = self.lengths.iter().sum();
        let mut all = vec![missing; total];
        for (&item, value) in self.indices.iter().zip(values) {
            if let Some(slot) = all.get_mut(item) {
                *slot = value;
            }
        }
        let mut all = all.into_iter();
        self.lengths.iter().map(|&length| all.by_ref().take(length).collect()).collect()
    }
}

impl Logits {
    /// Logits `[rows, n_labels]` of rows of one item each.
    pub fn new(values: Tensor) -> Self {
        Self { values, items: None }
    }

    /// Logits of items, `[items with logits, ..]`.
    pub fn of_items(values: Tensor, items: Items) -> Self {
        Self { values, items: Some(items) }
    }

    /// Items of the rows.
    ///
    /// # Errors
    /// [`HeadError::NoItems`] if the logits are of rows.
    pub fn require_items(&self) -> Result<&Items, HeadError> {
        self.items.as_ref().ok_or(HeadError::NoItems)
    }

    /// Logits of rows `[rows, n_labels]` from those of their windows `[windows, n_labels]`, attached to the graph. `groups` are
    /// the windows of each row.
    ///
    /// # Errors
    /// [`HeadError::Torch`] if libtorch fails.
    pub fn pooled(self, groups: &Ragged, pool: WindowPool) -> Result<Self, HeadError> {
        if groups.n_tokens() == groups.len() {
            return Ok(self);
        }
        let row = |row: usize| {
            let windows = groups.range(row);
            let windows = self.values.f_narrow(0, windows.start as i64, windows.len() as i64)?; // [windows, n_labels]
            match pool {
                WindowPool::Mean => windows.f_mean_dim([0_i64].as_slice(), false, Kind::Float),
                WindowPool::Max => windows.f_amax([0], false),
            }
        };
        let rows = (0..groups.len()).map(row).collect::<Result<Vec<_>, TchError>>()?;
        Ok(Self::new(Tensor::f_stack(&rows, 0)?)) // [rows, n_labels]
    }

    /// Rows of the task, without repetition, that these rows of the logits belong to.
    pub fn task_rows(&self, rows: Vec<usize>) -> Vec<usize> {
        let Some(items) = &self.items else { return rows };
        let of_task = items.rows();
        let mut found: Vec<usize> = rows.into_iter().filter_map(|row| of_task.get(row).copied()).collect();
        found.dedup();
        found
    }
}

/// Returns labels as a tensor: classes and options as int64 `[rows]`, values as fp32 `[rows]`, several labels as fp32
/// `[rows, n_labels]`, tags as int64 `[words of all rows]`.
///
/// # Errors
/// [`HeadError::NoTensor`] for texts, [`HeadError::Torch`] if libtorch fails.
pub fn label_tensor(labels: &Labels) -> Result<Tensor, HeadError> {
    Ok(match labels {
        Labels::Class(classes) | Labels::Choice(classes) => Tensor::f_from_slice(classes)?,
        Labels::Value(values) => Tensor::f_from_slice(values)?,
        Labels::Multi(rows) => {
            let size = [rows.len() as i64, rows.first().map_or(0, Vec::len) as i64]; // [rows, n_labels]
            Tensor::f_from_slice(&rows.concat())?.f_view(size)?
        }
        Labels::Tags(rows) => Tensor::f_from_slice(&rows.concat())?,
        Labels::Text(_) => return Err(HeadError::NoTensor { found: labels.kind() }),
    })
}

/// Returns the class of each row as int64 `[rows]`.
///
/// # Errors
/// [`HeadError::Kind`] for labels of another kind, [`HeadError::Class`] for a class outside of `0..n_labels`.
pub fn class_tensor(labels: &Labels, n_labels: usize) -> Result<Tensor, HeadError> {
    let Labels::Class(classes) = labels else {
        return Err(HeadError::Kind { expected: LabelKind::Class, found: labels.kind() });
    };
    match classes.iter().position(|class| !(0..n_labels as i64).contains(class)) {
        Some(row) => Err(HeadError::Class { row, class: classes[row], n_labels }),
        None => label_tensor(labels),
    }
}

/// Predictions of a head. Each list has one entry per row, or is empty where a kind of task does not have it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prediction {
    /// Index of the most probable label or option; 0 if there is only one label. Empty for [`LabelKind::Tags`] and
    /// [`LabelKind::Text`].
    pub class: Vec<i64>,
    /// Probability of each label or option, `[rows][n_labels]`. They sum to 1, except for independent labels
    /// ([`LabelKind::Multi`]). For [`LabelKind::Value`] the only entry is 1. For tags it is the probability of each word's
    /// tag, `[rows][words]`, and for texts that of each token of the answer, `[rows][tokens]`.
    pub probabilities: Vec<Vec<f32>>,
    /// Logits, `[rows][n_labels]`; for [`LabelKind::Value`] the predicted value, for tags the logit of each word's tag, and
    /// for texts the log-probability of each token of the answer.
    pub logits: Vec<Vec<f32>>,
    /// Tag of each word, `[rows][words]`, or most probable token at each position of the answer, `[rows][tokens]`. Empty
    /// for the other kinds.
    pub items: Vec<Vec<i64>>,
    /// Number of tokens of the answer that are the most probable ones, `[rows]`. Empty for all kinds but texts.
    pub right_tokens: Vec<usize>,
    /// Least probability of each predicted label, `[n_labels]`, for [`LabelKind::Multi`]; empty for one half.
    pub thresholds: Vec<f32>,
}

impl Prediction {
    /// Predictions of one class for each row, from logits `[rows, n_labels]`.
    ///
    /// # Errors
    /// [`HeadError::Torch`] if libtorch fails.
    pub fn of_classes(logits: &Tensor) -> Result<Self, HeadError> {
        let logits = logits.f_detach()?;
        Ok(Self {
            class: Vec::try_from(logits.f_argmax(-1, false)?)?,
            probabilities: Vec::try_from(logits.f_softmax(-1, Kind::Float)?)?,
            logits: Vec::try_from(logits)?,
            ..Self::default()
        })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.logits.len()
    }

    /// Appends the rows of another batch.
    pub fn append(&mut self, mut other: Prediction) {
        self.class.append(&mut other.class);
        self.probabilities.append(&mut other.probabilities);
        self.logits.append(&mut other.logits);
        self.items.append(&mut other.items);
        self.right_tokens.append(&mut other.right_tokens);
        if self.thresholds.is_empty() {
            self.thresholds = other.thresholds;
        }
    }

    /// True for each label of a row whose probability is at least its threshold.
    pub fn label_decisions<'a>(&'a self, probabilities: &'a [f32]) -> impl Iterator<Item = bool> + 'a {
        let thresholds = self.thresholds.iter().copied().chain(std::iter::repeat(0.5));
        probabilities.iter().zip(thresholds).map(|(&probability, threshold)| probability >= threshold)
    }

    /// Returns the predictions of these rows, in this order; rows that do not exist are left out.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        fn picked<T: Clone>(all: &[T], rows: &[usize]) -> Vec<T> {
            rows.iter().filter_map(|&row| all.get(row)).cloned().collect()
        }
        Self {
            class: picked(&self.class, rows),
            probabilities: picked(&self.probabilities, rows),
            logits: picked(&self.logits, rows),
            items: picked(&self.items, rows),
            right_tokens: picked(&self.right_tokens, rows),
            thresholds: self.thresholds.clone(),
        }
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
    /// Labels without a form as numbers.
    #[error("use the labels as numbers: found {found}")]
    NoTensor { found: LabelKind },
    /// Logits of rows where logits of items are expected.
    #[error("use the logits: expected those of the items of each row")]
    NoItems,
    /// Part of a batch that the task does not have.
    #[error("read the batch: it has no {what}")]
    NoPart {
        /// `texts`, `groups` or `answers`.
        what: &'static str,
    },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_divided_by_rows() {
        let items = Items { lengths: vec![2, 0, 3], indices: vec![0, 2, 4], tokens: None };
        assert_eq!(items.rows(), [0, 2, 2]);
        assert_eq!(items.by_row(["a", "b", "c"], "-"), [vec!["a", "-"], vec![], vec!["b", "-", "c"]]);
        let weights = Vec::<f32>::try_from(items.weights().expect("weights")).expect("numbers");
        assert_eq!(weights, [1.0 / 3.0, 1.0 / 6.0, 1.0 / 6.0]);
        let all = Items::of_lengths(vec![1, 2]);
        assert_eq!((all.indices.clone(), all.rows()), (vec![0, 1, 2], vec![0, 1, 1]));
        let logits = Logits::of_items(Tensor::from_slice(&[0.0_f32; 3]), items);
        assert_eq!(logits.task_rows(vec![1, 2]), [2]);
        assert_eq!(Logits::new(Tensor::from_slice(&[0.0_f32])).task_rows(vec![3]), [3]);
    }

    #[test]
    fn logits_of_windows_are_pooled() {
        let groups = Ragged::from_lengths([2, 1]).expect("windows");
        let logits = |values: &[f32]| Logits::new(Tensor::from_slice(values).view([-1, 2]));
        let pooled = |pool| {
            let pooled = logits(&[1.0, 2.0, 3.0, 0.0, 5.0, 6.0]).pooled(&groups, pool).expect("pooled");
            Vec::<Vec<f32>>::try_from(pooled.values).expect("numbers")
        };
        assert_eq!(pooled(WindowPool::Mean), [[2.0, 1.0], [5.0, 6.0]]);
        assert_eq!(pooled(WindowPool::Max), [[3.0, 2.0], [5.0, 6.0]]);
        let single = Ragged::from_lengths([1, 1]).expect("windows");
        let same = logits(&[1.0, 2.0, 3.0, 0.0]).pooled(&single, WindowPool::Max).expect("pooled");
        assert_eq!(Vec::<Vec<f32>>::try_from(same.values).expect("numbers"), [[1.0, 2.0], [3.0, 0.0]]);
    }

    #[test]
    fn labels_have_thresholds_of_their_own() {
        let mut prediction = Prediction::default();
        let found = |prediction: &Prediction| prediction.label_decisions(&[0.5, 0.4]).collect::<Vec<_>>();
        assert_eq!(found(&prediction), [true, false]);
        prediction.append(Prediction { thresholds: vec![0.6, 0.4], ..Prediction::default() });
        assert_eq!(found(&prediction.select(&[])), [false, true]);
    }

    #[test]
    fn classes_outside_of_the_labels_are_refused() {
        let tensor = class_tensor(&Labels::Class(vec![1, 0]), 2).expect("classes");
        assert_eq!(Vec::<i64>::try_from(tensor).expect("numbers"), [1, 0]);
        let error = class_tensor(&Labels::Class(vec![0, 2]), 2).expect_err("there are two");
        assert!(matches!(error, HeadError::Class { row: 1, class: 2, n_labels: 2 }));
        assert!(matches!(class_tensor(&Labels::Value(vec![0.5]), 2), Err(HeadError::Kind { .. })));
    }

    #[test]
    fn most_probable_class_is_predicted() {
        let logits = Tensor::from_slice(&[0.0_f32, 3.0_f32.ln(), 1.0, 1.0]).view([2, 2]);
        let found = Prediction::of_classes(&logits).expect("predicted");
        assert_eq!((found.class[0], found.rows()), (1, 2));
        assert!((found.probabilities[0][1] - 0.75).abs() < 1e-6 && found.probabilities[1][0] == 0.5);
    }

    #[test]
    fn selected_predictions_keep_their_parts() {
        let prediction = Prediction { class: vec![0, 1], logits: vec![vec![0.5], vec![1.5]], ..Prediction::default() };
        let found = prediction.select(&[1, 0, 2]);
        assert_eq!((found.class, found.logits), (vec![1, 0], vec![vec![1.5], vec![0.5]]));
        assert!(found.items.is_empty() && found.probabilities.is_empty());
    }
}
