use schemars::JsonSchema;
use sepal_core::Want;
use serde::{Deserialize, Serialize};

/// Hidden state that represents a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// State of the last token.
    #[default]
    Last,
    /// Mean of the last block's outputs over all tokens, before the final norm.
    Mean,
}

impl Pooling {
    /// Positions of the last block's output that it needs.
    pub fn wants(self) -> Want {
        match self {
            Pooling::Last => Want::LastOfRows,
            Pooling::Mean => Want::MeanOfRows,
        }
    }
}
