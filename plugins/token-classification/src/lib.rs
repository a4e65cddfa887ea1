//! Task head `token-classification`: one linear layer on the first token of each word.
//!
//! Words are the parts of a text between white space. A word begins at the first token that covers a byte of it; its other
//! tokens are not used, as in transformers' examples. Tags are of the BIO scheme.
//!
//! This crate does not divide files into words and does not tokenize.
//!
//! Invariants: it adds two parameters, `score.weight [n_labels, hidden]` and `score.bias [n_labels]`; a word without a token,
//! for example one that truncation removed, is predicted as `O` and has no loss; the loss is the mean over rows of the mean
//! over their words.
//!
//! ```
//! use sepal_plugin::{Head, PluginKind, Registry};
//! use sepal_token_classification::TokenClassification;
//!
//! let mut registry = Registry::new();
//! registry.register::<Head, TokenClassification>()?;
//! let names: Vec<&str> = registry.catalog().entries(PluginKind::Head).map(|entry| entry.name).collect();
//! assert_eq!(names, ["token-classification"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use sepal_nn::init::{normal, rng};
use sepal_options::HeadOptions;
use sepal_plugin::{
    BuildError, Head, HeadContext, HeadError, HiddenView, Items, LabelKind, Labels, Logits, OptionProblem, Options,
    Phase, Plugin, Prediction, Task, TaskHead, Want, label_tensor,
};
use tch::{Device, Kind, Reduction, Tensor};

pub use sepal_options::TokenClassificationConfig;

/// Linear layer with a bias from the hidden state of a word to the logits of its tag, like transformers'
/// `*ForTokenClassification`.
#[derive(Debug)]
pub struct TokenClassification {
    weight: Tensor, // [n_labels, hidden]
    bias: Tensor,   // [n_labels]
    task: Task,
    /// Index of the tag `O`.
    outside: i64,
}

/// Standard deviation of the initial weights.
const STD: f64 = 0.02;

impl Plugin<Head> for TokenClassification {
    const NAME: &'static str = TokenClassificationConfig::NAME;
    type Config = TokenClassificationConfig;

    fn example() -> TokenClassificationConfig {
        TokenClassificationConfig::example()
    }

    fn check(config: &TokenClassificationConfig) -> Vec<OptionProblem> {
        config.check()
    }

    fn build(config: TokenClassificationConfig, cx: &mut HeadContext<'_>) -> Result<Box<dyn TaskHead>, BuildError> {
        let (weight, bias) = (config.weight(cx.hidden), config.bias());
        let initial_weight = normal(&weight.signed_shape(), STD, &mut rng(cx.seed, &weight.name))?;
        let initial_bias = Tensor::f_zeros(bias.signed_shape(), (Kind::Float, Device::Cpu))?;
        let outside = config.labels.iter().position(|label| label == TokenClassificationConfig::OUTSIDE);
        let missing = || BuildError::Option { key: "labels", message: "expected the tag `O` among them".to_owned() };
        Ok(Box::new(Self {
            weight: cx.params.add(weight.name, &initial_weight)?,
            bias: cx.params.add(bias.name, &initial_bias)?,
            outside: outside.ok_or_else(missing)? as i64,
            task: config.task()?,
        }))
    }
}

impl TaskHead for TokenClassification {
    fn wants(&self) -> Want {
        Want::Tokens
    }

