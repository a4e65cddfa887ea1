use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use sepal_catalog::{Options, PluginKind};
use sepal_core::{TrainedTensor, TunableName};
use serde::{Deserialize, Serialize};

use crate::{ModelShape, OptionError, TuningOptions};

/// Trains independent keys and values of a prefix in every block, like PEFT's PREFIX_TUNING.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PrefixKvConfig {
    /// Number of positions of the prefix.
    pub pre_seq_len: NonZeroUsize,
    /// Initial keys and values.
    pub init: PrefixInit,
}

impl Default for PrefixKvConfig {
    /// 16 positions with small random values.
    fn default() -> Self {
        Self { pre_seq_len: NonZeroUsize::MIN.saturating_add(15), init: PrefixInit::Normal }
    }
}

/// Initialisation of the keys and values of a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PrefixInit {
    /// Zero. Every position of the prefix then gets the same share of the attention and adds nothing.
    Zero,
    /// Drawn from N(0, `initializer_range`²).
    Normal,
    /// Keys and values of an earlier run with the same number of positions and a model of the same shape. A task with
    /// the same labels also starts with its head.
    Adapter(
        /// Folder of the run, or its `adapter.safetensors`.
        #[schemars(with = "String")]
        PathBuf,
    ),
}

impl Options for PrefixKvConfig {
    const KIND: PluginKind = PluginKind::Tuning;
    const NAME: &'static str = "prefix-kv";
    const ALIASES: &'static [&'static str] = &["prefix-tuning"];

    fn example() -> Self {
        Self::default()
    }
}

impl PrefixKvConfig {
    /// Keys and values of the prefix in every block, `[n_blocks, pre_seq_len, 2 * kv_size]`.
    pub fn keys_values(&self, n_blocks: usize, kv_size: usize) -> TrainedTensor {
        TrainedTensor::tunable(&TunableName::PrefixKeysValues, 0, [n_blocks, self.pre_seq_len.get(), 2 * kv_size])
    }
}

impl TuningOptions for PrefixKvConfig {
    fn tensors(&self, model: &ModelShape<'_>) -> Result<Vec<TrainedTensor>, OptionError> {
        Ok(vec![self.keys_values(model.n_blocks, model.kv_size)])
    }

    fn pre_seq_len(&self) -> usize {
        self.pre_seq_len.get()
    }

    fn adapter(&self) -> Option<&Path> {
        match &self.init {
            PrefixInit::Adapter(path) => Some(path),
            PrefixInit::Zero | PrefixInit::Normal => None,
        }
    }
}
