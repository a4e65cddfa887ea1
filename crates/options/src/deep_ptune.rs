use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use sepal_catalog::{Options, PluginKind};
use sepal_core::{TrainedTensor, TunableName};
use serde::{Deserialize, Serialize};

use crate::{ModelShape, OptionError, PromptInit, Tokenize, TuningOptions, soft_prompts};

/// Trains soft prompts before every row and prompts that are added before every block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DeepPtuneConfig {
    /// Number of prompts, each of the hidden size.
    pub pre_seq_len: NonZeroUsize,
    /// Initial prompts before the rows.
    pub init: PromptInit,
    /// Initial prompts before each block. Defaults to those of the adapter that `init` names, or to zero.
    pub deep_init: Option<DeepInit>,
}

impl Default for DeepPtuneConfig {
    /// 16 prompts with the embeddings of words, and nothing added before the blocks.
    fn default() -> Self {
        let pre_seq_len = NonZeroUsize::MIN.saturating_add(15);
        Self { pre_seq_len, init: PromptInit::Vocabulary, deep_init: None }
    }
}

/// Initialisation of the prompts before each block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeepInit {
    /// Zero, so that the first step sees the unchanged model.
    Zero,
    /// Drawn from N(0, `initializer_range`²); slow to train.
    Normal,
    /// Prompts of an earlier run with the same number of prompts and blocks and the same hidden size.
    Adapter(
        /// Folder of the run, or its `adapter.safetensors`.
        #[schemars(with = "String")]
        PathBuf,
    ),
}

impl Options for DeepPtuneConfig {
    const KIND: PluginKind = PluginKind::Tuning;
    const NAME: &'static str = "deep-ptune";

    fn example() -> Self {
        Self::default()
    }
}

impl DeepPtuneConfig {
    /// Prompts before each block, `[n_blocks, pre_seq_len, hidden]`.
    pub fn deep_prompts(&self, n_blocks: usize, hidden: usize) -> TrainedTensor {
        TrainedTensor::tunable(&TunableName::DeepPrompts, 0, [n_blocks, self.pre_seq_len.get(), hidden])
    }
}

impl TuningOptions for DeepPtuneConfig {
    fn tensors(&self, model: &ModelShape<'_>) -> Result<Vec<TrainedTensor>, OptionError> {
        let prompts = soft_prompts(self.pre_seq_len.get(), model.hidden);
        Ok(vec![prompts, self.deep_prompts(model.n_blocks, model.hidden)])
    }

    fn pre_seq_len(&self) -> usize {
        self.pre_seq_len.get()
    }

    fn adapter(&self) -> Option<&Path> {
        match &self.deep_init {
            Some(DeepInit::Adapter(path)) => Some(path),
            _ => self.init.adapter(),
        }
    }

    fn check_words(&self, labels: &[String], tokenize: &Tokenize<'_>) -> Result<(), OptionError> {
        self.init.tokens(self.pre_seq_len.get(), labels, tokenize).map(drop)
    }
}
