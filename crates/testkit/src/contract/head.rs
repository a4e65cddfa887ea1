use sepal_core::{Ragged, RowForm, TokenBatch, TokenText, Want};
use sepal_nn::Parameters;
use sepal_plugin::{Head, HeadContext, HiddenView, LabelKind, Labels, Logits, Phase, Plugin, Prediction, TaskHead};
use tch::{Kind, Tensor};

use super::{OTHER_SEED, SEED, check_gradients, check_options, check_start_and_files, numbers, parameters};

const ROWS: usize = 6;
const HIDDEN: i64 = 8;
const VOCAB: i64 = 256;

/// Checks a task head.
pub fn check_head<P: Plugin<Head>>() {
    check_options::<Head, P>();
    let name = P::NAME;
    let (params, head) = build::<P>(SEED);
    let (again, _) = build::<P>(SEED);
    let (mut other, loaded) = build::<P>(OTHER_SEED);
    assert!(!head.task().metrics().is_empty(), "`{name}`: a task has metrics");

    let input = Input::new(&*head);
    check_training(name, &params, &*head, &input);
    check_predictions(name, &*head, &input);
    check_row_independence(name, &*head, &input);
    check_start_and_files(name, &params, &again, &mut other);
    let (expected, found) = (evaluate(&*head, &input), evaluate(&*loaded, &input));
    assert_eq!(expected.values, found.values, "`{name}`: a loaded head computes what the saved one did");
}

/// Builds the head for a model with a tokenizer of words, of which each is one token.
fn build<P: Plugin<Head>>(seed: u64) -> (Parameters, Box<dyn TaskHead>) {
    let mut params = parameters();
    let matrix = numbers(&[VOCAB, HIDDEN]);
    let mut cx = HeadContext {
        params: &mut params,
        hidden: HIDDEN as usize,
        embeddings: &matrix,
        tokenize: &|text| Ok(text.split_whitespace().map(token).collect()),
        lm_rows: &|ids| Ok(matrix.f_index_select(0, &Tensor::f_from_slice(ids)?)?),
        is_restored: false,
        seed,
    };
    let head = P::build(P::example(), &mut cx).expect("the example builds");
    (params, head)
}

/// Token of a word: a hash, which differs for most words.
fn token(word: &str) -> i64 {
    word.bytes().fold(7, |hash, byte| (hash * 31 + i64::from(byte)) % 251)
}

/// A batch in the form that the head's task needs, its hidden states, and labels.
struct Input {
    batch: TokenBatch,
    states: Tensor,
    labels: Labels,
}

impl Input {
    fn new(head: &dyn TaskHead) -> Self {
        let batch = batch(head.task().row_form());
        let states = numbers(&[head.wants().positions(0, &batch.sequences) as i64, HIDDEN]);
        let labels = labels(head, &batch);
        Self { batch, states, labels }
    }

    /// The part of one row.
    fn row(&self, want: Want, row: usize) -> Self {
        let sequences: Vec<usize> = self.batch.sequences_of(row).collect();
        let tokens: Vec<usize> = sequences.iter().flat_map(|&one| self.batch.sequences.range(one)).collect();
        let pick = |positions: &[usize]| {
            let positions: Vec<i64> = positions.iter().map(|&position| position as i64).collect();
            self.states.index_select(0, &Tensor::from_slice(&positions))
        };
        let batch = TokenBatch {
            ids: tokens.iter().map(|&token| self.batch.ids[token]).collect(),
            sequences: self.batch.sequences.select(&sequences),
            groups: self.batch.groups.as_ref().map(|groups| groups.select(&[row])),
            texts: self.batch.texts.as_ref().map(|texts| vec![texts[row].clone()]),
            answers: self.batch.answers.as_ref().map(|answers| vec![answers[row].clone()]),
        };
        let states = pick(if want == Want::Tokens { &tokens } else { &sequences });
        Self { batch, states, labels: self.labels.select(&[row]) }
    }

    fn view(&self, states: Tensor, want: Want) -> HiddenView<'_> {
        HiddenView::new(states, want, &self.batch).expect("there is a state for each position")
    }
}

