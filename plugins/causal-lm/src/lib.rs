//! Task head `causal-lm`: the frozen language model on the tokens of given answers.
//!
//! A row is a text and its answer, in one sequence. The loss is that of the answer's tokens only, each predicted from the
//! state of the token before it, as the prompt-tuning notebook of Petals computes it with masked labels (arXiv 2209.01188).
//! Evaluations measure the perplexity of the answers. The head generates no text.
//!
//! This crate does not join texts and answers and does not tokenize.
//!
//! Invariants: it adds no parameter; logits over the vocabulary are computed for the tokens of answers only; the loss is the
//! mean over rows of the mean over their answer's tokens.
//!
//! ```
//! use sepal_causal_lm::CausalLm;
//! use sepal_plugin::{Head, PluginKind, Registry};
//!
//! let mut registry = Registry::new();
//! registry.register::<Head, CausalLm>()?;
//! assert_eq!(registry.catalog().entries(PluginKind::Head).next().map(|entry| entry.name), Some("causal-lm"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use sepal_options::HeadOptions;
use sepal_plugin::{
    AnswerTokens, BuildError, Head, HeadContext, HeadError, HiddenView, Items, LabelKind, Labels, Logits, Options,
    Phase, Plugin, Prediction, Task, TaskHead, Want,
};
use tch::{Kind, Reduction, Tensor};

pub use sepal_options::CausalLmConfig;

/// Output layer of the frozen language model.
#[derive(Debug)]
pub struct CausalLm {
    output: Tensor, // [vocab_size, hidden]
    task: Task,
}

impl Plugin<Head> for CausalLm {
    const NAME: &'static str = CausalLmConfig::NAME;
    type Config = CausalLmConfig;

    fn example() -> CausalLmConfig {
        CausalLmConfig::example()
    }

    fn build(config: CausalLmConfig, cx: &mut HeadContext<'_>) -> Result<Box<dyn TaskHead>, BuildError> {
        let vocabulary: Vec<i64> = (0..cx.embeddings.shape()[0]).collect();
        let output = (cx.lm_rows)(&vocabulary).map_err(BuildError::Other)?;
        Ok(Box::new(Self { output, task: config.task()? }))
    }
}

impl TaskHead for CausalLm {
    fn wants(&self) -> Want {
        Want::Tokens
    }

    /// Returns the log-probability of each token of the answers, `[tokens, 1]`.
    fn forward(&self, hidden: &HiddenView<'_>, _: Phase) -> Result<Logits, HeadError> {
        hidden.states_of_width(self.output.size()[1])?;
        let (mut positions, mut actual, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for (row, answer) in hidden.answers()?.iter().enumerate() {
            let start = hidden.sequences().range(row).start;
            // The first token of a sequence has no token before it.
            let tokens = answer.start.max(1)..answer.end;
            lengths.push(tokens.len());
            for token in tokens {
                positions.push(start + token - 1);
                actual.push(hidden.ids()[start + token]);
            }
        }
        let logits = hidden.select(&positions)?.f_linear(&self.output, None::<Tensor>)?; // [tokens, vocab_size]
        let targets = Tensor::f_from_slice(&actual)?;
        let losses = logits.f_cross_entropy_loss(&targets, None::<Tensor>, Reduction::None, -100, 0.0)?;
        let predicted = Vec::<i64>::try_from(logits.f_detach()?.f_argmax(-1, false)?)?;
        let tokens = Some(AnswerTokens { predicted, actual });
        let values = losses.f_neg()?.f_view([-1, 1])?; // [tokens, 1]
        Ok(Logits::of_items(values, Items { tokens, ..Items::of_lengths(lengths) }))
    }

    fn loss(&self, logits: &Logits, labels: &Labels) -> Result<Tensor, HeadError> {
        let Labels::Text(texts) = labels else {
            return Err(HeadError::Kind { expected: LabelKind::Text, found: labels.kind() });
        };
        let items = logits.require_items()?;
        if texts.len() != items.lengths.len() {
            let (expected, found) = (vec![items.lengths.len() as i64], vec![texts.len() as i64]);
            return Err(HeadError::Shape { what: "labels", expected, found });
        }
        let log_probabilities = logits.values.f_view([-1])?; // [tokens]
        Ok(log_probabilities.f_mul(&items.weights()?)?.f_sum(Kind::Float)?.f_neg()?)
    }

    fn predict(&self, logits: &Logits) -> Result<Prediction, HeadError> {
        let items = logits.require_items()?;
        let tokens = items.tokens.as_ref().ok_or(HeadError::NoItems)?;
        let log_probabilities = Vec::<f32>::try_from(logits.values.f_detach()?.f_view([-1])?)?;
        let probabilities: Vec<f32> = log_probabilities.iter().map(|number| number.exp().min(1.0)).collect();
        let are_right = tokens.predicted.iter().zip(&tokens.actual).map(|(predicted, actual)| predicted == actual);
        let right = items.by_row(are_right, false);
        Ok(Prediction {
            items: items.by_row(tokens.predicted.iter().copied(), 0),
            right_tokens: right.iter().map(|row| row.iter().filter(|is_right| **is_right).count()).collect(),
            probabilities: items.by_row(probabilities, 0.0),
            logits: items.by_row(log_probabilities, 0.0),
            ..Prediction::default()
        })
    }

    fn task(&self) -> &Task {
        &self.task
    }
}

#[cfg(test)]
mod tests {
    use sepal_nn::Parameters;
    use sepal_plugin::{Ragged, TokenBatch};
    use sepal_testkit::contract;
    use tch::Device;

