//! Task head `verbalizer`: the frozen language model scores words that stand for the labels.
//!
//! A label has one or several words. Its logit is the mean of its words' logits, and the probabilities are a softmax over
//! the labels, as in OpenPrompt's `ManualVerbalizer` (arXiv 2111.01998). Nothing of the head is trained, so that with a
//! tuning mode that starts as the unchanged model and no steps it is a zero-shot classifier.
//!
//! This crate reads no weights itself and tokenizes no texts of rows.
//!
//! Invariants: it adds no parameter; each word is one token, and no token stands for two labels. Calibration changes
//! predictions, not the loss.
//!
//! ```
//! use sepal_plugin::{Head, PluginKind, Registry};
//! use sepal_verbalizer::Verbalizer;
//!
//! let mut registry = Registry::new();
//! registry.register::<Head, Verbalizer>()?;
//! assert_eq!(registry.catalog().entries(PluginKind::Head).next().map(|entry| entry.name), Some("verbalizer"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::cell::RefCell;

use sepal_options::HeadOptions;
use sepal_plugin::{
    BuildError, Head, HeadContext, HeadError, HiddenView, Labels, Logits, OptionProblem, Options, Phase, Plugin,
    Prediction, Task, TaskHead, class_tensor,
};
use tch::{Kind, Reduction, Tensor};

pub use sepal_options::{Aggregate, VerbalizerConfig};

/// Rows of the language model's head for the words of the labels.
#[derive(Debug)]
pub struct Verbalizer {
    words: Tensor, // [n_words, hidden]
    /// Number of words of each label.
    n_words: Vec<i64>,
    aggregate: Aggregate,
    task: Task,
    calibration_texts: Vec<String>,
    /// Logarithm of the mean probability of each label for the calibration texts, `[n_labels]`.
    prior: RefCell<Option<Tensor>>,
}

impl Plugin<Head> for Verbalizer {
    const NAME: &'static str = VerbalizerConfig::NAME;
    type Config = VerbalizerConfig;

    fn example() -> VerbalizerConfig {
        VerbalizerConfig::example()
    }

    fn check(config: &VerbalizerConfig) -> Vec<OptionProblem> {
        config.check()
    }

    fn build(config: VerbalizerConfig, cx: &mut HeadContext<'_>) -> Result<Box<dyn TaskHead>, BuildError> {
        let ids = config.tokens(cx.tokenize)?;
        Ok(Box::new(Self {
            words: (cx.lm_rows)(&ids.concat()).map_err(BuildError::Other)?,
            n_words: ids.iter().map(|ids| ids.len() as i64).collect(),
            aggregate: config.aggregate,
            task: config.task()?,
            calibration_texts: config.calibrate,
            prior: RefCell::new(None),
        }))
    }
}

impl Verbalizer {
    /// Logit of each row for a label, `[rows]`, from those of its words, `[rows, words]`.
    fn aggregated(&self, words: &Tensor) -> Result<Tensor, HeadError> {
        let words_dim = [1_i64];
        Ok(match self.aggregate {
            Aggregate::Mean => words.f_mean_dim(words_dim.as_slice(), false, Kind::Float)?,
            Aggregate::Sum => words.f_logsumexp(words_dim.as_slice(), false)?,
        })
    }
}

impl TaskHead for Verbalizer {
    fn forward(&self, hidden: &HiddenView<'_>, _: Phase) -> Result<Logits, HeadError> {
        let states = hidden.states_of_width(self.words.size()[1])?; // [rows, hidden]
        let words = states.f_linear(&self.words, None::<Tensor>)?; // [rows, n_words]
        let (mut start, mut labels) = (0, Vec::with_capacity(self.n_words.len()));
        for &n_words in &self.n_words {
            labels.push(self.aggregated(&words.f_narrow(1, start, n_words)?)?);
            start += n_words;
        }
        Ok(Logits::new(Tensor::f_stack(&labels, 1)?)) // [rows, n_labels]
    }

    fn loss(&self, logits: &Logits, labels: &Labels) -> Result<Tensor, HeadError> {
        let classes = class_tensor(labels, self.task.labels().len())?; // [rows]
        Ok(logits.values.f_cross_entropy_loss(&classes, None::<Tensor>, Reduction::Mean, -100, 0.0)?)
    }

    fn calibration_texts(&self) -> &[String] {
        &self.calibration_texts
    }

    fn calibrate(&self, logits: &Logits) -> Result<(), HeadError> {
        let probabilities = logits.values.f_detach()?.f_softmax(-1, Kind::Float)?; // [texts, n_labels]
        let mean = probabilities.f_mean_dim([0_i64].as_slice(), false, Kind::Float)?; // [n_labels]
        // A label of probability 0 would get an infinite logit.
        *self.prior.borrow_mut() = Some(mean.f_clamp_min(f64::from(f32::MIN_POSITIVE))?.f_log()?);
        Ok(())
    }

    fn predict(&self, logits: &Logits) -> Result<Prediction, HeadError> {
        match self.prior.borrow().as_ref() {
            Some(prior) => Prediction::of_classes(&logits.values.f_detach()?.f_sub(prior)?),
            None => Prediction::of_classes(&logits.values),
        }
    }

    fn task(&self) -> &Task {
        &self.task
    }
}

#[cfg(test)]
mod tests {
    use sepal_nn::Parameters;
    use sepal_plugin::{Ragged, TokenBatch, Want};
    use sepal_testkit::contract;
    use tch::Device;

    use super::*;

