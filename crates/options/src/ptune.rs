use std::num::NonZeroUsize;

use schemars::JsonSchema;
use sepal_catalog::{Options, PluginKind};
use serde::{Deserialize, Serialize};

use crate::PromptInit;

/// Trains soft prompts before every row and leaves the model unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PtuneConfig {
    /// Number of prompts, each of the hidden size.
    pub pre_seq_len: NonZeroUsize,
    /// Initial prompts.
    pub init: PromptInit,
}

impl Default for PtuneConfig {
    /// 16 prompts with the embeddings of words.
    fn default() -> Self {
        Self { pre_seq_len: NonZeroUsize::MIN.saturating_add(15), init: PromptInit::Vocabulary }
    }
}

impl Options for PtuneConfig {
    const KIND: PluginKind = PluginKind::Tuning;
    const NAME: &'static str = "ptune";

    fn example() -> Self {
        Self::default()
    }
}
