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

use sepal_nn::init::{normal, rng};
use sepal_options::HeadOptions;
use sepal_plugin::{
    BuildError, Head, HeadContext, HeadError, HiddenView, LabelKind, Labels, Logits, OptionProblem, Options, Phase,
    Plugin, Pooling, Prediction, Task, TaskHead, TrainedTensor, Want, label_tensor,
};
use tch::{Device, Kind, Reduction, Tensor};

pub use sepal_options::{ClassWeights, HeadInit, SequenceClassificationConfig};

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

/// Standard deviation of the initial weights.
const STD: f64 = 0.02;

impl Plugin<Head> for SequenceClassification {
    const NAME: &'static str = SequenceClassificationConfig::NAME;
    type Config = SequenceClassificationConfig;

    fn example() -> SequenceClassificationConfig {
        SequenceClassificationConfig::example()
    }

    fn check(config: &SequenceClassificationConfig) -> Vec<OptionProblem> {
        config.check()
    }

    fn build(config: SequenceClassificationConfig, cx: &mut HeadContext<'_>) -> Result<Box<dyn TaskHead>, BuildError> {
        let (task, score) = (config.task()?, config.score(cx.hidden));
        let init = initial_weights(&config, &score, cx)?;
        let weights = match &config.class_weights {
            Some(ClassWeights::Each(weights)) => Some(Tensor::f_from_slice(weights)?.f_to_kind(Kind::Float)?),
            _ => None,
        };
        Ok(Box::new(Self {
            score: cx.params.add(score.name, &init)?,
            task,
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

/// Initial weights `[n_labels, hidden]`.
fn initial_weights(
    config: &SequenceClassificationConfig,
    score: &TrainedTensor,
    cx: &HeadContext<'_>,
) -> Result<Tensor, BuildError> {
    let size = score.signed_shape();
    match config.init {
        HeadInit::Random => Ok(normal(&size, STD, &mut rng(cx.seed, &score.name))?),
        HeadInit::LabelWords if cx.is_restored => Ok(Tensor::f_zeros(size, (Kind::Float, Device::Cpu))?),
        HeadInit::LabelWords => (cx.lm_rows)(&config.tokens(cx.tokenize)?).map_err(BuildError::Other),
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
