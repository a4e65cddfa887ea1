//! Task head `sequence-classification`: one linear layer on the last token of each row, or on the mean of its tokens.
//!
//! This crate does not find the last token, apply the model's final norm, or read labels from data.
//!
//! Invariants: it adds one parameter, `score.weight [n_labels, hidden]`, and no bias; labels of another kind or
//! out of range are errors, never a loss. With `init: label-words` the first logits are those of the language model's
//! head for the labels' words.
//!
//! ```
//! use sepal_plugin::{Head, Registry};
//! use sepal_sequence_classification::SequenceClassification;
//!
//! let mut registry = Registry::new();
//! registry.register::<Head, SequenceClassification>()?;
//! assert_eq!(registry.catalog().entries(sepal_plugin::PluginKind::Head).next().map(|entry| entry.name), Some("sequence-classification"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod weights;

use schemars::JsonSchema;
use sepal_nn::init::{normal, rng};
use sepal_plugin::{
    BuildError, Head, HeadContext, HeadError, HiddenView, LabelKind, Labels, Logits, OptionProblem, Phase, Plugin,
    Pooling, Prediction, Task, TaskHead, Want, label_tensor, label_words,
};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Reduction, Tensor};

pub use crate::weights::ClassWeights;

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

/// Linear layer without bias from a hidden state to logits, like transformers' `*ForSequenceClassification`.
#[derive(Debug)]
pub struct SequenceClassification {
    score: Tensor, // [n_labels, hidden]
    task: Task,
    pooling: Pooling,
    label_smoothing: f64,
    weights: Option<Tensor>, // [n_labels]
    is_balanced: bool,
}

const SCORE: &str = "score.weight";
/// Standard deviation of the initial weights.
const STD: f64 = 0.02;

impl Plugin<Head> for SequenceClassification {
    const NAME: &'static str = "sequence-classification";
    type Config = SequenceClassificationConfig;

    fn example() -> SequenceClassificationConfig {
        SequenceClassificationConfig {
            labels: vec!["negative".to_owned(), "positive".to_owned()],
            multi_label: false,
            label_smoothing: 0.0,
            class_weights: None,
            pooling: Pooling::Last,
            init: HeadInit::Random,
            label_words: None,
        }
    }

    fn check(config: &SequenceClassificationConfig) -> Vec<OptionProblem> {
        check_class_weights(config).into_iter().chain(check_words(config)).collect()
    }

    fn build(config: SequenceClassificationConfig, cx: &mut HeadContext<'_>) -> Result<Box<dyn TaskHead>, BuildError> {
        let kind = match (config.multi_label, config.labels.len()) {
            (_, 0) => return Err(BuildError::Option { key: "labels", message: "expected at least one".to_owned() }),
            (true, _) => LabelKind::Multi,
            (false, 1) => LabelKind::Value,
            (false, _) => LabelKind::Class,
        };
        let init = initial_weights(&config, cx)?;
        let weights = match &config.class_weights {
            Some(ClassWeights::Each(weights)) => Some(Tensor::f_from_slice(weights)?.f_to_kind(Kind::Float)?),
            _ => None,
        };
        Ok(Box::new(Self {
            score: cx.params.add(SCORE, &init)?,
            task: Task::new(kind, config.labels),
            pooling: config.pooling,
            label_smoothing: config.label_smoothing,
            weights,
            is_balanced: config.class_weights == Some(ClassWeights::Balanced),
        }))
    }
}

impl TaskHead for SequenceClassification {
    fn wants(&self) -> Want {
        self.pooling.wants()
    }

    fn forward(&self, hidden: &HiddenView<'_>, _: Phase) -> Result<Logits, HeadError> {
        let pooled = hidden.states_of_width(self.score.size()[1])?; // [rows, hidden]
        Ok(Logits::new(pooled.f_linear(&self.score, None::<Tensor>)?)) // [rows, n_labels]
    }