    /// Builds the head for a model whose own head has the row `[i, 1]` for token `i`, with a token for each word.
    fn build(config: VerbalizerConfig) -> Result<Box<dyn TaskHead>, BuildError> {
        let (mut params, embeddings) = (Parameters::new(), Tensor::zeros([8, 2], (Kind::Float, Device::Cpu)));
        let vocabulary = ["a", "bad", "awful", "good", "fine", "negative", "positive"];
        let mut cx = HeadContext {
            params: &mut params,
            hidden: 2,
            embeddings: &embeddings,
            tokenize: &|text| {
                let word = |word: &str| vocabulary.iter().position(|known| *known == word).map(|id| id as i64);
                text.split_whitespace().map(|text| word(text).ok_or_else(|| "unknown".into())).collect()
            },
            lm_rows: &|ids| {
                let rows: Vec<f32> = ids.iter().flat_map(|&id| [id as f32, 1.0]).collect();
                Ok(Tensor::from_slice(&rows).view([-1, 2]))
            },
            is_restored: true,
            seed: 42,
        };
        let head = Verbalizer::build(config, &mut cx)?;
        assert!(params.is_empty(), "nothing of the head is trained");
        Ok(head)
    }

    fn config(words: &[(&str, &[&str])], aggregate: Aggregate) -> VerbalizerConfig {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let words = words.iter().map(|(label, words)| ((*label).to_owned(), owned(words))).collect();
        VerbalizerConfig { words, aggregate, ..Verbalizer::example() }
    }

    fn logits(head: &dyn TaskHead, states: &[f32]) -> Logits {
        let rows = states.len() / 2;
        let batch = TokenBatch::new(vec![0; rows], Ragged::from_lengths(vec![1; rows]).expect("rows"));
        let states = Tensor::from_slice(states).view([-1, 2]);
        let view = HiddenView::new(states, Want::LastOfRows, &batch).expect("a state for each row");
        head.forward(&view, Phase::Evaluate).expect("forward")
    }

    fn numbers(logits: &Logits) -> Vec<Vec<f32>> {
        Vec::try_from(logits.values.shallow_clone()).expect("numbers")
    }

    #[test]
    fn contract_holds() {
        contract::check_head::<Verbalizer>();
    }

    #[test]
    fn logits_are_means_or_sums_over_the_words() {
        let words: [(&str, &[&str]); 2] = [("negative", &["bad", "awful"]), ("positive", &["good"])];
        let mean = build(config(&words, Aggregate::Mean)).expect("built");
        assert_eq!(
            numbers(&logits(&*mean, &[2.0, 1.0])),
            [[4.0, 7.0]],
            "mean of 2 * 1 + 1 and 2 * 2 + 1, and 2 * 3 + 1"
        );
        let sum = build(config(&words, Aggregate::Sum)).expect("built");
        let found = numbers(&logits(&*sum, &[2.0, 1.0]));
        let expected = (3.0_f32.exp() + 5.0_f32.exp()).ln();
        assert!((found[0][0] - expected).abs() < 1e-5 && (found[0][1] - 7.0).abs() < 1e-5, "{found:?}");
    }

    #[test]
    fn names_are_the_words_of_other_labels() {
        let words: [(&str, &[&str]); 1] = [("negative", &["bad"])];
        let head = build(config(&words, Aggregate::Mean)).expect("built");
        assert_eq!(numbers(&logits(&*head, &[1.0, 0.0])), [[1.0, 6.0]]);
        let text = build(config(&[("positive", &["splendid"])], Aggregate::Mean)).err().expect("unknown").to_string();
        assert!(text.contains("of the label `positive`, tokenize `splendid`: unknown"), "{text}");
    }

    #[test]
    fn calibration_divides_by_the_probabilities_of_empty_texts() {
        let words: [(&str, &[&str]); 2] = [("negative", &["bad"]), ("positive", &["good"])];
        let head = build(config(&words, Aggregate::Mean)).expect("built");
        assert_eq!(head.calibration_texts(), ["N/A"]);
        let row = logits(&*head, &[0.5, 0.0]);
        let plain = head.predict(&row).expect("predicted");
        assert_eq!(plain.class, [1]);
        // The text without content has the same logits, so that both labels become equally probable.
        head.calibrate(&logits(&*head, &[0.5, 0.0])).expect("calibrated");
        let same = head.predict(&row).expect("predicted");
        assert!((same.probabilities[0][0] - 0.5).abs() < 1e-6, "{same:?}");
        // Of two texts the mean probability counts.
        head.calibrate(&logits(&*head, &[0.5, 0.0, 0.0, 0.0])).expect("calibrated");
        let p = f64::from(plain.probabilities[0][0]);
        let (prior, found) = ((p + 0.5) / 2.0, head.predict(&row).expect("predicted"));
        let expected = p / prior / (p / prior + (1.0 - p) / (1.0 - prior));
        assert!((f64::from(found.probabilities[0][0]) - expected).abs() < 1e-6, "{found:?}");
        let loss = head.loss(&row, &Labels::Class(vec![1])).expect("a loss").double_value(&[]);
        assert!((loss + (1.0 - p).ln()).abs() < 1e-6, "the loss is not calibrated");
    }

    #[test]
    fn words_of_unknown_labels_are_problems() {
        let problems = Verbalizer::check(&config(&[("neutral", &["fine"]), ("positive", &[])], Aggregate::Mean));
        let messages: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
        let expected =
            ["expected words of the labels, found words of `neutral`", "expected at least one word of `positive`"];
        assert_eq!(messages, expected);
    }

    #[test]
    fn label_words_in_common_are_refused() {
        let words: [(&str, &[&str]); 2] = [("negative", &["bad", "fine"]), ("positive", &["fine"])];
        let error = build(config(&words, Aggregate::Mean)).err().expect("a word twice");
        assert!(error.to_string().ends_with("`negative` and `positive` have a token in common"), "{error}");
    }
}
