//! The frozen model of a pipeline, and its assembly with blocks, tuning mode and head.

use std::sync::Arc;

use sepal_assets::{Asset, Assets, ignore_events};
use sepal_blocks::Ends;
use sepal_checkpoint::{Checkpoint, Part};
use sepal_config::Spec;
use sepal_model::Model;
use sepal_nn::{Parameters, from_host};
use sepal_plugin::{CombinedTuning, Head, HeadContext, Registry, TaskHead, TuningContext, TuningMode};
use sepal_prepare::{Fetcher, ModelFiles, describe_attempts, fetch_model, fetch_part, fetch_parts, token_ids};
use sepal_server::ModelIdentity;
use sepal_tokenize::{Tokenizer, TruncationSide};
use sepal_track::ModelFacts;
use tch::Tensor;

use crate::connect::{SwarmHandle, connect};
use crate::embedded::EmbeddedServers;
use crate::error::{AssembleError, BoxError, ModelError};
use crate::initial_head::initialise_head;
use crate::progress::Observer;

#[derive(Debug, Clone)]
pub(crate) struct FrozenModel {
    pub(crate) asset: Asset,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Embedded servers of its blocks.
    pub(crate) servers: EmbeddedServers,
}

impl FrozenModel {
    /// Fetches the parts of the model that this process needs: all shards only where the blocks run here.
    pub(crate) fn fetch(spec: &Spec, fetcher: &mut Fetcher<'_>) -> Result<Self, ModelError> {
        Self::new(fetch_model(spec, fetcher)?)
    }

    pub(crate) fn new(files: ModelFiles) -> Result<Self, ModelError> {
        let tokenizer = Arc::new(files.tokenizer()?);
        let ModelFiles { asset, checkpoint } = files;
        Ok(Self { asset, checkpoint, tokenizer, servers: EmbeddedServers::default() })
    }

    /// Files of the model.
    pub(crate) fn files(&self) -> ModelFiles {
        ModelFiles { asset: self.asset.clone(), checkpoint: self.checkpoint.clone() }
    }

    /// Fetches the parts of this model that the process needs for another pipeline.
    pub(crate) fn fetch_parts(&self, spec: &Spec, fetcher: &mut Fetcher<'_>) -> Result<(), ModelError> {
        fetch_parts(spec, &self.files(), fetcher)
    }

    pub(crate) fn facts(&self, spec: &Spec) -> ModelFacts {
        let model = ModelIdentity::from_checkpoint(&self.checkpoint);
        let model = model.with_formats(spec.model.weights, spec.model.compute_format());
        ModelFacts {
            source: self.asset.pinned().to_string(),
            unavailable_sources: describe_attempts(&self.asset.attempts),
            digest: model.digest,
            weights: model.weights,
            tokenizer: self.tokenizer.digest().to_owned(),
        }
    }

    /// Replaces the tokenizer by the one without the files beside it, if that one has this digest.
    pub(crate) fn use_tokenizer(&mut self, digest: &str) {
        if self.tokenizer.digest() != digest
            && let Some(tokenizer) = self.checkpoint.tokenizer_alone().filter(|tokenizer| tokenizer.digest() == digest)
        {
            self.tokenizer = Arc::new(tokenizer);
        }
    }

    /// End of long texts that is removed, by the pipeline or else by the tokenizer.
    pub(crate) fn truncation_side(&self, spec: &Spec) -> TruncationSide {
        sepal_prepare::truncation_side(spec, &self.tokenizer)
    }

    /// Returns an error if rows of `tokens` tokens after `prompts` prompts exceed the model's positions.
    pub(crate) fn check_positions(&self, tokens: usize, prompts: usize) -> Result<(), AssembleError> {
        match self.checkpoint.config().max_positions {
            Some(max_positions) if tokens + prompts > max_positions => {
                Err(AssembleError::Positions { tokens, prompts, max_positions })
            }
            _ => Ok(()),
        }
    }

    /// Rows of the output layer for these tokens, fp32 `[ids, hidden]`. Missing weights are fetched first.
    fn output_rows(&self, ids: &[i64]) -> Result<Tensor, BoxError> {
        let ids: Vec<usize> = ids.iter().map(|&id| usize::try_from(id)).collect::<Result<_, _>>()?;
        fetch_part(&Assets::from_env(), &self.asset, &self.checkpoint, Part::Output, &mut ignore_events)?;
        Ok(from_host(&self.checkpoint.output_rows(&ids)?)?)
    }

