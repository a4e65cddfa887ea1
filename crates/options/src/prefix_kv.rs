use std::num::NonZeroUsize;
use std::path::PathBuf;

use schemars::JsonSchema;
use sepal_catalog::{Options, PluginKind};
use serde::{Deserialize, Serialize};

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
