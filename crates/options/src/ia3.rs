use std::path::PathBuf;

use schemars::JsonSchema;
use sepal_catalog::{Options, PluginKind};
use serde::{Deserialize, Serialize};

use crate::Targets;

/// Trains factors of the outputs and inputs of linear layers of the blocks, like PEFT's IA3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ia3Config {
    /// Linear layers: a list of names, of which each stands for all layers of this name or with this end after a dot
    /// (`k_proj`), or `all-linear`. Defaults to the layers of keys and values (or of queries, keys and values where the
    /// model has one for all) and the last layer of the MLP.
    pub targets: Option<Targets>,
    /// Initial factors.
    pub init: Ia3Init,
}

impl Default for Ia3Config {
    /// Factors of one for keys, values and the hidden values of the MLP.
    fn default() -> Self {
        Self { targets: None, init: Ia3Init::Ones }
    }
}

/// Initialisation of the factors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Ia3Init {
    /// One.
    Ones,
    /// Factors of an earlier run with the same layers. A task with the same labels also starts with its head.
    Adapter(
        /// Folder of the run, or its `adapter.safetensors`.
        #[schemars(with = "String")]
        PathBuf,
    ),
}

impl Options for Ia3Config {
    const KIND: PluginKind = PluginKind::Tuning;
    const NAME: &'static str = "ia3";

    fn example() -> Self {
        Self::default()
    }
}
