use sepal_nn::Parameters;
use sepal_plugin::{Ragged, TokenBatch};
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
    let config = SequenceClassificationConfig {
        labels: labels.clone(),
        multi_label,
        label_smoothing,
        class_weights,
        ..SequenceClassification::example()
    };
    let mut params = Parameters::new();
    let head = build(config, &mut params, false).expect("built");
    assert_eq!(params.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["score.weight"]);
    assert_eq!(params.get("score.weight").expect("added").size(), [labels.len() as i64, 2]);
    head
}

/// Builds the head for a model whose own head has the row `[i, -i]` for token `i`. A word is one token, the code of its
/// first letter; a word with a hyphen is two.
fn build(
    config: SequenceClassificationConfig,
    params: &mut Parameters,
    is_restored: bool,
) -> Result<Box<dyn TaskHead>, BuildError> {
    let embeddings = Tensor::zeros([256, 2], (Kind::Float, Device::Cpu));
    let mut cx = HeadContext {
        params,
        hidden: 2,
        embeddings: &embeddings,
        tokenize: &|text| Ok(text.split([' ', '-']).map(|word| i64::from(word.as_bytes()[0])).collect()),
        lm_rows: &|ids| {
            let ids = Tensor::from_slice(ids).to_kind(Kind::Float);
            let negative = &ids * -1.0;
            Ok(Tensor::stack(&[ids, negative], 1))
        },
        is_restored,
        seed: 42,
    };
    SequenceClassification::build(config, &mut cx)
}

fn words(label_words: Option<&[&str]>) -> SequenceClassificationConfig {
    let label_words = label_words.map(|words| words.iter().map(|&word| word.to_owned()).collect());
    SequenceClassificationConfig { init: HeadInit::LabelWords, label_words, ..SequenceClassification::example() }
}

fn logits(rows: &[&[f32]]) -> Logits {
    Logits::new(Tensor::from_slice(&rows.concat()).view([rows.len() as i64, -1]))
}

fn view<'a>(batch: &'a TokenBatch, want: Want, states: &[f32]) -> Result<HiddenView<'a>, HeadError> {
    let rows = want.positions(0, &batch.sequences) as i64;
    HiddenView::new(Tensor::from_slice(states).view([rows, -1]), want, batch)
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
fn label_words_start_as_the_language_model() {
    let mut params = Parameters::new();
    let head = build(words(Some(&["so", "fine"])), &mut params, false).expect("built");
    let batch = TokenBatch::new(vec![0, 0], Ragged::from_lengths([2]).expect("rows"));
    let hidden = view(&batch, Want::LastOfRows, &[3.0, 1.0]).expect("they fit");
    let logits = head.forward(&hidden, Phase::Train).expect("forward").values;
    assert_eq!(Vec::<Vec<f32>>::try_from(logits.detach()).expect("numbers"), [[230.0, 204.0]], "h * w of each word");
    let params_of_names = &mut Parameters::new();
    build(words(None), params_of_names, false).expect("the names are words");
    assert_eq!(params_of_names.get("score.weight").expect("added").double_value(&[0, 0]), 110.0);
    let restored = &mut Parameters::new();
    build(words(Some(&["well-known", "so"])), restored, true).expect("saved values follow");
}

#[test]
fn words_of_several_tokens_are_refused() {
    let error = build(words(Some(&["so", "well-known"])), &mut Parameters::new(), false).err().expect("two tokens");
    let expected = "use option `label_words`: expected words of one token each; of the label `positive`, `well-known` is \
                    2 tokens (119, 107)";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn words_that_do_not_fit_the_labels_are_problems() {
    let problems = |config: SequenceClassificationConfig| {
        let problems = SequenceClassification::check(&config);
        problems.into_iter().map(|problem| problem.key).collect::<Vec<_>>()
    };
    assert_eq!(problems(words(Some(&["one"]))), ["label_words"]);
    assert_eq!(
        problems(SequenceClassificationConfig { init: HeadInit::Random, ..words(Some(&["a", "b"])) }),
        ["label_words"]
    );
    assert_eq!(problems(SequenceClassificationConfig { multi_label: true, ..words(None) }), ["init"]);
    assert!(problems(words(None)).is_empty());
    let written = serde_json::to_value(SequenceClassification::example()).expect("JSON");
    assert!(written.get("pooling").is_none() && written.get("init").is_none(), "older runs have the same form");
}

#[test]
fn mean_pooling_reads_the_mean_of_each_row() {
    let config = SequenceClassificationConfig { pooling: Pooling::Mean, ..SequenceClassification::example() };
    let head = build(config, &mut Parameters::new(), false).expect("built");
    assert_eq!(head.wants(), Want::MeanOfRows);
    let batch = TokenBatch::new(vec![0; 3], Ragged::from_lengths([2, 1]).expect("rows"));
    let hidden = view(&batch, Want::MeanOfRows, &[1.0, 2.0, 3.0, 4.0]).expect("they fit");
    assert_eq!(head.forward(&hidden, Phase::Evaluate).expect("forward").values.size(), [2, 2]);
    let json = serde_json::json!({ "labels": ["a", "b"], "pooling": "mean", "init": "label-words" });
    let config: SequenceClassificationConfig = serde_json::from_value(json).expect("options");
    assert_eq!((config.pooling, config.init), (Pooling::Mean, HeadInit::LabelWords));
}

#[test]
fn hidden_states_that_do_not_fit_are_refused() {
    let batch = TokenBatch::new(vec![0], Ragged::from_lengths([1]).expect("rows"));
    let hidden = view(&batch, Want::LastOfRows, &[1.0, 2.0, 3.0]).expect("one row");
    let error = head(&["bad", "good"], false).forward(&hidden, Phase::Train).expect_err("too wide");
    assert_eq!(error.to_string(), "use the hidden states: expected shape [1, 2], found [1, 3]");
}