    fn forward(&self, hidden: &HiddenView<'_>, _: Phase) -> Result<Logits, HeadError> {
        hidden.states_of_width(self.weight.size()[1])?;
        let (mut positions, mut indices, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        let mut n_words = 0;
        for (row, text) in hidden.texts()?.iter().enumerate() {
            let start = hidden.sequences().range(row).start;
            let first_tokens = text.first_tokens();
            for (word, token) in first_tokens.iter().enumerate() {
                if let Some(token) = token {
                    positions.push(start + token);
                    indices.push(n_words + word);
                }
            }
            n_words += first_tokens.len();
            lengths.push(first_tokens.len());
        }
        let words = hidden.select(&positions)?; // [words, hidden]
        let values = words.f_linear(&self.weight, Some(&self.bias))?; // [words, n_labels]
        Ok(Logits::of_items(values, Items { lengths, indices, tokens: None }))
    }

    fn loss(&self, logits: &Logits, labels: &Labels) -> Result<Tensor, HeadError> {
        let Labels::Tags(rows) = labels else {
            return Err(HeadError::Kind { expected: LabelKind::Tags, found: labels.kind() });
        };
        let items = logits.require_items()?;
        check_words(rows, items)?;
        check_tags(rows, self.task.labels().len())?;
        let indices: Vec<i64> = items.indices.iter().map(|&index| index as i64).collect();
        let targets = label_tensor(labels)?.f_index_select(0, &Tensor::f_from_slice(&indices)?)?; // [words]
        let each = logits.values.f_cross_entropy_loss(&targets, None::<Tensor>, Reduction::None, -100, 0.0)?;
        Ok(each.f_mul(&items.weights()?)?.f_sum(Kind::Float)?) // [words] -> []
    }

    fn predict(&self, logits: &Logits) -> Result<Prediction, HeadError> {
        let items = logits.require_items()?;
        let values = logits.values.f_detach()?;
        let (largest, tags) = values.f_max_dim(-1, false)?; // [words]
        let (probabilities, _) = values.f_softmax(-1, Kind::Float)?.f_max_dim(-1, false)?;
        Ok(Prediction {
            items: items.by_row(Vec::<i64>::try_from(tags)?, self.outside),
            probabilities: items.by_row(Vec::<f32>::try_from(probabilities)?, 0.0),
            logits: items.by_row(Vec::<f32>::try_from(largest)?, 0.0),
            ..Prediction::default()
        })
    }

    fn task(&self) -> &Task {
        &self.task
    }
}

/// Refuses labels of other words than those of the logits.
fn check_words(rows: &[Vec<i64>], items: &Items) -> Result<(), HeadError> {
    let found: Vec<i64> = rows.iter().map(|row| row.len() as i64).collect();
    let expected: Vec<i64> = items.lengths.iter().map(|&length| length as i64).collect();
    if found == expected { Ok(()) } else { Err(HeadError::Shape { what: "labels", expected, found }) }
}

/// Refuses tags without a logit, including the index that cross entropy would ignore.
fn check_tags(rows: &[Vec<i64>], n_labels: usize) -> Result<(), HeadError> {
    for (row, tags) in rows.iter().enumerate() {
        if let Some(&class) = tags.iter().find(|tag| !(0..n_labels as i64).contains(*tag)) {
            return Err(HeadError::Class { row, class, n_labels });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sepal_nn::Parameters;
    use sepal_plugin::{Ragged, TokenBatch, TokenText};
    use sepal_testkit::contract;

    use super::*;

    /// A head with the tags `O`, `B-X` and `I-X` whose weights are those of `weight`.
    fn head(weight: &[f32; 3]) -> Box<dyn TaskHead> {
        let (mut params, embeddings) = (Parameters::new(), Tensor::zeros([1, 1], (Kind::Float, Device::Cpu)));
        let mut cx = HeadContext {
            params: &mut params,
            hidden: 1,
            embeddings: &embeddings,
            tokenize: &|_| Ok(Vec::new()),
            lm_rows: &|_| Err("it needs no rows".into()),
            is_restored: false,
            seed: 42,
        };
        let labels = ["O", "B-X", "I-X"].map(str::to_owned).to_vec();
        let head = TokenClassification::build(TokenClassificationConfig { labels }, &mut cx).expect("built");
        let numbers = Tensor::from_slice(weight).view([3, 1]);
        let mut score = params.get("score.weight").expect("added").shallow_clone();
        tch::no_grad(|| score.copy_(&numbers));
        head
    }

    /// Rows `ab c` (the tokens `a`, `b` and ` c`) and `d e`, whose last word was cut off.
    fn batch() -> TokenBatch {
        let text = |text: &str, bytes: &[(usize, usize)]| TokenText {
            text: text.to_owned(),
            bytes: bytes.iter().map(|&(start, end)| start..end).collect(),
        };
        TokenBatch {
            texts: Some(vec![text("ab c", &[(0, 1), (1, 2), (2, 4)]), text("d e", &[(0, 1)])]),
            ..TokenBatch::new(vec![0; 4], Ragged::from_lengths([3, 1]).expect("rows"))
        }
    }

    fn logits(head: &dyn TaskHead, batch: &TokenBatch) -> Logits {
        let states = Tensor::from_slice(&[1.0_f32, 9.0, 2.0, -1.0]).view([4, 1]);
        let view = HiddenView::new(states, head.wants(), batch).expect("a state for each token");
        head.forward(&view, Phase::Evaluate).expect("forward")
    }

    #[test]
    fn contract_holds() {
        contract::check_head::<TokenClassification>();
    }

    #[test]
    fn words_have_the_logits_of_their_first_token() {
        let (head, batch) = (head(&[0.0, 1.0, 0.5]), batch());
        let logits = logits(&*head, &batch);
        let values = Vec::<Vec<f32>>::try_from(logits.values.detach()).expect("numbers");
        assert_eq!(values, [[0.0, 1.0, 0.5], [0.0, 2.0, 1.0], [0.0, -1.0, -0.5]]);
        let items = logits.require_items().expect("words");
        assert_eq!((items.lengths.as_slice(), items.indices.as_slice()), (&[2, 2][..], &[0, 1, 2][..]));
        let prediction = head.predict(&logits).expect("predicted");
        assert_eq!(prediction.items, [[1, 1], [0, 0]], "a word without a token is outside of entities");
        assert_eq!((prediction.logits[1].as_slice(), prediction.rows()), (&[0.0, 0.0][..], 2));
    }

    #[test]
    fn loss_is_the_mean_over_rows_of_their_words() {
        let (head, batch) = (head(&[0.0, 0.0, 0.0]), batch());
        let logits = logits(&*head, &batch);
        let labels = Labels::Tags(vec![vec![1, 2], vec![0, 1]]);
        let loss = head.loss(&logits, &labels).expect("a loss").double_value(&[]);
        assert!((loss - 3.0_f64.ln()).abs() < 1e-6, "{loss}");
        let sharp = self::logits(&*self::head(&[0.0, 1.0, -30.0]), &batch);
        let loss = head.loss(&sharp, &Labels::Tags(vec![vec![1, 1], vec![2, 0]])).expect("a loss").double_value(&[]);
        let loss_of = |logit: f64| (1.0 + (-logit).exp()).ln();
        assert!((loss - (loss_of(1.0) + loss_of(2.0)) / 4.0).abs() < 1e-6, "{loss}");
    }

    #[test]
    fn labels_that_do_not_fit_are_refused() {
        let (head, batch) = (head(&[0.0, 0.0, 0.0]), batch());
        let logits = logits(&*head, &batch);
        let refused = |labels: Labels| head.loss(&logits, &labels).expect_err("refused").to_string();
        let text = refused(Labels::Tags(vec![vec![1], vec![0, 1]]));
        assert_eq!(text, "use the labels: expected shape [2, 2], found [1, 2]");
        let text = refused(Labels::Tags(vec![vec![1, 0], vec![0, -100]]));
        assert_eq!(text, "use the labels: row 1 has class -100, but there are only 3 labels");
        let text = refused(Labels::Class(vec![1, 0]));
        assert_eq!(text, "use the labels: expected one class per word, found one class per row");
        let without = TokenBatch { texts: None, ..batch };
        let states = Tensor::zeros([4, 1], (Kind::Float, Device::Cpu));
        let view = HiddenView::new(states, Want::Tokens, &without).expect("a state for each token");
        assert_eq!(
            head.forward(&view, Phase::Train).expect_err("no texts").to_string(),
            "read the batch: it has no texts"
        );
    }

    #[test]
    fn tags_of_another_scheme_are_problems() {
        let problems = |labels: &[&str]| {
            let labels = labels.iter().map(|&label| label.to_owned()).collect();
            let problems = TokenClassification::check(&TokenClassificationConfig { labels });
            problems.into_iter().map(|problem| problem.message).collect::<Vec<_>>()
        };
        assert_eq!(problems(&["O", "B-X", "I-X"]), [] as [&str; 0]);
        assert_eq!(problems(&["B-X", "I-X"]), ["expected the tag `O` among them"]);
        assert_eq!(problems(&["O", "I-X"]), ["expected `B-X` beside `I-X`"]);
        assert_eq!(problems(&["O", "noun"]), ["expected `O`, `B-TYPE` or `I-TYPE`, found `noun`"]);
    }
}
