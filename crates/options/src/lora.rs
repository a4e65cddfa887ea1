use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use sepal_catalog::{Options, PluginKind};
use sepal_core::{LinearSite, SiteRole, TrainedTensor, TunableName};
use serde::{Deserialize, Serialize};

use crate::{ModelShape, OptionError, Targets, TuningOptions};

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

/// Shapes of the factors of the additions to one layer of each block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraFactors {
    /// Name of the layer.
    pub site: String,
    /// Inputs of the layer.
    pub inputs: usize,
    /// `[blocks, r, inputs]`.
    pub a: TrainedTensor,
    /// `[blocks, outputs, r]`.
    pub b: TrainedTensor,
}

impl LoraConfig {
    /// Returns the factors of each layer, for a model with `n_blocks` blocks.
    ///
    /// # Errors
    /// [`OptionError`] if the model does not have the named layers or blocks, or the rank exceeds a side of a layer.
    pub fn factors(&self, n_blocks: usize, sites: &[LinearSite]) -> Result<Vec<LoraFactors>, OptionError> {
        let roles = [SiteRole::Query, SiteRole::Value, SiteRole::QueryKeyValue];
        let sites = Targets::select(self.targets.as_ref(), &roles, sites)?;
        self.check_rank(&sites)?;
        let first_block = self.first_block(n_blocks)?;
        let (rank, n_tuned) = (self.r.get(), n_blocks - first_block);
        let factors = |site: &LinearSite| {
            let tensor =
                |name: TunableName, rows, columns| TrainedTensor::tunable(&name, first_block, [n_tuned, rows, columns]);
            LoraFactors {
                site: site.name.clone(),
                inputs: site.inputs,
                a: tensor(TunableName::LoraA(site.name.clone()), rank, site.inputs),
                b: tensor(TunableName::LoraB(site.name.clone()), site.outputs, rank),
            }
        };
        Ok(sites.into_iter().map(factors).collect())
    }

    /// Returns the index of the first tuned block of a model with `n_blocks`.
    ///
    /// # Errors
    /// [`OptionError`] if the model has fewer blocks than are tuned.
    pub fn first_block(&self, n_blocks: usize) -> Result<usize, OptionError> {
        match self.blocks {
            TunedBlocks::All => Ok(0),
            TunedBlocks::Last(last) => n_blocks.checked_sub(last.get()).ok_or_else(|| OptionError {
                key: "blocks",
                message: format!("the model has {n_blocks} blocks, not {last}"),
            }),
        }
    }

    fn check_rank(&self, sites: &[&LinearSite]) -> Result<(), OptionError> {
        let rank = self.r.get();
        let side = |site: &LinearSite| site.outputs.min(site.inputs);
        let smallest = sites.iter().min_by_key(|site| side(site));
        match smallest {
            Some(site) if side(site) < rank => {
                let LinearSite { name, outputs, inputs, .. } = site;
                let message = format!(
                    "rank {rank} is larger than `{name}`, which has {outputs} outputs and {inputs} inputs; use at most {}",
                    side(site)
                );
                Err(OptionError { key: "r", message })
            }
            _ => Ok(()),
        }
    }
}

impl TuningOptions for LoraConfig {
    fn tensors(&self, model: &ModelShape<'_>) -> Result<Vec<TrainedTensor>, OptionError> {
        let factors = self.factors(model.n_blocks, model.sites)?;
        Ok(factors.into_iter().flat_map(|LoraFactors { a, b, .. }| [a, b]).collect())
    }

    fn pre_seq_len(&self) -> usize {
        0
    }

    fn adapter(&self) -> Option<&Path> {
        match &self.init {
            LoraInit::Adapter(path) => Some(path),
            LoraInit::KaimingUniform => None,
        }
    }
}
