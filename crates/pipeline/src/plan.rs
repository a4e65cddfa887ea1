//! Plan of a run: the model, the data, bytes, servers, time and disk space.

use std::sync::atomic::AtomicBool;

use sepal_assets::{Assets, free_space};
use sepal_blocks::{Ends, Placement, weight_bytes};
use sepal_checkpoint::{Checkpoint, Format, Part};
use sepal_config::spec::{EvaluateEvery, KeptAdapter, Spec, SwarmSpec};
use sepal_core::Span;
use sepal_nn::Parameters;
use sepal_plugin::Registry;
use sepal_prepare::{Fetcher, ModelFiles, watched};
use sepal_train::RunLength;
use serde::Serialize;

use crate::calibrate;
use crate::data::{self, PreparedData};
use crate::error::{AssembleError, RunError};
use crate::frozen_model::{BuiltHead, FrozenModel, assemble};
use crate::plan::bytes::Step;
use crate::plan::probe::Probe;
use crate::progress::Observer;
use crate::run::set_threads;

mod bytes;
mod probe;
mod route;
mod servers;

pub use self::bytes::BytesPlan;
pub use self::probe::{ProbeEnd, ProbeSpec, TimePlan};
pub use self::route::{HopPlan, ServerPlan};
pub use self::servers::{FormatPlan, ServerGroup, ServersPlan, ServersSpec, plan_servers};

/// Resources that a run needs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Name of the pipeline.
    pub name: String,
    /// The frozen model.
    pub model: ModelPlan,
    /// Trained tensors.
    pub trainable: Vec<TensorPlan>,
    /// The labelled texts.
    pub data: DataPlan,
    /// Steps and evaluations.
    pub steps: StepsPlan,
    /// Bytes on the wire in a step of the mean size; `None` without servers.
    pub bytes: Option<BytesPlan>,
    /// Route through the blocks; `None` without a probe.
    pub route: Option<Vec<HopPlan>>,
    /// Servers that responded and serve the model.
    pub servers: Vec<ServerPlan>,
    /// Measured and estimated times; `None` without a probe.
    pub time: Option<TimePlan>,
    /// Disk space of the run.
    pub disk: DiskPlan,
}

/// The frozen model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelPlan {
    /// Source.
    pub source: String,
    /// Architecture.
    pub family: String,
    /// Number of transformer blocks.
    pub blocks: usize,
    /// Hidden size.
    pub hidden: usize,
    /// Number of parameters of the checkpoint.
    pub parameters: u64,
    /// File format and number formats of the parameters.
    pub stored_as: String,
    /// Size of the files in bytes.
    pub file_bytes: u64,
    /// Weight format of the running blocks.
    pub weights: String,
    /// Number format of the products of the blocks.
    pub compute: String,
    /// Estimated: bytes of the weights of all blocks in this format.
    pub estimated_block_bytes: u64,
    /// Estimated: bytes of the blocks in this process.
    pub estimated_bytes_here: u64,
    /// Largest memory of embeddings and final norm in this process, in bytes.
    pub ends_bytes: u64,
}

/// A trained tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorPlan {
    /// Name.
    pub name: String,
    /// Shape.
    pub shape: Vec<i64>,
    /// Number of values.
    pub numbers: u64,
    /// Fraction of all trained values.
    pub share: f64,
}

/// The labelled texts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataPlan {
    /// Source of the training rows.
    pub train: String,
    /// Number of training rows.
    pub train_rows: usize,
    /// Source of the validation rows.
    pub validation: String,
    /// Number of validation rows.
    pub validation_rows: usize,
    /// Rows of a training batch.
    pub batch_size: usize,
    /// Mean tokens of a batch in the first epoch, without prompts.
    pub mean_batch_tokens: f64,
    /// Median tokens of a batch.
    pub median_batch_tokens: usize,
    /// Maximum tokens of a batch.
    pub longest_batch_tokens: usize,
    /// Tokens of the longest row.
    pub longest_row_tokens: usize,
    /// Training and validation rows that are shortened to `data.max_length`.
    pub truncated_rows: usize,
    /// Tokens removed from these rows.
    pub truncated_tokens: usize,
    /// Largest number of tokens removed from one row.
    pub most_truncated_tokens: usize,
    /// Side of the texts that is removed, `left` or `right`.
    pub truncation_side: String,
    /// Tokens of all training rows in the first epoch.
    pub epoch_tokens: usize,
}

