use std::num::NonZeroUsize;
use std::path::Path;

use schemars::JsonSchema;
use sepal_catalog::{Options, PluginKind};
use sepal_core::TrainedTensor;
use serde::{Deserialize, Serialize};

use crate::{ModelShape, OptionError, PromptInit, Tokenize, TuningOptions, soft_prompts};

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

impl TuningOptions for PtuneConfig {
    fn tensors(&self, model: &ModelShape<'_>) -> Result<Vec<TrainedTensor>, OptionError> {
        Ok(vec![soft_prompts(self.pre_seq_len.get(), model.hidden)])
    }

    fn pre_seq_len(&self) -> usize {
        self.pre_seq_len.get()
    }

    fn adapter(&self) -> Option<&Path> {
        self.init.adapter()
    }

    fn check_words(&self, labels: &[String], tokenize: &Tokenize<'_>) -> Result<(), OptionError> {
        self.init.tokens(self.pre_seq_len.get(), labels, tokenize).map(drop)
    }
}