fn batch(form: RowForm) -> TokenBatch {
    let groups = (form == RowForm::Options).then(|| ragged((0..ROWS).map(|row| 2 + row % 2)));
    let n_sequences = groups.as_ref().map_or(ROWS, Ragged::n_tokens);
    let sequences = ragged((0..n_sequences).map(|sequence| 3 + sequence % 2));
    let ids = (0..sequences.n_tokens() as i64).map(|token| token * 37 % VOCAB).collect();
    // Of the words `w0 w1 w2 w3`, the last has no token in sequences of three.
    let words = |length: usize| TokenText {
        text: "w0 w1 w2 w3".to_owned(),
        bytes: (0..length).map(|token| token * 3..token * 3 + 2).collect(),
    };
    let texts = (form == RowForm::Words).then(|| sequences.lengths().map(words).collect());
    let answers = (form == RowForm::Answer).then(|| sequences.lengths().map(|length| 2..length).collect());
    TokenBatch { ids, sequences, groups, texts, answers }
}

fn ragged(lengths: impl Iterator<Item = usize>) -> Ragged {
    Ragged::from_lengths(lengths).expect("there are rows")
}

/// Returns labels of the head's kind, with every label among them.
fn labels(head: &dyn TaskHead, batch: &TokenBatch) -> Labels {
    let n_labels = head.label_names().len() as i64;
    let rows = 0..ROWS as i64;
    match head.label_kind() {
        LabelKind::Class => Labels::Class(rows.map(|row| row % n_labels).collect()),
        LabelKind::Value => Labels::Value(Vec::try_from(numbers(&[ROWS as i64])).expect("fp32 `[rows]`")),
        LabelKind::Multi => {
            let hot = numbers(&[ROWS as i64, n_labels]).ge(0.0).to_kind(Kind::Float);
            Labels::Multi(Vec::try_from(hot).expect("fp32 `[rows, n_labels]`"))
        }
        LabelKind::Choice => {
            Labels::Choice((0..ROWS).map(|row| (row % batch.sequences_of(row).len()) as i64).collect())
        }
        LabelKind::Tags => Labels::Tags(rows.map(|row| (0..4).map(|word| (row + word) % n_labels).collect()).collect()),
        LabelKind::Text => Labels::Text(vec!["an answer".to_owned(); ROWS]),
    }
}

/// Checks the gradients of the hidden states and of the head's parameters.
fn check_training(name: &str, params: &Parameters, head: &dyn TaskHead, input: &Input) {
    assert_ne!(head.wants(), Want::All, "`{name}`: a head reads no prefix, which stays between servers");
    let states = input.states.copy().set_requires_grad(true);
    let view = input.view(states.shallow_clone(), head.wants());
    let logits = head.forward(&view, Phase::Train).expect("forward");
    let size = logits.values.size();
    match &logits.items {
        None => {
            let expected = [ROWS as i64, head.label_names().len() as i64];
            assert_eq!(size, expected, "`{name}`: logits are [rows, n_labels]");
        }
        Some(items) => {
            assert_eq!(items.lengths.len(), ROWS, "`{name}`: every row has a number of items");
            assert_eq!(items.indices.len() as i64, size[0], "`{name}`: every row of the logits has an item");
        }
    }
    let loss = head.loss(&logits, &input.labels).expect("a loss");
    assert!(loss.size().is_empty(), "`{name}`: the loss is a scalar");
    assert!(loss.double_value(&[]).is_finite(), "`{name}`: the loss is a number");
    loss.backward();
    assert!(states.grad().defined(), "`{name}`: the hidden states get a gradient, or no prompt would learn");
    check_gradients(name, params);
}