/// Steps and evaluations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepsPlan {
    /// Optimizer steps of an epoch.
    pub per_epoch: u64,
    /// Optimizer steps of the run, if nothing ends it early.
    pub total: u64,
    /// Batches of a step.
    pub accumulate: usize,
    /// Number of evaluations.
    pub evaluations: u64,
    /// `train.max_minutes`.
    pub max_minutes: Option<f64>,
    /// True if `train.early_stopping` may end the run early.
    pub may_stop_early: bool,
}

/// Disk space of the run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DiskPlan {
    /// Estimated: bytes of the adapter, without the file's header.
    pub estimated_adapter_bytes: u64,
    /// Estimated: bytes of the checkpoints that exist at the same time, for an optimizer with two values of state for
    /// each trained value.
    pub estimated_checkpoint_bytes: u64,
    /// Free bytes at the run folder's location.
    pub free_bytes: Option<u64>,
}

/// Plans the run of `spec`. With a probe, the blocks are loaded or connected to, and `probe.steps` steps are measured
/// on the run's first batches after a warm-up; parameters and files stay unchanged. Without steps, the plan connects to
/// nothing and fetches only embeddings and norm. When `stop` is set, the plan has the measurements so far.
///
/// # Errors
/// [`RunError`] like the run, if a part is not available.
pub fn plan(
    spec: &Spec,
    registry: &Registry,
    probe: ProbeSpec,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Plan, RunError> {
    set_threads(spec);
    let assets = Assets::from_env();
    let mut fetcher = Fetcher { assets: &assets, observer: &mut *observer, stop };
    let rows = data::read(spec, &mut fetcher)?;
    let frozen = match probe.steps {
        0 => {
            let mut watch = watched("model", fetcher.observer, stop);
            let files = ModelFiles::open(&assets, &spec.model.source, &mut watch)?;
            files.fetch(&assets, Part::Ends, &mut watch)?;
            FrozenModel::new(files)?
        }
        _ => FrozenModel::fetch(spec, &mut fetcher)?,
    };
    let mut built = BuiltHead::new(spec, registry, &frozen, false)?;
    calibrate::check(spec.calibrate, built.head.task()).map_err(AssembleError::from)?;
    let prepared = data::prepare(spec, rows, &assets, &frozen, &*built.head, observer)?;
    let length = RunLength::new(&spec.train, &prepared.train);
    let data = data_plan(spec, &prepared);
    let steps = steps_plan(spec, length, prepared.validation.is_some());
    let (mut route, mut servers, mut time) = (None, Vec::new(), None);
    let (step, trainable) = if probe.steps == 0 {
        let tuning = built.build_tuning(spec, registry, &frozen, false)?;
        (Step::new(spec, &frozen, &*tuning, &data)?, tensors(&built.params))
    } else {
        let longest = prepared.longest_row();
        let (mut model, handle) = assemble(spec, registry, &frozen, built, longest, false, observer)?;
        let step = Step::new(spec, &frozen, &*model.tuning, &data)?;
        let (hops, found) = route::plan_route(spec, &frozen, &handle, step.positions())?;
        (route, servers) = (Some(hops), found);
        let probe = Probe { spec, prepared: &prepared, length, probe, observer, stop };
        time = probe.run(&mut model, &data, &steps)?;
        let trainable = tensors(&model.params);
        drop(model);
        drop(handle);
        (step, trainable)
    };
    let numbers = trainable.iter().map(|tensor| tensor.numbers).sum();
    let spans = route
        .as_ref()
        .map(|route: &Vec<HopPlan>| route.iter().filter(|hop| hop.server.is_some()).map(|hop| hop.blocks).collect());
    let bytes = step.bytes(spec, spans, time.as_ref());
    let (name, model, disk) = (spec.name.clone(), model_plan(spec, &frozen), disk_plan(spec, numbers));
    Ok(Plan { name, model, trainable, data, steps, bytes, route, servers, time, disk })
}

fn model_plan(spec: &Spec, frozen: &FrozenModel) -> ModelPlan {
    let (checkpoint, config) = (&frozen.checkpoint, frozen.checkpoint.config());
    let description = checkpoint.describe();
    let bytes = |blocks: usize| Span::new(0, blocks).map_or(0, |span| block_bytes(spec, checkpoint, span));
    let here = match spec.swarm {
        SwarmSpec::None(_) | SwarmSpec::Embedded(_) => config.n_blocks,
        _ => spec.model.local_blocks.min(config.n_blocks),
    };
    let format = if description.format == Format::Gguf { "gguf" } else { "safetensors" };
    ModelPlan {
        source: frozen.asset.pinned().to_string(),
        family: config.family.name().to_owned(),
        blocks: config.n_blocks,
        hidden: config.hidden,
        parameters: checkpoint.parameter_count(),
        stored_as: format!("{format}, {}", description.dtypes.join("/")),
        file_bytes: description.size_bytes,
        weights: spec.model.weights.to_string(),
        compute: spec.model.compute_format().to_string(),
        estimated_block_bytes: bytes(config.n_blocks),
        estimated_bytes_here: bytes(here),
        ends_bytes: Ends::memory_bytes(config),
    }
}

/// Estimated bytes of the blocks.
fn block_bytes(spec: &Spec, checkpoint: &Checkpoint, span: Span) -> u64 {
    let placement = Placement::new(spec.model.device, spec.model.weights, spec.model.compute_format());
    weight_bytes(&checkpoint.part_sizes(Part::Blocks(span)), placement)
}

fn tensors(params: &Parameters) -> Vec<TensorPlan> {
    let all = params.count().max(1) as f64;
    let tensor = |(name, tensor): (&str, &tch::Tensor)| TensorPlan {
        name: name.to_owned(),
        shape: tensor.size(),
        numbers: tensor.numel() as u64,
        share: tensor.numel() as f64 / all,
    };
    params.iter().map(tensor).collect()
}

fn data_plan(spec: &Spec, prepared: &PreparedData) -> DataPlan {
    let mut tokens: Vec<usize> = prepared.train.epoch(0).map(|batch| batch.tokens.n_tokens()).collect();
    tokens.sort_unstable();
    let epoch_tokens: usize = tokens.iter().sum();
    let facts = &prepared.facts;
    DataPlan {
        train: facts.train.clone(),
        train_rows: facts.train_rows,
        validation: facts.validation.clone(),
        validation_rows: facts.validation_rows,
        batch_size: spec.loader.batch_size,
        mean_batch_tokens: epoch_tokens as f64 / tokens.len().max(1) as f64,
        median_batch_tokens: tokens.get(tokens.len() / 2).copied().unwrap_or(0),
        longest_batch_tokens: tokens.last().copied().unwrap_or(0),
        longest_row_tokens: prepared.train.longest_row(),
        truncated_rows: prepared.truncation.rows,
        truncated_tokens: prepared.truncation.tokens,
        most_truncated_tokens: prepared.truncation.max,
        truncation_side: facts.truncation_side.clone().unwrap_or_default(),
        epoch_tokens,
    }
}

fn steps_plan(spec: &Spec, length: RunLength, has_validation: bool) -> StepsPlan {
    let every = |steps: u64| length.total_steps / steps + u64::from(!length.total_steps.is_multiple_of(steps));
    let evaluations = match spec.evaluate.every {
        _ if !has_validation => 0,
        EvaluateEvery::Never => 0,
        EvaluateEvery::End => 1,
        EvaluateEvery::Epoch => every(length.steps_per_epoch.max(1)).max(1),
        EvaluateEvery::Steps(steps) => every(steps.max(1)).max(1),
    };
    StepsPlan {
        per_epoch: length.steps_per_epoch,
        total: length.total_steps,
        accumulate: spec.train.accumulate,
        evaluations,
        max_minutes: spec.train.max_minutes,
        may_stop_early: spec.train.early_stopping.is_some(),
    }
}

fn disk_plan(spec: &Spec, numbers: u64) -> DiskPlan {
    let adapter = numbers * 4;
    // Parameters, two values of optimizer state for each, and the best parameters so far.
    let kept = if spec.output.adapter == KeptAdapter::Best { 1 } else { 0 };
    let checkpoint = &spec.checkpoint;
    let is_regular = checkpoint.every_minutes.is_some() || checkpoint.every_steps.is_some();
    // A new checkpoint is written before the oldest is removed. Without regular ones an interruption writes one.
    let at_once = if is_regular { checkpoint.keep as u64 + 1 } else { 1 };
    DiskPlan {
        estimated_adapter_bytes: adapter,
        estimated_checkpoint_bytes: at_once * adapter * (3 + kept),
        free_bytes: free_space(&spec.output.folder),
    }
}
