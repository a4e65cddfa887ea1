//! A task head of your own: two linear layers with dropout between them, as a plugin.
//!
//! `custom_head` registers the head, builds it from options as a pipeline file has them, and trains it on random hidden
//! states. A program with the head and all commands of `sepal` needs three lines; see docs/plugins.md.

use std::error::Error;

use schemars::JsonSchema;
use sepal_core::{LabelKind, Labels};
use sepal_nn::Parameters;
use sepal_nn::init::{normal, rng};
use sepal_optim::{AdamW, AdamWConfig, Optimizer};
use sepal_plugin::{
    BuildError, Head, HeadContext, HeadError, Hidden, Logits, Phase, Plugin, Prediction, Registry, TaskHead,
    label_tensor,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Device, Kind, Tensor};

/// Two linear layers with a tanh and dropout between them, as in BERT's classifier.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TwoLayerConfig {
    /// Names of the labels, in the order of their indices in the data.
    labels: Vec<String>,
    /// Probability of dropping a value between the layers.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 0.9))]
    dropout: f64,
}

struct TwoLayer {
    dense: Tensor, // [hidden, hidden]
    score: Tensor, // [n_labels, hidden]
    config: TwoLayerConfig,
}

impl Plugin<Head> for TwoLayer {
    const NAME: &'static str = "two-layer";
    type Config = TwoLayerConfig;

    fn example() -> TwoLayerConfig {
        TwoLayerConfig { labels: vec!["negative".to_owned(), "positive".to_owned()], dropout: 0.1 }
    }

    fn build(config: TwoLayerConfig, context: &mut HeadContext<'_>) -> Result<Box<dyn TaskHead>, BuildError> {
        let (hidden, n_labels) = (context.hidden as i64, config.labels.len() as i64);
        let dense = normal(&[hidden, hidden], 0.02, &mut rng(context.seed, "dense.weight"))?;
        let score = normal(&[n_labels, hidden], 0.02, &mut rng(context.seed, "score.weight"))?;
        let dense = context.params.add("dense.weight", &dense)?;
        let score = context.params.add("score.weight", &score)?;
        Ok(Box::new(Self { dense, score, config }))
    }
}

impl TaskHead for TwoLayer {
    fn forward(&self, hidden: &Hidden, phase: Phase) -> Result<Logits, HeadError> {
        let inner = hidden.pooled.f_linear(&self.dense, None::<Tensor>)?.f_tanh()?; // [rows, hidden]
        let inner = inner.f_dropout(self.config.dropout, phase == Phase::Train)?;
        Ok(Logits { values: inner.f_linear(&self.score, None::<Tensor>)? }) // [rows, n_labels]
    }

    fn loss(&self, logits: &Logits, labels: &Labels) -> Result<Tensor, HeadError> {
        match labels {
            Labels::Class(_) => {
                let log_probabilities = logits.values.f_log_softmax(-1, Kind::Float)?;
                Ok(log_probabilities.nll_loss(&label_tensor(labels)?))
            }
            other => Err(HeadError::Kind { expected: LabelKind::Class, found: other.kind() }),
        }
    }

    fn predict(&self, logits: &Logits) -> Result<Prediction, HeadError> {
        let rows = |tensor: &Tensor| -> Result<Vec<Vec<f32>>, HeadError> { Ok(Vec::try_from(tensor)?) };
        let probabilities = logits.values.f_softmax(-1, Kind::Float)?;
        let class = Vec::try_from(&probabilities.f_argmax(-1, false)?)?;
        Ok(Prediction { class, probabilities: rows(&probabilities)?, logits: rows(&logits.values)? })
    }

    fn label_names(&self) -> &[String] {
        &self.config.labels
    }

    fn label_kind(&self) -> LabelKind {
        LabelKind::Class
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut registry = Registry::new();
    registry.register::<Head, TwoLayer>()?;

    let mut params = Parameters::new();
    let mut context = HeadContext { params: &mut params, hidden: 16, seed: 42 };
    let head = registry.build::<Head>("two-layer", json!({ "labels": ["no", "yes"] }), &mut context)?;

    let pooled = Tensor::randn([32, 16], (Kind::Float, Device::Cpu));
    let signs: Vec<f64> = Vec::try_from(pooled.select(1, 0).to_kind(Kind::Double))?;
    let labels = Labels::Class(signs.iter().map(|&sign| i64::from(sign > 0.0)).collect());
    let hidden = Hidden { pooled };
    let mut optimizer = AdamW::new(AdamWConfig::default());
    for _ in 0..100 {
        params.zero_grad();
        head.loss(&head.forward(&hidden, Phase::Train)?, &labels)?.f_backward()?;
        optimizer.step(&params, 0.01)?;
    }
    let prediction = head.predict(&head.forward(&hidden, Phase::Evaluate)?)?;
    for (name, value) in head.metrics(&prediction, &labels)?.into_iter().take(2) {
        println!("{name}: {value:.3}");
    }
    Ok(())
}
