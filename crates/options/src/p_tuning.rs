use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use sepal_catalog::{Options, PluginKind};
use serde::{Deserialize, Serialize};

/// Trains soft prompts before every row as the outputs of a small network, like PEFT's P_TUNING.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PTuningConfig {
    /// Number of prompts, each of the hidden size.
    pub pre_seq_len: NonZeroUsize,
    /// Network that computes the prompts.
    pub encoder: EncoderKind,
    /// Hidden size of the network; that of the model if not given.
    pub hidden: Option<NonZeroUsize>,
    /// Initial parameters of the network, and its inputs.
    pub init: PTuningInit,
}

impl Default for PTuningConfig {
    /// 16 prompts and an MLP of the model's hidden size.
    fn default() -> Self {
        Self {
            pre_seq_len: NonZeroUsize::MIN.saturating_add(15),
            encoder: EncoderKind::Mlp,
            hidden: None,
            init: PTuningInit::Random,
        }
    }
}

/// Network that computes soft prompts from as many trained inputs of the hidden size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EncoderKind {
    /// Three linear layers with ReLU between them, for each prompt by itself.
    Mlp,
    /// A bidirectional LSTM of two layers over all prompts, then two linear layers with ReLU between them.
    Lstm,
}

/// Initialisation of the network and its inputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PTuningInit {
    /// Inputs from N(0, 1), and layers as PyTorch initialises them.
    Random,
    /// Parameters of an earlier run with the same options and the same hidden size. A task with the same labels also
    /// starts with its head.
    Adapter(
        /// Folder of the run, or its `adapter.safetensors`.
        #[schemars(with = "String")]
        PathBuf,
    ),
}

impl PTuningInit {
    /// Adapter of the parameters, if they are from one.
    pub fn adapter(&self) -> Option<&Path> {
        match self {
            PTuningInit::Adapter(path) => Some(path),
            PTuningInit::Random => None,
        }
    }
}

impl Options for PTuningConfig {
    const KIND: PluginKind = PluginKind::Tuning;
    const NAME: &'static str = "p-tuning";

    fn example() -> Self {
        Self::default()
    }
}
