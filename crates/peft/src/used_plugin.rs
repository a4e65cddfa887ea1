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
}

/// Error if the head takes other hidden states than those of the last tokens.
pub(crate) fn check_head(task: Option<&UsedPlugin>) -> Result<(), HeadMismatch> {
    match task.and_then(|task| task.option("pooling")?.as_str()) {
        Some(pooling) if pooling != "last" => Err(HeadMismatch::Pooling { pooling: pooling.to_owned() }),
        _ => Ok(()),
    }
}