fn check_predictions(name: &str, head: &dyn TaskHead, input: &Input) {
    let logits = evaluate(head, input);
    if !head.calibration_texts().is_empty() {
        head.calibrate(&logits).expect("calibrated");
    }
    let prediction = head.predict(&logits).expect("a prediction");
    let Prediction { class, probabilities, logits, items, right_tokens, .. } = &prediction;
    assert_eq!((probabilities.len(), logits.len()), (ROWS, ROWS), "`{name}`: one entry per row");
    for row in 0..ROWS {
        let (probabilities, logits) = (&probabilities[row], &logits[row]);
        assert_eq!(probabilities.len(), logits.len(), "`{name}`: a probability for each logit");
        let sum: f32 = probabilities.iter().sum();
        let is_normalized = !head.task().is_normalized() || (sum - 1.0).abs() < 1e-5;
        assert!(is_normalized, "`{name}`: the probabilities of row {row} add up to one");
        let all = probabilities.iter().all(|probability| (0.0..=1.0).contains(probability));
        assert!(all, "`{name}`: the probabilities of row {row} lie between zero and one");
        check_logits(name, head.label_kind(), probabilities, logits);
    }
    let n_labels = head.label_names().len();
    match head.task().row_form() {
        RowForm::Text => {
            assert!(n_labels > 0, "`{name}`: there is at least one label");
            check_classes(name, class, probabilities, |_| n_labels);
        }
        RowForm::Options => check_classes(name, class, probabilities, |row| input.batch.sequences_of(row).len()),
        RowForm::Words => {
            assert!(items.len() == ROWS && items.iter().all(|tags| tags.len() == 4), "`{name}`: a tag for each word");
            let exist = items.iter().flatten().all(|tag| (0..n_labels as i64).contains(tag));
            assert!(exist, "`{name}`: the tags exist");
        }
        RowForm::Answer => {
            assert_eq!((items.len(), right_tokens.len()), (ROWS, ROWS), "`{name}`: tokens for each row");
            let fit = items.iter().zip(right_tokens).all(|(tokens, right)| right <= &tokens.len());
            assert!(fit, "`{name}`: no more tokens are right than there are");
        }
    }
    let metrics = head.metrics(&prediction, &input.labels).expect("metrics");
    assert!(!metrics.is_empty(), "`{name}`: there is a headline metric");
    assert!(metrics.iter().all(|(_, value)| value.is_finite()), "`{name}`: metrics are numbers: {metrics:?}");
}

/// Checks one class for each row, of as many as `n_classes` says.
/// Checks that the probabilities of labels are those of the logits, which a calibration divides by a temperature.
fn check_logits(name: &str, kind: LabelKind, probabilities: &[f32], logits: &[f32]) {
    let expected: Vec<f32> = match kind {
        LabelKind::Class => {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
            let sum: f32 = powers.iter().sum();
            powers.iter().map(|power| power / sum).collect()
        }
        LabelKind::Multi => logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect(),
        _ => return,
    };
    let are_near = probabilities.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-5);
    assert!(are_near, "`{name}`: probabilities {probabilities:?} are those of the logits, {expected:?}");
}

fn check_classes(name: &str, class: &[i64], probabilities: &[Vec<f32>], n_classes: impl Fn(usize) -> usize) {
    assert_eq!(class.len(), ROWS, "`{name}`: one class per row");
    for (row, (class, probabilities)) in class.iter().zip(probabilities).enumerate() {
        let n_classes = n_classes(row);
        assert!((0..n_classes as i64).contains(class), "`{name}`: row {row} is predicted a label that exists");
        assert_eq!(probabilities.len(), n_classes, "`{name}`: one probability per label");
    }
}

/// Checks that a batch of rows gives the logits of its rows computed one by one.
fn check_row_independence(name: &str, head: &dyn TaskHead, input: &Input) {
    let together = evaluate(head, input);
    let of_rows = match &together.items {
        Some(items) => items.rows(),
        None => (0..ROWS).collect(),
    };
    for row in 0..ROWS {
        let positions: Vec<i64> =
            (0..of_rows.len()).filter(|&item| of_rows[item] == row).map(|item| item as i64).collect();
        let expected = together.values.index_select(0, &Tensor::from_slice(&positions));
        let single = evaluate(head, &input.row(head.wants(), row)).values;
        let far = (expected - single).abs().max().double_value(&[]);
        assert!(far < 1e-5, "`{name}`: row {row} does not depend on the rows beside it");
    }
}

fn evaluate(head: &dyn TaskHead, input: &Input) -> Logits {
    let view = input.view(input.states.shallow_clone(), head.wants());
    tch::no_grad(|| head.forward(&view, Phase::Evaluate)).expect("forward")
}
