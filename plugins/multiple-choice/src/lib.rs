//! Task head `multiple-choice`: one score for each option of a row, and a softmax over the row's options.
//!
//! Each option is a sequence of its own, with the text before it (arXiv 1810.12885, SWAG). Rows may have different numbers of
//! options.
//!
//! This crate does not join texts and options and does not read files.
//!
//! Invariants: it adds one parameter, `score.weight [1, hidden]`; the options of a row are compared with each other only.
//!
//! ```
//! use sepal_multiple_choice::MultipleChoice;
//! use sepal_plugin::{Head, PluginKind, Registry};
//!
//! let mut registry = Registry::new();
//! registry.register::<Head, MultipleChoice>()?;
//! assert_eq!(registry.catalog().entries(PluginKind::Head).next().map(|entry| entry.name), Some("multiple-choice"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use sepal_nn::init::{normal, rng};
use sepal_options::HeadOptions;
use sepal_plugin::{
    BuildError, Head, HeadContext, HeadError, HiddenView, Items, LabelKind, Labels, Logits, Options, Phase, Plugin,
    Pooling, Prediction, Task, TaskHead, Want,
};
use tch::{Kind, Reduction, Tensor};

pub use sepal_options::MultipleChoiceConfig;

/// Linear layer without bias from the hidden state of an option to its score, like transformers' `*ForMultipleChoice`.
#[derive(Debug)]
pub struct MultipleChoice {
    score: Tensor, // [1, hidden]
    pooling: Pooling,
    task: Task,
}

/// Standard deviation of the initial weights.
const STD: f64 = 0.02;

impl Plugin<Head> for MultipleChoice {
    const NAME: &'static str = MultipleChoiceConfig::NAME;
    type Config = MultipleChoiceConfig;

    fn example() -> MultipleChoiceConfig {
        MultipleChoiceConfig::example()
    }

    fn build(config: MultipleChoiceConfig, cx: &mut HeadContext<'_>) -> Result<Box<dyn TaskHead>, BuildError> {
        let score = config.score(cx.hidden);
        let init = normal(&score.signed_shape(), STD, &mut rng(cx.seed, &score.name))?;
        Ok(Box::new(Self { score: cx.params.add(score.name, &init)?, pooling: config.pooling, task: config.task()? }))
    }
}

impl TaskHead for MultipleChoice {
    fn wants(&self) -> Want {
        self.pooling.wants()
    }

    fn forward(&self, hidden: &HiddenView<'_>, _: Phase) -> Result<Logits, HeadError> {
        let states = hidden.states_of_width(self.score.size()[1])?; // [options, hidden]
        let scores = states.f_linear(&self.score, None::<Tensor>)?; // [options, 1]
        Ok(Logits::of_items(scores, Items::of_lengths(hidden.groups()?.lengths().collect())))
    }

    fn loss(&self, logits: &Logits, labels: &Labels) -> Result<Tensor, HeadError> {
        let items = logits.require_items()?;
        let chosen = choices(labels, items)?;
        let (mut start, mut losses) = (0, Vec::with_capacity(chosen.len()));
        for (&length, class) in items.lengths.iter().zip(chosen) {
            let row = logits.values.f_narrow(0, start, length as i64)?.f_view([1, length as i64])?; // [1, options]
            let target = Tensor::f_from_slice(&[*class])?;
            losses.push(row.f_cross_entropy_loss(&target, None::<Tensor>, Reduction::Sum, -100, 0.0)?);
            start += length as i64;
        }
        Ok(Tensor::f_stack(&losses, 0)?.f_mean(Kind::Float)?) // [rows] -> []
    }

    fn predict(&self, logits: &Logits) -> Result<Prediction, HeadError> {
        let items = logits.require_items()?;
        let scores = Vec::<f32>::try_from(logits.values.f_detach()?.f_view([-1])?)?;
        let logits = items.by_row(scores, 0.0);
        let probabilities: Vec<Vec<f32>> = logits.iter().map(|row| softmax(row)).collect();
        Ok(Prediction {
            class: probabilities.iter().map(|row| largest(row)).collect(),
            probabilities,
            logits,
            ..Prediction::default()
        })
    }