    use super::*;

    /// A head of three tokens with the output layer `[[1, 0], [0, 1], [0, 0]]`.
    fn head() -> Box<dyn TaskHead> {
        let (mut params, embeddings) = (Parameters::new(), Tensor::zeros([3, 2], (Kind::Float, Device::Cpu)));
        let mut cx = HeadContext {
            params: &mut params,
            hidden: 2,
            embeddings: &embeddings,
            tokenize: &|_| Ok(Vec::new()),
            lm_rows: &|ids| {
                assert_eq!(ids, [0, 1, 2], "the vocabulary");
                Ok(Tensor::from_slice(&[1.0_f32, 0.0, 0.0, 1.0, 0.0, 0.0]).view([3, 2]))
            },
            is_restored: true,
            seed: 42,
        };
        let head = CausalLm::build(CausalLmConfig {}, &mut cx).expect("built");
        assert!(params.is_empty(), "nothing of the head is trained");
        head
    }

    /// The sequences `2 0 1` with the answer `0 1`, and `2 1` with the answer `1`.
    fn batch() -> TokenBatch {
        let sequences = Ragged::from_lengths([3, 2]).expect("sequences");
        TokenBatch { answers: Some(vec![1..3, 1..2]), ..TokenBatch::new(vec![2, 0, 1, 2, 1], sequences) }
    }

    fn logits(head: &dyn TaskHead, batch: &TokenBatch) -> Logits {
        // States of the tokens 2, 0 and 1, and of 2 and 1; those of the last tokens are not used.
        let states = Tensor::from_slice(&[4.0_f32, 0.0, 0.0, 0.0, 9.0, 9.0, 4.0, 0.0, 9.0, 9.0]).view([5, 2]);
        let view = HiddenView::new(states, head.wants(), batch).expect("a state for each token");
        head.forward(&view, Phase::Evaluate).expect("forward")
    }

    /// Log-probability of the first of three tokens with the logits `[4, 0, 0]`, and of another one.
    fn expected() -> (f64, f64) {
        let total = (4.0_f64.exp() + 2.0).ln();
        (4.0 - total, -total)
    }

    #[test]
    fn contract_holds() {
        contract::check_head::<CausalLm>();
    }

    #[test]
    fn tokens_of_answers_are_predicted_from_the_tokens_before_them() {
        let (head, batch) = (head(), batch());
        let logits = logits(&*head, &batch);
        let found = Vec::<f32>::try_from(logits.values.view([-1])).expect("numbers");
        let (right, wrong) = expected();
        for (found, expected) in found.iter().zip([right, -(3.0_f64.ln()), wrong]) {
            assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} instead of {expected}");
        }
        let prediction = head.predict(&logits).expect("predicted");
        assert_eq!((prediction.items[1].as_slice(), prediction.items[0][0]), (&[0][..], 0));
        assert_eq!((prediction.right_tokens[1], prediction.logits[0].len()), (0, 2));
    }

    #[test]
    fn loss_is_the_mean_over_rows_of_their_answers() {
        let (head, batch) = (head(), batch());
        let logits = logits(&*head, &batch);
        let labels = Labels::Text(vec!["a b".to_owned(), "b".to_owned()]);
        let loss = head.loss(&logits, &labels).expect("a loss").double_value(&[]);
        let (right, wrong) = expected();
        let expected = -((right - 3.0_f64.ln()) / 2.0 + wrong) / 2.0;
        assert!((loss - expected).abs() < 1e-5, "{loss} instead of {expected}");
        let metrics = head.metrics(&head.predict(&logits).expect("predicted"), &labels).expect("metrics");
        let perplexity = (-(right - 3.0_f64.ln() + wrong) / 3.0).exp();
        assert!(metrics[0].0 == "perplexity" && (metrics[0].1 - perplexity).abs() < 1e-4, "{metrics:?}");
    }

    #[test]
    fn first_token_of_a_sequence_has_no_loss() {
        let batch = TokenBatch { answers: Some(vec![0..3, 1..2]), ..batch() };
        let logits = logits(&*head(), &batch);
        assert_eq!(logits.require_items().expect("tokens").lengths, [2, 1]);
    }

    #[test]
    fn labels_of_another_kind_are_refused() {
        let (head, batch) = (head(), batch());
        let logits = logits(&*head, &batch);
        let refused = |labels: Labels| head.loss(&logits, &labels).expect_err("refused").to_string();
        let text = refused(Labels::Class(vec![0, 1]));
        assert_eq!(text, "use the labels: expected one text per row, found one class per row");
        let text = refused(Labels::Text(vec!["a".to_owned()]));
        assert_eq!(text, "use the labels: expected shape [2], found [1]");
    }
}
