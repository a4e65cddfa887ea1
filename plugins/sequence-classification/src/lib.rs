//! Task head `sequence-classification`: one linear layer on the last token of each row.
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
//! assert_eq!(registry.catalog().entries(sepal_plugin::PluginKind::Head).next().map(|entry| entry.name), Some("sequence-classification"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod weights;

use schemars::JsonSchema;
use sepal_nn::init::{normal, rng};
use sepal_plugin::{
    BuildError, Head, HeadContext, HeadError, Hidden, LabelKind, Labels, Logits, OptionProblem, Phase, Plugin,
    Prediction, TaskHead, label_tensor,
};
use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

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
}

/// Linear layer without bias from a hidden state to logits, like transformers' `*ForSequenceClassification`.
#[derive(Debug)]
pub struct SequenceClassification {
    score: Tensor, // [n_labels, hidden]
    labels: Vec<String>,
    kind: LabelKind,
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
        let labels = vec!["negative".to_owned(), "positive".to_owned()];
        SequenceClassificationConfig { labels, multi_label: false, label_smoothing: 0.0, class_weights: None }
    }

    fn check(config: &SequenceClassificationConfig) -> Vec<OptionProblem> {
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

    fn build(config: SequenceClassificationConfig, cx: &mut HeadContext<'_>) -> Result<Box<dyn TaskHead>, BuildError> {
        let kind = match (config.multi_label, config.labels.len()) {
            (_, 0) => return Err(BuildError::Option { key: "labels", message: "expected at least one".to_owned() }),
            (true, _) => LabelKind::Multi,
            (false, 1) => LabelKind::Value,
            (false, _) => LabelKind::Class,
        };
        let init = normal(&[config.labels.len() as i64, cx.hidden as i64], STD, &mut rng(cx.seed, SCORE))?;
        let weights = match &config.class_weights {
            Some(ClassWeights::Each(weights)) => Some(Tensor::f_from_slice(weights)?.f_to_kind(Kind::Float)?),
            _ => None,
        };
        Ok(Box::new(Self {
            score: cx.params.add(SCORE, &init)?,
            labels: config.labels,
            kind,
            label_smoothing: config.label_smoothing,
            weights,
            is_balanced: config.class_weights == Some(ClassWeights::Balanced),
        }))
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
        let targets = label_tensor(labels)?;
        match (self.kind, labels) {
            (LabelKind::Class, Labels::Class(classes)) => {
                check_shape(&targets, &[rows])?;
                check_classes(classes, self.labels.len())?;
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
        if self.is_balanced && rows.len() == self.labels.len() {
            self.weights = Some(balanced(rows)?);
        }
        Ok(())
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
mod tests {
    use sepal_nn::Parameters;
    use sepal_testkit::contract;

    use super::*;

    fn head(labels: &[&str], multi_label: bool) -> Box<dyn TaskHead> {
        weighted(labels, multi_label, 0.0, None)
    }

    fn weighted(
        labels: &[&str],
        multi_label: bool,
        label_smoothing: f64,
        class_weights: Option<ClassWeights>,
    ) -> Box<dyn TaskHead> {
        let labels: Vec<String> = labels.iter().map(|&name| name.to_owned()).collect();
        let config =
            SequenceClassificationConfig { labels: labels.clone(), multi_label, label_smoothing, class_weights };
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
    fn contract_holds() {
        contract::check_head::<SequenceClassification>();
    }

    #[test]
    fn several_labels_are_cross_entropy() {
        let head = head(&["bad", "good"], false);
        assert_eq!(head.label_kind(), LabelKind::Class);
        let logits = logits(&[&[0.0, 3.0_f32.ln()], &[0.0, 0.0]]);
        let labels = Labels::Class(vec![1, 0]);
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
        check_loss(&*head, &logits, &Labels::Value(vec![2.0, 2.0]), 2.5);
        let prediction = head.predict(&logits).expect("predicted");
        assert_eq!((prediction.class, prediction.logits), (vec![0, 0], vec![vec![1.0], vec![4.0]]));
        assert_eq!(prediction.probabilities, [[1.0], [1.0]]);
    }

    #[test]
    fn any_labels_are_binary_cross_entropy() {
        let head = head(&["short", "funny"], true);
        assert_eq!(head.label_kind(), LabelKind::Multi);
        let logits = logits(&[&[0.0, 3.0_f32.ln()]]);
        let labels = Labels::Multi(vec![vec![1.0, 0.0]]);
        check_loss(&*head, &logits, &labels, -(0.5_f64.ln() + 0.25_f64.ln()) / 2.0);
        let prediction = head.predict(&logits).expect("predicted");
        assert!((prediction.probabilities[0][0] - 0.5).abs() < 1e-6 && prediction.class == [1]);
    }

    #[test]
    fn rows_count_by_the_weights_of_their_labels() {
        let logits = logits(&[&[0.0, 3.0_f32.ln()], &[0.0, 0.0], &[0.0, 0.0]]);
        let labels = Labels::Class(vec![1, 0, 0]);
        let (sure, even) = (-0.75_f64.ln(), -0.5_f64.ln());
        let each = weighted(&["bad", "good"], false, 0.0, Some(ClassWeights::Each(vec![0.5, 3.0])));
        check_loss(&*each, &logits, &labels, (3.0 * sure + 2.0 * 0.5 * even) / 3.0);
        let mut balanced = weighted(&["bad", "good"], false, 0.0, Some(ClassWeights::Balanced));
        balanced.see_class_rows(&[3, 1]).expect("counted");
        check_loss(&*balanced, &logits, &labels, (2.0 * sure + 2.0 * (2.0 / 3.0) * even) / 3.0);

        let several = weighted(&["short", "funny"], true, 0.0, Some(ClassWeights::Each(vec![2.0, 1.0])));
        let labels = Labels::Multi(vec![vec![1.0, 0.0]]);
        check_loss(&*several, &self::logits(&[&[0.0, 3.0_f32.ln()]]), &labels, (2.0 * even - 0.25_f64.ln()) / 2.0);
    }

    #[test]
    fn label_smoothing_lowers_confidence() {
        let logits = logits(&[&[0.0, 3.0_f32.ln()]]);
        let smooth = weighted(&["bad", "good"], false, 0.2, None);
        let expected = -(0.9 * 0.75_f64.ln() + 0.1 * 0.25_f64.ln());
        check_loss(&*smooth, &logits, &Labels::Class(vec![1]), expected);
        let smooth = weighted(&["short", "funny"], true, 0.2, None);
        let labels = Labels::Multi(vec![vec![1.0, 1.0]]);
        let expected = -(0.5_f64.ln() + 0.9 * 0.75_f64.ln() + 0.1 * 0.25_f64.ln()) / 2.0;
        check_loss(&*smooth, &logits, &labels, expected);
    }

    #[test]
    fn weights_that_do_not_fit_are_refused() {
        let problems = |options: serde_json::Value| {
            let config: SequenceClassificationConfig = serde_json::from_value(options).expect("options");
            let problems = SequenceClassification::check(&config);
            problems.into_iter().map(|problem| format!("{}: {}", problem.key, problem.message)).collect::<Vec<_>>()
        };
        let json = serde_json::json!({ "labels": ["a", "b"], "class_weights": [1.0] });
        assert_eq!(problems(json), ["class_weights: expected 2 numbers, one to a label, found 1"]);
        let json = serde_json::json!({ "labels": ["a"], "class_weights": "balanced" });
        assert_eq!(problems(json), ["class_weights: expected none for a task that predicts a number"]);
        let json = serde_json::json!({ "labels": ["a", "b"], "multi_label": true, "class_weights": "balanced" });
        assert_eq!(problems(json).len(), 1);
        let json = serde_json::json!({ "labels": ["a", "b"], "class_weights": "even" });
        let error = serde_json::from_value::<SequenceClassificationConfig>(json).expect_err("no such word");
        assert!(error.to_string().contains("`balanced` or one number to a label"), "{error}");
    }

    #[test]
    fn labels_that_do_not_fit_are_refused() {
        let head = head(&["bad", "good"], false);
        let logits = logits(&[&[0.0, 1.0], &[0.0, 1.0]]);
        let refused = |labels: &Labels| head.loss(&logits, labels).expect_err("refused").to_string();
        for class in [2, -1, -100] {
            assert_eq!(
                refused(&Labels::Class(vec![0, class])),
                format!("use the labels: row 1 has class {class}, but there are only 2 labels"),
            );
        }
        assert_eq!(
            refused(&Labels::Value(vec![0.0, 1.0])),
            "use the labels: expected one class per row, found one number per row",
        );
        assert_eq!(refused(&Labels::Class(vec![0])), "use the labels: expected shape [2], found [1]",);
    }

    #[test]
    fn hidden_states_that_do_not_fit_are_refused() {
        let hidden = Hidden { pooled: Tensor::from_slice(&[1.0_f32, 2.0, 3.0]).view([1, 3]) };
        let error = head(&["bad", "good"], false).forward(&hidden, Phase::Train).expect_err("too wide");
        assert_eq!(error.to_string(), "use the hidden states: expected shape [1, 2], found [1, 3]");
    }
}
