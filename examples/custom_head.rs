//! A task head of your own: it reads every token of a row and weighs them by a trained query, as a plugin.
//!
//! `custom_head` registers the head, builds it from options as a pipeline file has them, and trains it on random hidden
//! states. A program with the head and all commands of `sepal` needs three lines; see docs/plugins.md.

use std::error::Error;

use schemars::JsonSchema;
use sepal_core::{LabelKind, Labels, Ragged, Task, TokenBatch, Want};
use sepal_nn::Parameters;
use sepal_nn::init::{normal, rng};
use sepal_optim::{AdamW, AdamWConfig, Optimizer};
use sepal_plugin::{
    BuildError, Head, HeadContext, HeadError, HiddenView, Logits, Phase, Plugin, Prediction, Registry, TaskHead,
    class_tensor,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Device, Kind, Reduction, Tensor};

// Shown in docs/plugins.md.
/// Gives each text one label, by a weighted mean of its tokens.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AttentionPoolingConfig {
    /// Names of the labels, in the order of their indices in the data.
    #[schemars(length(min = 2))]
    labels: Vec<String>,
}

struct AttentionPooling {
    query: Tensor, // [1, hidden]; zeros weigh all tokens equally
    score: Tensor, // [n_labels, hidden]
    task: Task,
}

impl Plugin<Head> for AttentionPooling {
    const NAME: &'static str = "attention-pooling";
    type Config = AttentionPoolingConfig;

    fn example() -> AttentionPoolingConfig {
        AttentionPoolingConfig { labels: vec!["negative".to_owned(), "positive".to_owned()] }
    }

    fn build(config: AttentionPoolingConfig, cx: &mut HeadContext<'_>) -> Result<Box<dyn TaskHead>, BuildError> {
        let (hidden, n_labels) = (cx.hidden as i64, config.labels.len() as i64);
        let query = cx.params.add("query", &Tensor::f_zeros([1, hidden], (Kind::Float, Device::Cpu))?)?;
        let score = normal(&[n_labels, hidden], 0.02, &mut rng(cx.seed, "score.weight"))?;
        let score = cx.params.add("score.weight", &score)?;
        Ok(Box::new(Self { query, score, task: Task::new(LabelKind::Class, config.labels) }))
    }
}

impl TaskHead for AttentionPooling {
    fn wants(&self) -> Want {
        Want::Tokens
    }

    fn forward(&self, hidden: &HiddenView<'_>, _: Phase) -> Result<Logits, HeadError> {
        let pool = |row: usize| -> Result<Tensor, HeadError> {
            let states = hidden.sequence(row)?; // [tokens, hidden]
            let weights = states.f_linear(&self.query, None::<Tensor>)?.f_softmax(0, Kind::Float)?; // [tokens, 1]
            Ok(weights.f_transpose(0, 1)?.f_matmul(&states)?) // [1, hidden]
        };
        let pooled = (0..hidden.n_rows()).map(pool).collect::<Result<Vec<_>, _>>()?;
        Ok(Logits::new(Tensor::f_cat(&pooled, 0)?.f_linear(&self.score, None::<Tensor>)?)) // [rows, n_labels]
    }

    fn loss(&self, logits: &Logits, labels: &Labels) -> Result<Tensor, HeadError> {
        let classes = class_tensor(labels, self.task.labels().len())?; // [rows]
        Ok(logits.values.f_cross_entropy_loss(&classes, None::<Tensor>, Reduction::Mean, -100, 0.0)?)
    }

    fn predict(&self, logits: &Logits) -> Result<Prediction, HeadError> {
        Prediction::of_classes(&logits.values)
    }

    fn task(&self) -> &Task {
        &self.task
    }
}
// Shown until here.

fn main() -> Result<(), Box<dyn Error>> {
    let mut registry = Registry::new();
    registry.register::<Head, AttentionPooling>()?;

    let (mut params, embeddings) = (Parameters::new(), Tensor::zeros([1, 16], (Kind::Float, Device::Cpu)));
    let mut context = HeadContext {
        params: &mut params,
        hidden: 16,
        embeddings: &embeddings,
        tokenize: &|_| Ok(Vec::new()),
        lm_rows: &|_| Err("there is no language model here".into()),
        is_restored: false,
        seed: 42,
    };
    let head = registry.build::<Head>("attention-pooling", json!({ "labels": ["no", "yes"] }), &mut context)?;

    // Rows of 1 to 8 random tokens; the sum of their first numbers is positive or not.
    let sequences = Ragged::from_lengths((0..64).map(|row| 1 + row % 8))?;
    let states = Tensor::randn([sequences.n_tokens() as i64, 16], (Kind::Float, Device::Cpu));
    let is_positive = |row: usize| {
        let tokens = sequences.range(row);
        states.narrow(0, tokens.start as i64, tokens.len() as i64).select(1, 0).sum(Kind::Double).double_value(&[])
            > 0.0
    };
    let labels = Labels::Class((0..sequences.len()).map(|row| i64::from(is_positive(row))).collect());
    let batch = TokenBatch::new(vec![0; sequences.n_tokens()], sequences);
    let hidden = HiddenView::new(states, head.wants(), &batch)?;
    let mut optimizer = AdamW::new(AdamWConfig::default());
    for _ in 0..100 {
        params.zero_grad();
        head.loss(&head.forward(&hidden, Phase::Train)?, &labels)?.f_backward()?;
        optimizer.step(&params, 0.05)?;
    }
    let prediction = head.predict(&head.forward(&hidden, Phase::Evaluate)?)?;
    for (name, value) in head.metrics(&prediction, &labels)?.into_iter().take(2) {
        println!("{name}: {value:.3}");
    }
    Ok(())
}
