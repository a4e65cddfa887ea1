use schemars::JsonSchema;
use sepal_catalog::{Options, PluginKind};
use serde::{Deserialize, Serialize};

use crate::Pooling;

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
