use std::num::NonZeroUsize;
use std::path::PathBuf;

use schemars::JsonSchema;
use sepal_catalog::{Options, PluginKind};
use serde::{Deserialize, Serialize};

use crate::Targets;

/// Trains low-rank additions to linear layers of the blocks, like PEFT's LORA.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank of the additions.
    pub r: NonZeroUsize,
    /// Numerator of the scaling: additions are multiplied by `alpha / r`.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub alpha: f64,
    /// Linear layers: a list of names, of which each stands for all layers of this name or with this end after a dot
    /// (`q_proj`), or `all-linear`. Defaults to the layers of queries and values, or the layer of queries, keys and
    /// values where the model has one.
    pub targets: Option<Targets>,
    /// Multiplies additions by `alpha / sqrt(r)` instead of `alpha / r` (rsLoRA, arXiv 2312.03732).
    pub rslora: bool,
    /// Blocks whose layers change.
    pub blocks: TunedBlocks,
    /// Initial factors.
    pub init: LoraInit,
}

impl Default for LoraConfig {
    /// Rank 8 and scaling 2 in all blocks.
    fn default() -> Self {
        Self {
            r: NonZeroUsize::MIN.saturating_add(7),
            alpha: 16.0,
            targets: None,
            rslora: false,
            blocks: TunedBlocks::All,
            init: LoraInit::KaimingUniform,
        }
    }
}

impl LoraConfig {
    /// Factor of the additions.
    pub fn scaling(&self) -> f64 {
        let rank = self.r.get() as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}

/// Blocks of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TunedBlocks {
    /// All blocks.
    All,
    /// The last blocks only.
    Last(
        /// Number of blocks.
        NonZeroUsize,
    ),
}

/// Initialisation of the factors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LoraInit {
    /// A drawn from U(-1 / sqrt(inputs), 1 / sqrt(inputs)), and B zero, as in PEFT.
    KaimingUniform,
    /// Factors of an earlier run with the same rank, layers and blocks, and for the same addition with the same `alpha` and
    /// `rslora`. A task with the same labels also starts with its head.
    Adapter(
        /// Folder of the run, or its `adapter.safetensors`.
        #[schemars(with = "String")]
        PathBuf,
    ),
}

impl Options for LoraConfig {
    const KIND: PluginKind = PluginKind::Tuning;
    const NAME: &'static str = "lora";

    fn example() -> Self {
        Self::default()
    }
}
