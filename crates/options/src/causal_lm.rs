use schemars::JsonSchema;
use sepal_catalog::{Options, PluginKind};
use sepal_core::{LabelKind, Task, TrainedTensor};
use serde::{Deserialize, Serialize};

use crate::{HeadOptions, OptionError};

/// Trains the frozen language model to continue each text with its answer (the column `data.label`).
///
/// The output layer stays in this process in fp32, `4 * vocabulary * hidden` bytes: 113 MB for SmolLM2-135M, 2.1 GB for a
/// Llama of 8B. Gemma's cap of the final logits is not applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CausalLmConfig {}

impl Options for CausalLmConfig {
    const KIND: PluginKind = PluginKind::Head;
    const NAME: &'static str = "causal-lm";

    fn example() -> Self {
        Self {}
    }
}

impl HeadOptions for CausalLmConfig {
    fn task(&self) -> Result<Task, OptionError> {
        Ok(Task::new(LabelKind::Text, Vec::new()))
    }

    fn tensors(&self, _: usize) -> Vec<TrainedTensor> {
        Vec::new()
    }
}
