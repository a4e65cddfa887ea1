use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use sepal_catalog::{Options, PluginKind};
use sepal_core::{LinearSite, SiteRole, TrainedTensor, TunableName};
use serde::{Deserialize, Serialize};

use crate::{ModelShape, OptionError, Targets, TuningOptions};

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

impl Ia3Config {
    /// Factors of each layer, `[n_blocks, outputs]` or `[n_blocks, inputs]`.
    ///
    /// # Errors
    /// [`OptionError`] if the model does not have the named layers.
    pub fn factors(&self, n_blocks: usize, sites: &[LinearSite]) -> Result<Vec<TrainedTensor>, OptionError> {
        let roles = [SiteRole::Key, SiteRole::Value, SiteRole::QueryKeyValue, SiteRole::MlpOutput];
        let selected = Targets::select(self.targets.as_ref(), &roles, sites)?;
        Ok(selected.into_iter().map(|site| factors_of(site, n_blocks)).collect())
    }
}

fn factors_of(site: &LinearSite, n_blocks: usize) -> TrainedTensor {
    let name = site.name.clone();
    let (name, size) = match site.role {
        SiteRole::MlpOutput => (TunableName::ScaleInput(name), site.inputs),
        _ => (TunableName::ScaleOutput(name), site.outputs),
    };
    TrainedTensor::tunable(&name, 0, [n_blocks, size])
}

impl TuningOptions for Ia3Config {
    fn tensors(&self, model: &ModelShape<'_>) -> Result<Vec<TrainedTensor>, OptionError> {
        self.factors(model.n_blocks, model.sites)
    }

    fn pre_seq_len(&self) -> usize {
        0
    }

    fn adapter(&self) -> Option<&Path> {
        match &self.init {
            Ia3Init::Adapter(path) => Some(path),
            Ia3Init::Ones => None,
        }
    }
}