    fn count_correct(&self, logits: &Logits, labels: &Labels) -> Result<Option<usize>, HeadError> {
        let predicted = self.predict(logits)?.class;
        let chosen = choices(labels, logits.require_items()?)?;
        Ok(Some(predicted.iter().zip(chosen).filter(|(predicted, chosen)| predicted == chosen).count()))
    }

    fn task(&self) -> &Task {
        &self.task
    }
}

/// Indices of the right options, which exist.
fn choices<'a>(labels: &'a Labels, items: &Items) -> Result<&'a [i64], HeadError> {
    let Labels::Choice(chosen) = labels else {
        return Err(HeadError::Kind { expected: LabelKind::Choice, found: labels.kind() });
    };
    if chosen.len() != items.lengths.len() {
        let (expected, found) = (vec![items.lengths.len() as i64], vec![chosen.len() as i64]);
        return Err(HeadError::Shape { what: "labels", expected, found });
    }
    let mut pairs = chosen.iter().zip(&items.lengths).enumerate();
    match pairs.find(|(_, (class, length))| !(0..**length as i64).contains(*class)) {
        Some((row, (&class, &n_labels))) => Err(HeadError::Class { row, class, n_labels }),
        None => Ok(chosen),
    }
}

fn softmax(scores: &[f32]) -> Vec<f32> {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = scores.iter().map(|&score| f64::from(score - largest).exp()).collect();
    let total: f64 = powers.iter().sum();
    powers.into_iter().map(|power| (power / total) as f32).collect()
}

/// Index of the largest number, the first of equals.
fn largest(numbers: &[f32]) -> i64 {
    let best = (0..numbers.len()).reduce(|best, index| if numbers[index] > numbers[best] { index } else { best });
    best.unwrap_or(0) as i64
}

#[cfg(test)]
mod tests {
    use sepal_testkit::contract;

    use super::*;

    fn head() -> MultipleChoice {
        let score = Tensor::from_slice(&[1.0_f32]).view([1, 1]);
        MultipleChoice { score, pooling: Pooling::Last, task: Task::new(LabelKind::Choice, Vec::new()) }
    }

    fn logits(scores: &[f32], lengths: &[usize]) -> Logits {
        Logits::of_items(Tensor::from_slice(scores).view([-1, 1]), Items::of_lengths(lengths.to_vec()))
    }

    #[test]
    fn contract_holds() {
        contract::check_head::<MultipleChoice>();
    }

    #[test]
    fn options_of_a_row_are_compared() {
        let logits = logits(&[0.0, 3.0_f32.ln(), 5.0, 5.0, 5.0], &[2, 3]);
        let prediction = head().predict(&logits).expect("predicted");
        assert_eq!(prediction.class, [1, 0]);
        assert!((prediction.probabilities[0][1] - 0.75).abs() < 1e-6 && prediction.probabilities[1].len() == 3);
        let labels = Labels::Choice(vec![1, 2]);
        let loss = head().loss(&logits, &labels).expect("a loss").double_value(&[]);
        assert!((loss + (0.75_f64.ln() - 3.0_f64.ln()) / 2.0).abs() < 1e-6, "{loss}");
        assert_eq!(head().count_correct(&logits, &labels).expect("counted"), Some(1));
    }

    #[test]
    fn labels_beyond_the_options_are_refused() {
        let logits = logits(&[0.0; 5], &[2, 3]);
        let refused = |labels: Labels| head().loss(&logits, &labels).expect_err("refused").to_string();
        let text = refused(Labels::Choice(vec![2, 2]));
        assert_eq!(text, "use the labels: row 0 has class 2, but there are only 2 labels");
        assert_eq!(refused(Labels::Choice(vec![0])), "use the labels: expected shape [2], found [1]");
        let text = refused(Labels::Class(vec![0, 1]));
        assert_eq!(text, "use the labels: expected one of the options of each row, found one class per row");
        assert!(matches!(head().predict(&Logits::new(Tensor::from_slice(&[0.0_f32]))), Err(HeadError::NoItems)));
    }
}
