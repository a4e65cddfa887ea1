use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Plugin of a run and its options, as in the run's pipeline.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct UsedPlugin {
    /// Name of the plugin.
    #[serde(rename = "use")]
    pub name: String,
    /// Options, with every default filled in.
    #[serde(default)]
    pub with: Map<String, Value>,
}

impl UsedPlugin {
    /// Returns an option, if it is set.
    pub(crate) fn option(&self, key: &str) -> Option<&Value> {
        self.with.get(key).filter(|value| !value.is_null())
    }
}

/// Heads of this project that read or write something else than one row of logits for each text.
const OTHER_HEADS: [&str; 4] = ["causal-lm", "multiple-choice", "token-classification", "verbalizer"];

/// Head that no class of transformers for sequence classification has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum HeadMismatch {
    /// The head does not take the last token.
    #[error(
        "a head with pooling `{pooling}`: transformers takes the last token of each row; train one with pooling `last`"
    )]
    Pooling { pooling: String },
    /// The head is of another task.
    #[error("a head of `{task}`: only those of sequence classification have a class in transformers that Sepal writes")]
    Task { task: String },
}

/// Error if the head is of another task, or takes other hidden states than those of the last tokens.
pub(crate) fn check_head(task: Option<&UsedPlugin>) -> Result<(), HeadMismatch> {
    let Some(task) = task else { return Ok(()) };
    if OTHER_HEADS.contains(&task.name.as_str()) {
        return Err(HeadMismatch::Task { task: task.name.clone() });
    }
    match task.option("pooling").and_then(Value::as_str) {
        Some(pooling) if pooling != "last" => Err(HeadMismatch::Pooling { pooling: pooling.to_owned() }),
        _ => Ok(()),
    }
}