    fn loss(&self, logits: &Logits, labels: &Labels) -> Result<Tensor, HeadError> {
        let logits = &logits.values;
        let rows = logits.size().first().copied().unwrap_or(0);
        let n_labels = self.task.labels().len() as i64;
        let targets = label_tensor(labels)?;
        match (self.task.kind(), labels) {
            (LabelKind::Class, Labels::Class(classes)) => {
                check_shape(&targets, &[rows])?;
                check_classes(classes, self.task.labels().len())?;
                let weights = self.weights.as_ref();
                let each =
                    logits.f_cross_entropy_loss(&targets, weights, Reduction::None, -100, self.label_smoothing)?;
                Ok(each.f_mean(Kind::Float)?) // [rows] -> []
            }
            (LabelKind::Value, Labels::Value(_)) => {
                check_shape(&targets, &[rows])?;
                Ok(logits.f_view([rows])?.f_mse_loss(&targets, Reduction::Mean)?) // [rows, 1] -> [rows]
            }
            (LabelKind::Multi, Labels::Multi(_)) => {
                check_shape(&targets, &[rows, n_labels])?;
                let weights = self.weights.as_ref();
                let smooth = self.label_smoothing;
                let targets = targets.f_mul_scalar(1.0 - smooth)?.f_add_scalar(smooth / 2.0)?;
                Ok(logits.f_binary_cross_entropy_with_logits(&targets, weights, None, Reduction::Mean)?)
            }
            (expected, labels) => Err(HeadError::Kind { expected, found: labels.kind() }),
        }
    }

    fn see_class_rows(&mut self, rows: &[u64]) -> Result<(), HeadError> {
        if self.is_balanced && rows.len() == self.task.labels().len() {
            self.weights = Some(balanced(rows)?);
        }
        Ok(())
    }

    fn predict(&self, logits: &Logits) -> Result<Prediction, HeadError> {
        let logits = logits.values.f_detach()?;
        let probabilities = match self.task.is_normalized() {
            true => logits.f_softmax(-1, Kind::Float)?,
            false => logits.f_sigmoid()?,
        };
        Ok(Prediction {
            class: Vec::try_from(logits.f_argmax(-1, false)?)?,
            probabilities: Vec::try_from(probabilities)?,
            logits: Vec::try_from(logits)?,
            ..Prediction::default()
        })
    }

    fn task(&self) -> &Task {
        &self.task
    }
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

/// Initial weights `[n_labels, hidden]`.
fn initial_weights(config: &SequenceClassificationConfig, cx: &HeadContext<'_>) -> Result<Tensor, BuildError> {
    let size = [config.labels.len() as i64, cx.hidden as i64];
    match config.init {
        HeadInit::Random => Ok(normal(&size, STD, &mut rng(cx.seed, SCORE))?),
        HeadInit::LabelWords if cx.is_restored => Ok(Tensor::f_zeros(size, (Kind::Float, Device::Cpu))?),
        HeadInit::LabelWords => {
            let words = config.label_words.as_ref().unwrap_or(&config.labels);
            let words: Vec<Vec<&String>> = words.iter().map(|word| vec![word]).collect();
            let ids = label_words("label_words", &config.labels, &words, cx.tokenize)?.concat();
            (cx.lm_rows)(&ids).map_err(BuildError::Other)
        }
    }
}

/// Balanced weight of each class, as in scikit-learn: the mean number of rows of a class, divided by the class's own; 0
/// for a class without rows.
fn balanced(rows: &[u64]) -> Result<Tensor, HeadError> {
    let even = rows.iter().sum::<u64>() as f64 / rows.len() as f64;
    let weight = |&rows: &u64| if rows > 0 { (even / rows as f64) as f32 } else { 0.0 };
    Ok(Tensor::f_from_slice(&rows.iter().map(weight).collect::<Vec<f32>>())?) // [n_labels]
}

fn check_shape(labels: &Tensor, expected: &[i64]) -> Result<(), HeadError> {
    let found = labels.size();
    if found == expected {
        return Ok(());
    }
    Err(HeadError::Shape { what: "labels", expected: expected.to_vec(), found })
}

/// Refuses classes without a logit, including the index that cross entropy would ignore.
fn check_classes(classes: &[i64], n_labels: usize) -> Result<(), HeadError> {
    match classes.iter().position(|class| !(0..n_labels as i64).contains(class)) {
        Some(row) => Err(HeadError::Class { row, class: classes[row], n_labels }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
