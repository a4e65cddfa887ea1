use schemars::JsonSchema;
use sepal_catalog::{OptionProblem, Options, PluginKind};
use sepal_core::{LabelKind, Task, TrainedTensor};
use serde::{Deserialize, Serialize};

use crate::{HeadOptions, OptionError};

/// Gives each word a tag, for example of a named entity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenClassificationConfig {
    /// Names of the tags, in the order of their indices in the data: `O`, and for each type of entity `B-TYPE` for its first
    /// word and `I-TYPE` for the others.
    #[schemars(length(min = 2), inner(length(min = 1)), extend("uniqueItems" = true))]
    pub labels: Vec<String>,
}

impl TokenClassificationConfig {
    /// Tag of words that belong to no entity.
    pub const OUTSIDE: &'static str = "O";

    /// Weights of the logits, `[n_labels, hidden]`.
    pub fn weight(&self, hidden: usize) -> TrainedTensor {
        TrainedTensor::new("score.weight", [self.labels.len(), hidden])
    }

    /// Bias of the logits, `[n_labels]`.
    pub fn bias(&self) -> TrainedTensor {
        TrainedTensor::new("score.bias", [self.labels.len()])
    }
}

impl Options for TokenClassificationConfig {
    const KIND: PluginKind = PluginKind::Head;
    const NAME: &'static str = "token-classification";

    fn example() -> Self {
        let labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"].map(str::to_owned).to_vec();
        Self { labels }
    }

    fn check(&self) -> Vec<OptionProblem> {
        let problem = |message: String| OptionProblem { key: "labels".to_owned(), message };
        let has = |tag: &str| self.labels.iter().any(|label| label == tag);
        let missing = (!has(Self::OUTSIDE)).then(|| problem("expected the tag `O` among them".to_owned()));
        let wrong = self.labels.iter().filter_map(|label| match label.split_once('-') {
            _ if label == Self::OUTSIDE => None,
            Some(("B", kind)) if !kind.is_empty() => None,
            Some(("I", kind)) if has(&format!("B-{kind}")) => None,
            Some(("I", kind)) if !kind.is_empty() => Some(problem(format!("expected `B-{kind}` beside `{label}`"))),
            _ => Some(problem(format!("expected `O`, `B-TYPE` or `I-TYPE`, found `{label}`"))),
        });
        missing.into_iter().chain(wrong).collect()
    }
}

impl HeadOptions for TokenClassificationConfig {
    fn task(&self) -> Result<Task, OptionError> {
        Ok(Task::new(LabelKind::Tags, self.labels.clone()))
    }

    fn tensors(&self, hidden: usize) -> Vec<TrainedTensor> {
        vec![self.weight(hidden), self.bias()]
    }
}
