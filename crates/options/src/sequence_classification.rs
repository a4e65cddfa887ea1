use schemars::JsonSchema;
use sepal_catalog::{OptionProblem, Options, PluginKind};
use sepal_core::{LabelKind, Task, TrainedTensor};
use serde::{Deserialize, Serialize};

use crate::{ClassWeights, HeadOptions, OptionError, Pooling, Tokenize, label_words};

/// Predicts a label, a number, or several labels for each text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SequenceClassificationConfig {
    /// Names of the labels, in the order of their indices in the data. With one name the label is a number (mean
    /// squared error), with several names one of them is right (cross entropy).
    #[schemars(length(min = 1), inner(length(min = 1)), extend("uniqueItems" = true))]
    pub labels: Vec<String>,
    /// Allows any number of labels for a text (binary cross entropy).
    #[serde(default)]
    pub multi_label: bool,
    /// Label smoothing: the part of the target that moves from the right label to all labels evenly (with several
    /// labels for a text: from 0 and 1 towards a half). It has no effect on numbers.
    #[serde(default)]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub label_smoothing: f64,
    /// Factors of the loss by label: one number for each label, in their order, or `balanced` for weights that give all
    /// labels the same influence, however often they occur among the training rows (with one label for a text). Unlike
    /// PyTorch's weighted mean, the loss is divided by the number of rows and not by their weights, so that it does not
    /// depend on the division into batches.
    #[serde(default)]
    pub class_weights: Option<ClassWeights>,
    // Unset later keys are not written: checkpoints hold a digest of the written form.
    /// Hidden state that the layer reads: that of the last token, or the mean of the last block's outputs over all tokens.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(extend("default" = "last"))]
    pub pooling: Pooling,
    /// Initial weights: random, or `label-words` for the rows of the language model's head for the labels' words, so that
    /// training starts from the model's own choice between these words. The template has to lead to such a word, for
    /// example `{text}\nSentiment:`. An adapter that the tuning mode starts from replaces them.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(extend("default" = "random"))]
    pub init: HeadInit,
    /// Words of `init: label-words`, one for each label, in their order: by default the labels' names. Each must be a single
    /// token after a blank; a word with a blank before it is taken as it is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = null))]
    pub label_words: Option<Vec<String>>,
}

/// Initial weights of the layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HeadInit {
    /// Drawn from N(0, 0.02²).
    #[default]
    Random,
    /// Rows of the language model's head.
    LabelWords,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn check_class_weights(config: &SequenceClassificationConfig) -> Vec<OptionProblem> {
    let n_labels = config.labels.len();
    let problem = |message: String| vec![OptionProblem { key: "class_weights".to_owned(), message }];
    match &config.class_weights {
        Some(_) if n_labels == 1 => problem("expected none for a task that predicts a number".to_owned()),
        Some(ClassWeights::Balanced) if config.multi_label => {
            problem("expected one number to a label where a text has any number of labels".to_owned())
        }
        Some(ClassWeights::Each(weights)) if weights.len() != n_labels => {
            problem(format!("expected {n_labels} numbers, one to a label, found {}", weights.len()))
        }
        Some(ClassWeights::Each(weights)) if !weights.iter().all(|weight| weight.is_finite() && *weight >= 0.0) => {
            problem("expected numbers of at least 0".to_owned())
        }
        _ => Vec::new(),
    }
}

fn check_words(config: &SequenceClassificationConfig) -> Vec<OptionProblem> {
    let n_labels = config.labels.len();
    let problem = |key: &str, message: String| vec![OptionProblem { key: key.to_owned(), message }];
    match (config.init, &config.label_words) {
        (HeadInit::Random, Some(_)) => problem("label_words", "expected `init: label-words` with them".to_owned()),
        (HeadInit::LabelWords, _) if config.multi_label || n_labels == 1 => {
            problem("init", "expected random, or several labels of which one is right".to_owned())
        }
        (HeadInit::LabelWords, Some(words)) if words.len() != n_labels => {
            problem("label_words", format!("expected {n_labels} words, one to a label, found {}", words.len()))
        }
        _ => Vec::new(),
    }
}

impl Options for SequenceClassificationConfig {
    const KIND: PluginKind = PluginKind::Head;
    const NAME: &'static str = "sequence-classification";

    fn example() -> Self {
        Self {
            labels: vec!["negative".to_owned(), "positive".to_owned()],
            multi_label: false,
            label_smoothing: 0.0,
            class_weights: None,
            pooling: Pooling::Last,
            init: HeadInit::Random,
            label_words: None,
        }
    }

    fn check(&self) -> Vec<OptionProblem> {
        check_class_weights(self).into_iter().chain(check_words(self)).collect()
    }
}

impl SequenceClassificationConfig {
    /// Weights of the logits, `[n_labels, hidden]`.
    pub fn score(&self, hidden: usize) -> TrainedTensor {
        TrainedTensor::new("score.weight", [self.labels.len(), hidden])
    }

    /// Returns the token of each label's word.
    ///
    /// # Errors
    /// [`OptionError`] if a word is not one token, or two labels have a token in common.
    pub fn tokens(&self, tokenize: &Tokenize<'_>) -> Result<Vec<i64>, OptionError> {
        let words = self.label_words.as_ref().unwrap_or(&self.labels);
        let words: Vec<Vec<&String>> = words.iter().map(|word| vec![word]).collect();
        Ok(label_words("label_words", &self.labels, &words, tokenize)?.concat())
    }
}

impl HeadOptions for SequenceClassificationConfig {
    fn task(&self) -> Result<Task, OptionError> {
        let kind = match (self.multi_label, self.labels.len()) {
            (_, 0) => return Err(OptionError { key: "labels", message: "expected at least one".to_owned() }),
            (true, _) => LabelKind::Multi,
            (false, 1) => LabelKind::Value,
            (false, _) => LabelKind::Class,
        };
        Ok(Task::new(kind, self.labels.clone()))
    }

    fn tensors(&self, hidden: usize) -> Vec<TrainedTensor> {
        vec![self.score(hidden)]
    }

    fn check_words(&self, tokenize: &Tokenize<'_>) -> Result<(), OptionError> {
        match self.init {
            HeadInit::Random => Ok(()),
            HeadInit::LabelWords => self.tokens(tokenize).map(drop),
        }
    }
}