    /// Loads the embeddings and the final norm.
    pub(crate) fn load_ends(&self) -> Result<Ends, AssembleError> {
        Ends::load(&self.checkpoint)
            .map_err(|source| AssembleError::Load { part: "embeddings and final norm", source: source.into() })
    }
}

/// A task head with its parameters. It is built before the blocks, because labels are read by it.
pub(crate) struct BuiltHead {
    pub(crate) head: Box<dyn TaskHead>,
    pub(crate) params: Parameters,
    pub(crate) ends: Ends,
}

impl BuiltHead {
    /// Builds the head. `is_restored` is true if saved values replace all parameters.
    pub(crate) fn new(
        spec: &Spec,
        registry: &Registry,
        frozen: &FrozenModel,
        is_restored: bool,
    ) -> Result<Self, AssembleError> {
        let (mut params, ends) = (Parameters::new(), frozen.load_ends()?);
        let mut context = HeadContext {
            params: &mut params,
            hidden: frozen.checkpoint.config().hidden,
            embeddings: ends.embeddings(),
            tokenize: &|text| token_ids(&frozen.tokenizer, text),
            lm_rows: &|ids| frozen.output_rows(ids),
            is_restored,
            seed: spec.train.seed,
        };
        let head = registry
            .build::<Head>(&spec.task.name, spec.task.options(), &mut context)
            .map_err(|source| AssembleError::Build { key: "task", source })?;
        Ok(Self { head, params, ends })
    }

    /// Builds the tuning modes, whose parameters join those of the head. `is_restored` is true if saved values replace all
    /// parameters.
    pub(crate) fn build_tuning(
        &mut self,
        spec: &Spec,
        registry: &Registry,
        frozen: &FrozenModel,
        is_restored: bool,
    ) -> Result<Box<dyn TuningMode>, AssembleError> {
        let config = frozen.checkpoint.config();
        let sites = sepal_checkpoint::linear_sites(config);
        let mut context = TuningContext {
            params: &mut self.params,
            n_blocks: config.n_blocks,
            hidden: config.hidden,
            kv_size: config.kv_size(),
            sites: &sites,
            initializer_range: config.initializer_range,
            embeddings: self.ends.embeddings(),
            tokenize: &|text| token_ids(&frozen.tokenizer, text),
            labels: self.head.label_names(),
            is_restored,
            seed: spec.train.seed,
        };
        let modes = spec.tuning.modes().iter().map(|mode| (mode.name.as_str(), mode.options()));
        CombinedTuning::build(registry, &modes.collect::<Vec<_>>(), &mut context)
            .map_err(|source| AssembleError::Build { key: "tuning", source })
    }
}

/// Assembles the model for rows of up to `longest_row` tokens; `is_restored` as for [`BuiltHead::build_tuning`].
pub(crate) fn assemble(
    spec: &Spec,
    registry: &Registry,
    frozen: &FrozenModel,
    mut built: BuiltHead,
    longest_row: usize,
    is_restored: bool,
    observer: &mut dyn Observer,
) -> Result<(Model, SwarmHandle), AssembleError> {
    let head_params: Vec<String> = built.params.iter().map(|(name, _)| name.to_owned()).collect();
    let tuning = built.build_tuning(spec, registry, frozen, is_restored)?;
    if !is_restored {
        initialise_head(&*built.head, &built.params, &head_params, &*tuning, observer)?;
    }
    frozen.check_positions(longest_row, tuning.pre_seq_len())?;
    let tunables = tuning.tunables().map_err(AssembleError::Tuning)?.into_iter().map(|tunable| tunable.name).collect();
    let (handle, blocks) = connect(spec, &frozen.checkpoint, tunables, &frozen.servers, observer)?;
    let precision = spec.train.precision.dtype();
    let BuiltHead { head, params, ends } = built;
    let window_pool = spec.data.long_texts.pool();
    Ok((Model { ends, blocks, tuning, head, params, precision, calibration: None, window_pool }, handle))
}
