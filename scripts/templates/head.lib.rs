//! The task head `@NAME@`: a linear layer with a bias on the last token of each row.
//!
//! Start here: change the options, what trains, and how logits and loss come out of it. `wants` chooses the hidden states
//! (the last token, the mean, or all tokens of each row), and `task` says what the labels are.

use schemars::JsonSchema;
use sepal_nn::init::{normal, rng};
use sepal_plugin::{
    BuildError, Head, HeadContext, HeadError, HiddenView, LabelKind, Labels, Logits, Phase, Plugin, Prediction, Task,
    TaskHead, Want, class_tensor,
};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Reduction, Tensor};

/// Gives each text one label.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct @TYPE@Config {
    /// The labels' names, in the order of the numbers that stand for them in the data.
    #[schemars(length(min = 2))]
    pub labels: Vec<String>,
    /// Share of each target that is spread over all labels (label smoothing).
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 0.9))]
    pub smoothing: f64,
}

/// A linear layer from a hidden state to logits.
#[derive(Debug)]
pub struct @TYPE@ {
    weight: Tensor, // [n_labels, hidden]
    bias: Tensor,   // [n_labels]
    smoothing: f64,
    task: Task,
}

impl Plugin<Head> for @TYPE@ {
    const NAME: &'static str = "@NAME@";
    type Config = @TYPE@Config;

    fn example() -> @TYPE@Config {
        @TYPE@Config { labels: vec!["negative".to_owned(), "positive".to_owned()], smoothing: 0.1 }
    }

    fn build(config: @TYPE@Config, cx: &mut HeadContext<'_>) -> Result<Box<dyn TaskHead>, BuildError> {
        let n_labels = config.labels.len() as i64;
        let weight = normal(&[n_labels, cx.hidden as i64], 0.02, &mut rng(cx.seed, "score.weight"))?;
        let bias = Tensor::f_zeros([n_labels], (Kind::Float, Device::Cpu))?;
        Ok(Box::new(Self {
            weight: cx.params.add("score.weight", &weight)?,
            bias: cx.params.add("score.bias", &bias)?,
            smoothing: config.smoothing,
            task: Task::new(LabelKind::Class, config.labels),
        }))
    }
}

impl TaskHead for @TYPE@ {
    fn wants(&self) -> Want {
        Want::LastOfRows
    }

    fn forward(&self, hidden: &HiddenView<'_>, _: Phase) -> Result<Logits, HeadError> {
        Ok(Logits::new(hidden.states().f_linear(&self.weight, Some(&self.bias))?)) // [rows, n_labels]
    }

    fn loss(&self, logits: &Logits, labels: &Labels) -> Result<Tensor, HeadError> {
        let classes = class_tensor(labels, self.task.labels().len())?; // [rows]
        Ok(logits.values.f_cross_entropy_loss(&classes, None::<Tensor>, Reduction::Mean, -100, self.smoothing)?)
    }

    fn predict(&self, logits: &Logits) -> Result<Prediction, HeadError> {
        Prediction::of_classes(&logits.values)
    }

    fn task(&self) -> &Task {
        &self.task
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contract_holds() {
        sepal_testkit::contract::check_head::<@TYPE@>();
    }
}
