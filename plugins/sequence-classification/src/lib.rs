//! The task head `sequence-classification`: one linear layer on the last token of each row.
//!
//! This crate does not find the last token, apply the model's final norm, or read labels from data.
//!
//! Invariants: it adds one parameter, `score.weight [n_labels, hidden]`, and no bias; labels of another kind or
//! out of range are errors, never a loss.
//!
//! ```
//! use sepal_plugin::{Head, Registry};
//! use sepal_sequence_classification::SequenceClassification;
//!
//! let mut registry = Registry::new();
//! registry.register::<Head, SequenceClassification>()?;
//! assert_eq!(registry.entries::<Head>().next().map(|entry| entry.name), Some("sequence-classification"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use schemars::JsonSchema;
use sepal_nn::init::{normal, rng};
use sepal_plugin::{
    BuildError, Head, HeadContext, HeadError, Hidden, LabelKind, Labels, Logits, Phase, Plugin, Prediction, TaskHead,
};
use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

/// Gives each text a label, a number, or several labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SequenceClassificationConfig {
    /// The labels' names, in the order of the numbers that stand for them in the data. One alone: the label is a
    /// number to be predicted (mean squared error). Several: one of them is right (cross entropy).
    #[schemars(length(min = 1), inner(length(min = 1)), extend("uniqueItems" = true))]
    pub labels: Vec<String>,
    /// Any number of the labels may be right for a text (binary cross entropy).
    #[serde(default)]
    pub multi_label: bool,
}

/// A linear layer without bias from a hidden state to logits, as transformers' `*ForSequenceClassification`.
#[derive(Debug)]
pub struct SequenceClassification {
    score: Tensor, // [n_labels, hidden]
    labels: Vec<String>,
    kind: LabelKind,
}

/// The parameter's name in an adapter.
const SCORE: &str = "score.weight";

/// Standard deviation that the layer starts with.
const STD: f64 = 0.02;

impl Plugin<Head> for SequenceClassification {
    const NAME: &'static str = "sequence-classification";
    type Config = SequenceClassificationConfig;

    fn example() -> SequenceClassificationConfig {
        SequenceClassificationConfig { labels: vec!["negative".to_owned(), "positive".to_owned()], multi_label: false }
    }

    fn build(config: SequenceClassificationConfig, cx: &mut HeadContext<'_>) -> Result<Box<dyn TaskHead>, BuildError> {
        let kind = match (config.multi_label, config.labels.len()) {
            (_, 0) => return Err(BuildError::Option { key: "labels", message: "expected at least one".to_owned() }),
            (true, _) => LabelKind::Multi,
            (false, 1) => LabelKind::Value,
            (false, _) => LabelKind::Class,
        };
        let init = normal(&[config.labels.len() as i64, cx.hidden as i64], STD, &mut rng(cx.seed, SCORE))?;
        Ok(Box::new(Self { score: cx.params.add(SCORE, &init)?, labels: config.labels, kind }))
    }
}

impl TaskHead for SequenceClassification {
    fn forward(&self, hidden: &Hidden, _: Phase) -> Result<Logits, HeadError> {
        let (found, width) = (hidden.pooled.size(), self.score.size()[1]);
        if found.len() != 2 || found[1] != width {
            let expected = vec![found.first().copied().unwrap_or(1), width];
            return Err(HeadError::Shape { what: "hidden states", expected, found });
        }
        Ok(Logits { values: hidden.pooled.f_linear(&self.score, None::<Tensor>)? }) // [rows, n_labels]
    }

    fn loss(&self, logits: &Logits, labels: &Labels) -> Result<Tensor, HeadError> {
        let logits = &logits.values;
        let rows = logits.size().first().copied().unwrap_or(0);
        let n_labels = self.labels.len() as i64;
        match (self.kind, labels) {
            (LabelKind::Class, Labels::Class(classes)) => {
                check_shape(classes, &[rows])?;
                check_classes(classes, self.labels.len())?;
                Ok(logits.f_cross_entropy_loss(classes, None::<Tensor>, Reduction::Mean, -100, 0.0)?)
            }
            (LabelKind::Value, Labels::Value(values)) => {
                check_shape(values, &[rows])?;
                Ok(logits.f_view([rows])?.f_mse_loss(values, Reduction::Mean)?) // [rows, 1] -> [rows]
            }
            (LabelKind::Multi, Labels::Multi(whether)) => {
                check_shape(whether, &[rows, n_labels])?;
                Ok(logits.f_binary_cross_entropy_with_logits(whether, None::<Tensor>, None, Reduction::Mean)?)
            }
            (expected, labels) => Err(HeadError::Kind { expected, found: labels.kind() }),
        }
    }

    fn predict(&self, logits: &Logits) -> Result<Prediction, HeadError> {
        let logits = logits.values.f_detach()?;
        let probabilities = match self.kind {
            LabelKind::Multi => logits.f_sigmoid()?,
            LabelKind::Class | LabelKind::Value => logits.f_softmax(-1, Kind::Float)?,
        };
        Ok(Prediction {
            class: Vec::try_from(logits.f_argmax(-1, false)?)?,
            probabilities: Vec::try_from(probabilities)?,
            logits: Vec::try_from(logits)?,
        })
    }

    fn label_names(&self) -> &[String] {
        &self.labels
    }

