//! The model of a pipeline, put together: frozen parts, blocks wherever they run, what trains, and the head.

use std::sync::atomic::AtomicBool;

use sepal_assets::{Asset, Assets};
use sepal_blocks::Ends;
use sepal_checkpoint::{Checkpoint, Part};
use sepal_core::Span;
use sepal_nn::Parameters;
use sepal_plugin::{Head, HeadContext, Registry, TaskHead, Tuning, TuningContext, TuningMode};
use sepal_server::ModelIdentity;
use sepal_tokenize::{Tokenizer, TruncationSide};
use sepal_track::ModelFacts;
use tch::Tensor;

use crate::adopt::start_head;
use crate::connect::{Kept, connect};
use crate::data;
use crate::error::RunError;
use crate::model::Model;
use crate::model_files::{ModelFiles, watched};
use crate::progress::Observer;
use crate::spec::{Spec, SwarmSpec};

/// The frozen model's files, and its tokenizer.
pub(crate) struct Frozen {
    pub(crate) asset: Asset,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) tokenizer: Tokenizer,
}

impl Frozen {
    /// Fetches what this process needs of the model: all shards only where the blocks run here.
    pub(crate) fn fetch(
        spec: &Spec,
        assets: &Assets,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Self, RunError> {
        Self::of(fetch_model(spec, assets, observer, stop)?)
    }

    /// These files, with their tokenizer.
    pub(crate) fn of(ModelFiles { asset, checkpoint }: ModelFiles) -> Result<Self, RunError> {
        let tokenizer = checkpoint
            .tokenizer()
            .map_err(|source| RunError::Tokenizer { path: asset.path.clone(), source: source.into() })?;
        let (ids, embeddings) = (tokenizer.vocab_size(), checkpoint.config().vocab_size);
        if ids > embeddings {
            let last = tokenizer.last_token().unwrap_or_default();
            return Err(RunError::Vocabulary { path: asset.path, ids, embeddings, last });
        }
        Ok(Self { asset, checkpoint, tokenizer })
    }

    /// What the model is, in the format in which its blocks are kept.
    pub(crate) fn facts(&self, spec: &Spec) -> ModelFacts {
        let model = ModelIdentity::from_checkpoint(&self.checkpoint).with_weight_format(spec.model.weights);
        ModelFacts {
            source: self.asset.pinned().to_string(),
            passed_over: data::passed_over(&self.asset.attempts),
            digest: model.digest,
            weights: model.weights,
            tokenizer: self.tokenizer.digest().to_owned(),
        }
    }

    /// Takes the tokenizer of this digest, if the model's was that one before the files beside it were read.
    pub(crate) fn take_tokenizer(&mut self, digest: &str) {
        if self.tokenizer.digest() != digest
            && let Some(alone) = self.checkpoint.tokenizer_alone().filter(|alone| alone.digest() == digest)
        {
            self.tokenizer = alone;
        }
    }

    /// End of long texts that is removed: as the pipeline says, or else the tokenizer.
    pub(crate) fn truncation_side(&self, spec: &Spec) -> TruncationSide {
        spec.data.truncation_side.map_or_else(|| self.tokenizer.truncation_side(), TruncationSide::from)
    }

    /// Rows of so many tokens fit the model, with so many prompts.
    pub(crate) fn check_positions(&self, tokens: usize, prompts: usize) -> Result<(), RunError> {
        match self.checkpoint.config().max_positions {
            Some(max_positions) if tokens + prompts > max_positions => {
                Err(RunError::Positions { tokens, prompts, max_positions })
            }
            _ => Ok(()),
        }
    }
}

/// Fetches the model's files.
pub(crate) fn fetch_model(
    spec: &Spec,
    assets: &Assets,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<ModelFiles, RunError> {
    let mut watch = watched("model", observer, stop);
    let files = ModelFiles::open(assets, &spec.model.source, &mut watch)?;
    match (&spec.swarm, Span::new(0, spec.model.local_blocks.min(files.checkpoint.config().n_blocks))) {
        (SwarmSpec::Embedded(_) | SwarmSpec::None(_), _) => files.bring(assets, Part::Whole, &mut watch)?,
        (_, first) => {
            files.bring(assets, Part::Ends, &mut watch)?;
            // There is no span of no blocks.
            if let Ok(first) = first {
                files.bring(assets, Part::Blocks(first), &mut watch)?;
            }
        }
    }
    Ok(files)
}

/// The head, which comes before everything that is large, since labels are read by it.
pub(crate) fn build_head(
    spec: &Spec,
    registry: &Registry,
    frozen: &Frozen,
    params: &mut Parameters,
) -> Result<Box<dyn TaskHead>, RunError> {
    let hidden = frozen.checkpoint.config().hidden;
    let mut cx = HeadContext { params, hidden, seed: spec.train.seed };
    registry
        .build::<Head>(&spec.task.name, spec.task.options(), &mut cx)
        .map_err(|source| RunError::Build { key: "task", source })
}

/// The model with everything around it. `longest_row` is the most tokens that a row will have, and
/// what trains `is_restored` if its numbers are replaced by saved ones.
pub(crate) fn assemble(
    spec: &Spec,
    registry: &Registry,
    frozen: &Frozen,
    (head, mut params): (Box<dyn TaskHead>, Parameters),
    longest_row: usize,
    is_restored: bool,
    observer: &mut dyn Observer,
) -> Result<(Model, Kept), RunError> {
    let checkpoint = &frozen.checkpoint;
    let ends = Ends::load(checkpoint)
        .map_err(|source| RunError::Load { what: "embeddings and final norm", source: source.into() })?;
    let cx = (&*head, ends.embedding_matrix(), is_restored);
    let of_head: Vec<String> = params.iter().map(|(name, _)| name.to_owned()).collect();
    let tuning = build_tuning(spec, registry, frozen, cx, &mut params)?;
    if !is_restored {
        start_head(&params, &of_head, head.label_names(), &*tuning, observer)?;
    }
    frozen.check_positions(longest_row, tuning.pre_seq_len())?;
    let (kept, blocks) = connect(spec, checkpoint, observer)?;
    let whole = Span::new(0, checkpoint.config().n_blocks)
        .map_err(|source| RunError::Load { what: "blocks", source: source.into() })?;
    Ok((Model { ends, blocks, tuning, head, params, whole, precision: spec.train.precision }, kept))
}

/// What trains besides the head.
pub(crate) fn build_tuning(
    spec: &Spec,
    registry: &Registry,
    frozen: &Frozen,
    (head, embeddings, is_restored): (&dyn TaskHead, &Tensor, bool),
    params: &mut Parameters,
) -> Result<Box<dyn TuningMode>, RunError> {
    let config = frozen.checkpoint.config();
    let mut cx = TuningContext {
        params,
        n_blocks: config.n_blocks,
        hidden: config.hidden,
        kv_size: config.kv_size(),
        initializer_range: config.initializer_range,
        embeddings,
        tokenize: &|text| Ok(frozen.tokenizer.encode_plain(text)?.into_iter().map(i64::from).collect()),
        labels: head.label_names(),
        is_restored,
        seed: spec.train.seed,
    };
    registry
        .build::<Tuning>(&spec.tuning.name, spec.tuning.options(), &mut cx)
        .map_err(|source| RunError::Build { key: "tuning", source })
}
