//! Description of a classifier, its rows and its answers.

use sepal_core::{LabelKind, Task};

/// Kind of prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind {
    /// One of the labels.
    Class,
    /// Any number of the labels.
    Labels,
    /// Number.
    Value,
    /// Label of each word.
    Tags,
}

impl AnswerKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Class => "class",
            Self::Labels => "labels",
            Self::Value => "value",
            Self::Tags => "tags",
        }
    }

    /// Kind of the answers of a task; `None` if its rows are not texts or pairs of texts.
    pub fn of_task(task: &Task) -> Option<Self> {
        match task.kind() {
            LabelKind::Class => Some(Self::Class),
            LabelKind::Multi => Some(Self::Labels),
            LabelKind::Value => Some(Self::Value),
            LabelKind::Tags => Some(Self::Tags),
            LabelKind::Choice | LabelKind::Text => None,
        }
    }
}

/// Public description of a classifier.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassifierInfo {
    /// Name of the classifier.
    pub name: String,
    /// Kind of its predictions.
    pub kind: AnswerKind,
    /// Names of the labels in the order of the probabilities; the name of the value for numbers.
    pub labels: Vec<String>,
    /// True if rows are pairs of texts.
    pub takes_pairs: bool,
    /// Least probability of each given label, `[n_labels]`, for [`AnswerKind::Labels`]; empty for one half.
    pub thresholds: Vec<f32>,
    /// Further facts for people: a name and a value each.
    pub facts: Vec<(String, String)>,
}

/// Prediction for a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// One label.
    Class {
        /// Index of the label.
        class: usize,
        /// Probability of each label, `[n_labels]`; the sum is 1.
        probabilities: Vec<f32>,
    },
    /// All labels with a probability of at least their threshold.
    Labels {
        /// Independent probability of each label, `[n_labels]`.
        probabilities: Vec<f32>,
    },
    /// Number.
    Value(f32),
    /// Label of each word.
    Tags {
        /// Words of the text.
        words: Vec<String>,
        /// Index of the label of each word.
        tags: Vec<usize>,
        /// Probability of the label of each word.
        probabilities: Vec<f32>,
    },
}

/// Row that a classifier does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidRow {
    /// Index of the row.
    pub row: usize,
    /// Reason.
    pub problem: RowProblem,
}

/// Reason for which a classifier does not take a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum RowProblem {
    /// Text without a token.
    #[error("it yields no token: it has only blanks or characters that the tokenizer does not know")]
    NoToken,
    /// Text of more windows than are computed.
    #[error("it is too long: {n_windows} windows, at most {max_windows} are computed; shorten it")]
    TooLong { n_windows: usize, max_windows: usize },
}

/// Input of a prediction: a text or a pair of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) text: String,
    pub(crate) pair: Option<String>,
}

impl ClassifierInfo {
    /// Returns the description of a classifier of single texts, without facts.
    pub fn new(name: impl Into<String>, kind: AnswerKind, labels: &[impl AsRef<str>]) -> Self {
        let labels = labels.iter().map(|label| label.as_ref().to_owned()).collect();
        Self { name: name.into(), kind, labels, takes_pairs: false, thresholds: Vec::new(), facts: Vec::new() }
    }

    pub(crate) fn example(&self) -> Row {
        Row { text: "a text to try it".into(), pair: self.takes_pairs.then(|| "a second text".into()) }
    }
}

impl Answer {
    /// True if the answer is of the classifier's kind and has a finite number for each label.
    pub(crate) fn is_valid_for(&self, info: &ClassifierInfo) -> bool {
        let are_valid = |probabilities: &[f32]| {
            probabilities.len() == info.labels.len() && probabilities.iter().all(|probability| probability.is_finite())
        };
        match self {
            Answer::Class { class, probabilities } => {
                info.kind == AnswerKind::Class && *class < info.labels.len() && are_valid(probabilities)
            }
            Answer::Labels { probabilities } => info.kind == AnswerKind::Labels && are_valid(probabilities),
            Answer::Value(value) => info.kind == AnswerKind::Value && value.is_finite(),
            Answer::Tags { words, tags, probabilities } => {
                info.kind == AnswerKind::Tags
                    && words.len() == tags.len()
                    && words.len() == probabilities.len()
                    && tags.iter().all(|tag| *tag < info.labels.len())
                    && probabilities.iter().all(|probability| probability.is_finite())
            }
        }
    }
}

impl InvalidRow {
    /// Returns the row with the index that it has behind `n_rows` others.
    pub(crate) fn after(self, n_rows: usize) -> Self {
        Self { row: n_rows + self.row, ..self }
    }
}

impl Row {
    pub(crate) fn n_bytes(&self) -> usize {
        self.text.len() + self.pair.as_ref().map_or(0, String::len)
    }
}