    fn label_kind(&self) -> LabelKind {
        self.kind
    }
}

fn check_shape(labels: &Tensor, expected: &[i64]) -> Result<(), HeadError> {
    let found = labels.size();
    if found == expected {
        return Ok(());
    }
    Err(HeadError::Shape { what: "labels", expected: expected.to_vec(), found })
}

/// Refuses classes without a logit, the index that cross entropy would ignore among them.
fn check_classes(classes: &Tensor, n_labels: usize) -> Result<(), HeadError> {
    let classes = Vec::<i64>::try_from(classes)?;
    match classes.iter().position(|class| !(0..n_labels as i64).contains(class)) {
        Some(row) => Err(HeadError::Class { row, class: classes[row], n_labels }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use sepal_nn::Parameters;
    use sepal_testkit::contract;

    use super::*;

    fn head(labels: &[&str], multi_label: bool) -> Box<dyn TaskHead> {
        let config =
            SequenceClassificationConfig { labels: labels.iter().map(|&name| name.to_owned()).collect(), multi_label };
        let mut params = Parameters::new();
        let mut cx = HeadContext { params: &mut params, hidden: 2, seed: 42 };
        let head = SequenceClassification::build(config, &mut cx).expect("built");
        assert_eq!(params.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["score.weight"]);
        assert_eq!(params.get("score.weight").expect("added").size(), [labels.len() as i64, 2]);
        head
    }

    fn logits(rows: &[&[f32]]) -> Logits {
        Logits { values: Tensor::from_slice(&rows.concat()).view([rows.len() as i64, -1]) }
    }

    fn check_loss(head: &dyn TaskHead, logits: &Logits, labels: &Labels, expected: f64) {
        let found = head.loss(logits, labels).expect("a loss").double_value(&[]);
        assert!((found - expected).abs() < 1e-6, "expected {expected}, found {found}");
    }

    #[test]
    fn it_keeps_the_contract() {
        contract::check_head::<SequenceClassification>();
    }

    #[test]
    fn several_labels_are_cross_entropy() {
        let head = head(&["bad", "good"], false);
        assert_eq!(head.label_kind(), LabelKind::Class);
        let logits = logits(&[&[0.0, 3.0_f32.ln()], &[0.0, 0.0]]);
        let labels = Labels::Class(Tensor::from_slice(&[1_i64, 0]));
        check_loss(&*head, &logits, &labels, -(0.75_f64.ln() + 0.5_f64.ln()) / 2.0);
        let prediction = head.predict(&logits).expect("predicted");
        assert_eq!(prediction.class, [1, 0]);
        assert!((prediction.probabilities[0][1] - 0.75).abs() < 1e-6);
        assert_eq!(prediction.logits[1], [0.0, 0.0]);
    }

    #[test]
    fn one_label_is_a_number() {
        let head = head(&["score"], false);
        assert_eq!(head.label_kind(), LabelKind::Value);
        let logits = logits(&[&[1.0], &[4.0]]);
        check_loss(&*head, &logits, &Labels::Value(Tensor::from_slice(&[2.0_f32, 2.0])), 2.5);
        let prediction = head.predict(&logits).expect("predicted");
        assert_eq!((prediction.class, prediction.logits), (vec![0, 0], vec![vec![1.0], vec![4.0]]));
        assert_eq!(prediction.probabilities, [[1.0], [1.0]]);
    }

    #[test]
    fn any_labels_are_binary_cross_entropy() {
        let head = head(&["short", "funny"], true);
        assert_eq!(head.label_kind(), LabelKind::Multi);
        let logits = logits(&[&[0.0, 3.0_f32.ln()]]);
        let labels = Labels::Multi(Tensor::from_slice(&[1.0_f32, 0.0]).view([1, 2]));
        check_loss(&*head, &logits, &labels, -(0.5_f64.ln() + 0.25_f64.ln()) / 2.0);
        let prediction = head.predict(&logits).expect("predicted");
        assert!((prediction.probabilities[0][0] - 0.5).abs() < 1e-6 && prediction.class == [1]);
    }

    #[test]
    fn labels_that_do_not_fit_are_refused() {
        let head = head(&["bad", "good"], false);
        let logits = logits(&[&[0.0, 1.0], &[0.0, 1.0]]);
        let refused = |labels: &Labels| head.loss(&logits, labels).expect_err("refused").to_string();
        for class in [2, -1, -100] {
            assert_eq!(
                refused(&Labels::Class(Tensor::from_slice(&[0, class]))),
                format!("use the labels: row 1 has class {class}, but there are only 2 labels"),
            );
        }
        assert_eq!(
            refused(&Labels::Value(Tensor::from_slice(&[0.0_f32, 1.0]))),
            "use the labels: expected one class per row, found one number per row",
        );
        assert_eq!(
            refused(&Labels::Class(Tensor::from_slice(&[0_i64]))),
            "use the labels: expected shape [2], found [1]",
        );
    }

    #[test]
    fn hidden_states_that_do_not_fit_are_refused() {
        let hidden = Hidden { pooled: Tensor::from_slice(&[1.0_f32, 2.0, 3.0]).view([1, 3]) };
        let error = head(&["bad", "good"], false).forward(&hidden, Phase::Train).expect_err("too wide");
        assert_eq!(error.to_string(), "use the hidden states: expected shape [1, 2], found [1, 3]");
    }
}
