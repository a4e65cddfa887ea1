use sepal_core::Want;
use sepal_nn::Parameters;
use sepal_plugin::{Head, HeadContext, Hidden, LabelKind, Labels, Logits, Phase, Plugin, Prediction, TaskHead};
use tch::Kind;

use super::{OTHER_SEED, SEED, check_gradients, check_options, check_start_and_files, numbers, parameters};

const ROWS: i64 = 6;
const HIDDEN: i64 = 8;

/// Checks a task head.
pub fn check_head<P: Plugin<Head>>() {
    check_options::<Head, P>();
    let name = P::NAME;
    let (params, head) = build::<P>(SEED);
    let (again, _) = build::<P>(SEED);
    let (mut other, loaded) = build::<P>(OTHER_SEED);

    let labels = labels(&*head);
    check_training(name, &params, &*head, &labels);
    check_predictions(name, &*head, &labels);
    check_row_independence(name, &*head);
    check_start_and_files(name, &params, &again, &mut other);
    let (expected, found) = (evaluate(&*head, &hidden()), evaluate(&*loaded, &hidden()));
    assert_eq!(expected.values, found.values, "`{name}`: a loaded head computes what the saved one did");
}

fn build<P: Plugin<Head>>(seed: u64) -> (Parameters, Box<dyn TaskHead>) {
    let mut params = parameters();
    let mut cx = HeadContext { params: &mut params, hidden: HIDDEN as usize, seed };
    let head = P::build(P::example(), &mut cx).expect("the example builds");
    (params, head)
}

/// Checks the gradients of the hidden states and of the head's parameters.
fn check_training(name: &str, params: &Parameters, head: &dyn TaskHead, labels: &Labels) {
    assert_eq!(head.wants(), Want::LastOfRows, "`{name}`: a head reads the last token of each row");
    let pooled = numbers(&[ROWS, HIDDEN]).set_requires_grad(true);
    let hidden = Hidden { pooled: pooled.shallow_clone() };
    let logits = head.forward(&hidden, Phase::Train).expect("forward");
    let n_labels = head.label_names().len() as i64;
    assert_eq!(logits.values.size(), [ROWS, n_labels], "`{name}`: logits are [rows, n_labels]");
    let loss = head.loss(&logits, labels).expect("a loss");
    assert!(loss.size().is_empty(), "`{name}`: the loss is a scalar");
    assert!(loss.double_value(&[]).is_finite(), "`{name}`: the loss is a number");
    loss.backward();
    assert!(pooled.grad().defined(), "`{name}`: the hidden states get a gradient, or no prompt would learn");
    check_gradients(name, params);
}

fn check_predictions(name: &str, head: &dyn TaskHead, labels: &Labels) {
    let names = head.label_names();
    assert!(!names.is_empty(), "`{name}`: there is at least one label");
    let Prediction { class, probabilities, logits } = head.predict(&evaluate(head, &hidden())).expect("a prediction");
    let rows = ROWS as usize;
    assert_eq!((class.len(), probabilities.len(), logits.len()), (rows, rows, rows), "`{name}`: one entry per row");
    for (row, class) in class.iter().enumerate() {
        assert!((0..names.len() as i64).contains(class), "`{name}`: row {row} is predicted a label that exists");
        assert_eq!(logits[row].len(), names.len(), "`{name}`: one logit per label");
        assert_eq!(probabilities[row].len(), names.len(), "`{name}`: one probability per label");
        let sum: f32 = probabilities[row].iter().sum();
        let is_normalized = head.label_kind() == LabelKind::Multi || (sum - 1.0).abs() < 1e-5;
        assert!(is_normalized, "`{name}`: the probabilities of row {row} add up to one");
        let all = probabilities[row].iter().all(|probability| (0.0..=1.0).contains(probability));
        assert!(all, "`{name}`: the probabilities of row {row} lie between zero and one");
    }
    let prediction = Prediction { class, probabilities, logits };
    let metrics = head.metrics(&prediction, labels).expect("metrics");
    assert!(!metrics.is_empty(), "`{name}`: there is a headline metric");
    assert!(metrics.iter().all(|(_, value)| value.is_finite()), "`{name}`: metrics are numbers: {metrics:?}");
}

/// Checks that a batch of rows gives the logits of its rows computed one by one.
fn check_row_independence(name: &str, head: &dyn TaskHead) {
    let together = evaluate(head, &hidden()).values;
    for row in 0..ROWS {
        let single = evaluate(head, &Hidden { pooled: hidden().pooled.narrow(0, row, 1) }).values;
        let far = (together.narrow(0, row, 1) - single).abs().max().double_value(&[]);
        assert!(far < 1e-5, "`{name}`: row {row} does not depend on the rows beside it");
    }
}

fn evaluate(head: &dyn TaskHead, hidden: &Hidden) -> Logits {
    tch::no_grad(|| head.forward(hidden, Phase::Evaluate)).expect("forward")
}

fn hidden() -> Hidden {
    Hidden { pooled: numbers(&[ROWS, HIDDEN]) }
}

/// Returns labels of the head's kind, with every label among them.
fn labels(head: &dyn TaskHead) -> Labels {
    let n_labels = head.label_names().len() as i64;
    match head.label_kind() {
        LabelKind::Class => Labels::Class((0..ROWS).map(|row| row % n_labels).collect()),
        LabelKind::Value => Labels::Value(Vec::try_from(numbers(&[ROWS])).expect("fp32 `[rows]`")),
        LabelKind::Multi => {
            let hot = numbers(&[ROWS, n_labels]).ge(0.0).to_kind(Kind::Float);
            Labels::Multi(Vec::try_from(hot).expect("fp32 `[rows, n_labels]`"))
        }
    }
}
