use schemars::JsonSchema;
use sepal_catalog::{Options, PluginKind};
use sepal_core::{LabelKind, Task, TrainedTensor};
use serde::{Deserialize, Serialize};

use crate::{HeadOptions, OptionError, Pooling};

/// Chooses one of the options of each row (`data.options`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MultipleChoiceConfig {
    /// Hidden state that an option is scored by: that of the last token, or the mean over all tokens.
    #[serde(default)]
    pub pooling: Pooling,
}

impl Options for MultipleChoiceConfig {
    const KIND: PluginKind = PluginKind::Head;
    const NAME: &'static str = "multiple-choice";

    fn example() -> Self {
        Self::default()
    }
}

impl MultipleChoiceConfig {
    /// Weights of the score of an option, `[1, hidden]`.
    pub fn score(&self, hidden: usize) -> TrainedTensor {
        TrainedTensor::new("score.weight", [1, hidden])
    }
}

impl HeadOptions for MultipleChoiceConfig {
    fn task(&self) -> Result<Task, OptionError> {
        Ok(Task::new(LabelKind::Choice, Vec::new()))
    }

    fn tensors(&self, hidden: usize) -> Vec<TrainedTensor> {
        vec![self.score(hidden)]
    }
}
