//! What a run will take, before it runs: the model, the data, bytes, servers, time and disk space.

use std::sync::atomic::AtomicBool;

use sepal_assets::{Assets, free_space};
use sepal_checkpoint::{Checkpoint, Part};
use sepal_config::spec::{EvaluateEvery, KeptAdapter, Spec, SwarmSpec};
use sepal_core::Span;
use sepal_nn::Parameters;
use sepal_plugin::Registry;
use sepal_train::RunLength;
use serde::Serialize;

use crate::data::{self, PreparedData};
use crate::error::RunError;
use crate::frozen_model::{BuiltHead, FrozenModel, assemble};
use crate::model_files::{ModelFiles, watched};
use crate::plan::bytes::Step;
use crate::plan::probe::Probe;
use crate::progress::Observer;
use crate::run::set_threads;

mod bytes;
mod probe;
mod route;

pub use self::bytes::BytesPlan;
pub use self::probe::{ProbeEnd, ProbeSpec, TimePlan};
pub use self::route::{HopPlan, ServerPlan};

/// What a run will take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The pipeline's name.
    pub name: String,
    /// The frozen model.
    pub model: ModelPlan,
    /// What trains, tensor by tensor.
    pub trainable: Vec<TensorPlan>,
    /// The labelled texts.
    pub data: DataPlan,
    /// Steps and evaluations.
    pub steps: StepsPlan,
    /// What crosses the wire in a step of the mean size; nothing where all blocks run in this process without a server.
    pub bytes: Option<BytesPlan>,
    /// Where the blocks run; nothing where it was not looked.
    pub route: Option<Vec<HopPlan>>,
    /// The servers that answered and serve the model.
    pub servers: Vec<ServerPlan>,
    /// What was measured, and what the run is estimated to take by it; nothing without a probe.
    pub time: Option<TimePlan>,
    /// What the run writes.
    pub disk: DiskPlan,
}

/// The frozen model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelPlan {
    /// Where it comes from.
    pub source: String,
    /// Its architecture.
    pub family: String,
    /// Transformer blocks.
    pub blocks: usize,
    /// Size of a hidden state.
    pub hidden: usize,
    /// Numbers of the checkpoint.
    pub parameters: u64,
    /// How they are stored in the files.
    pub stored_as: String,
    /// Bytes of the files.
    pub file_bytes: u64,
    /// How the blocks keep their weights when they run.
    pub weights: String,
    /// Estimated: bytes of the weights of all blocks in that format.
    pub estimated_block_bytes: u64,
    /// Estimated: of these, in this process.
    pub estimated_bytes_here: u64,
    /// Bytes of embeddings and the final norm, which are in this process in fp32.
    pub ends_bytes: u64,
}

/// A tensor that trains.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorPlan {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// How many numbers it has.
    pub numbers: u64,
    /// Their share of all that trains.
    pub share: f64,
}

/// The labelled texts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataPlan {
    /// Where the training rows come from.
    pub train: String,
    /// Training rows.
    pub train_rows: usize,
    /// Where the validation rows come from.
    pub validation: String,
    /// Validation rows.
    pub validation_rows: usize,
    /// Rows of a training batch.
    pub batch_size: usize,
    /// Tokens of a batch in the first pass, prompts not counted: the mean.
    pub mean_batch_tokens: f64,
    /// The median.
    pub median_batch_tokens: usize,
    /// The most.
    pub longest_batch_tokens: usize,
    /// Tokens of the longest row.
    pub longest_row_tokens: usize,
    /// Rows, of both kinds, whose texts are shortened to `data.max_length`.
    pub truncated_rows: usize,
    /// Tokens that these rows lose together.
    pub truncated_tokens: usize,
    /// Tokens that the longest of them loses.
    pub most_truncated_tokens: usize,
    /// End of the texts that is removed, `left` or `right`.
    pub truncation_side: String,
    /// Tokens of all training rows in the first pass.
    pub epoch_tokens: usize,
}

/// Steps and evaluations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepsPlan {
    /// Optimizer steps of a pass over the training rows.
    pub per_epoch: u64,
    /// Optimizer steps of the run, if nothing ends it before.
    pub total: u64,
    /// Batches of a step.
    pub accumulate: usize,
    /// Predictions of all validation rows.
    pub evaluations: u64,
    /// `train.max_minutes`.
    pub max_minutes: Option<f64>,
    /// Whether `train.early_stopping` may end the run before.
    pub may_stop_early: bool,
}

/// What the run writes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DiskPlan {
    /// Estimated: the adapter, without the file's header.
    pub estimated_adapter_bytes: u64,
    /// Estimated: the checkpoints that lie there at the same time, with an optimizer that keeps two numbers for each that
    /// trains.
    pub estimated_checkpoint_bytes: u64,
    /// Bytes that are free where the run's folder will be.
    pub free_bytes: Option<u64>,
}

/// Finds out what the run of `spec` will take. With a probe of some steps, the blocks are loaded or connected to, and so many
/// steps are measured on the run's first batches, after one that is not counted; nothing is moved or written. With 0, nothing
/// is connected to, and of the model only embeddings and norm are fetched. When `stop` is set, the plan has what was measured
/// until then.
///
/// # Errors
/// [`RunError`] if a part cannot be had, as the run would.
pub fn plan(
    spec: &Spec,
    registry: &Registry,
    probe: ProbeSpec,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Plan, RunError> {
    set_threads(spec);
    let assets = Assets::from_env();
    let rows = data::read(spec, &assets, observer, stop)?;
    let frozen = match probe.steps {
        0 => fetch_ends(spec, &assets, observer, stop)?,
        _ => FrozenModel::fetch(spec, &assets, observer, stop)?,
    };
    let mut built = BuiltHead::new(spec, registry, &frozen)?;
    let prepared = data::prepare(spec, rows, &assets, &frozen, &*built.head, observer)?;
    let length = RunLength::new(&spec.train, &prepared.train);
    let data = data_plan(spec, &prepared);
    let steps = steps_plan(spec, length, prepared.validation.is_some());
    let mut plan = Plan {
        name: spec.name.clone(),
        model: model_plan(spec, &frozen),
        trainable: Vec::new(),
        bytes: None,
        route: None,
        servers: Vec::new(),
        time: None,
        disk: disk_plan(spec, 0),
        data,
        steps,
    };
    let step = if probe.steps == 0 {
        let ends = frozen.load_ends()?;
        let tuning = built.build_tuning(spec, registry, &frozen, ends.embedding_matrix(), false)?;
        plan.trainable = tensors(&built.params);
        Step::new(spec, &frozen, &*tuning, &plan.data)?
    } else {
        let longest = prepared.longest_row();
        let (mut model, handle) = assemble(spec, registry, &frozen, built, longest, false, observer)?;
        plan.trainable = tensors(&model.params);
        let step = Step::new(spec, &frozen, &*model.tuning, &plan.data)?;
        let (route, servers) = route::plan_route(spec, &frozen, &handle, step.positions())?;
        (plan.route, plan.servers) = (Some(route), servers);
        let probe = Probe { spec, prepared: &prepared, length, probe, observer, stop };
        plan.time = probe.run(&mut model, &plan.data, &plan.steps)?;
        drop(model);
        drop(handle);
        step
    };
    let numbers = plan.trainable.iter().map(|tensor| tensor.numbers).sum();
    plan.disk = disk_plan(spec, numbers);
    let spans = plan.route.as_ref().map(|route| route.iter().filter(|hop| hop.server.is_some()).map(|hop| hop.blocks));
    plan.bytes = step.bytes(spec, spans.map(Iterator::collect), plan.time.as_ref());
    Ok(plan)
}

/// What this process needs of the model before it connects to anyone.
fn fetch_ends(
    spec: &Spec,
    assets: &Assets,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<FrozenModel, RunError> {
    let files = {
        let mut watch = watched("model", observer, stop);
        let files = ModelFiles::open(assets, &spec.model.source, &mut watch)?;
        files.fetch(assets, Part::Ends, &mut watch)?;
        files
    };
    Ok(FrozenModel::new(files)?)
}

fn model_plan(spec: &Spec, frozen: &FrozenModel) -> ModelPlan {
    let (checkpoint, config) = (&frozen.checkpoint, frozen.checkpoint.config());
    let description = checkpoint.describe();
    let bytes = |blocks: usize| Span::new(0, blocks).map_or(0, |span| block_bytes(spec, checkpoint, span));
    let here = match spec.swarm {
        SwarmSpec::None(_) | SwarmSpec::Embedded(_) => config.n_blocks,
        _ => spec.model.local_blocks.min(config.n_blocks),
    };
    let format = match description.format {
        sepal_checkpoint::Format::Safetensors => "safetensors",
        sepal_checkpoint::Format::Gguf => "gguf",
    };
    ModelPlan {
        source: frozen.asset.pinned().to_string(),
        family: config.family.name().to_owned(),
        blocks: config.n_blocks,
        hidden: config.hidden,
        parameters: checkpoint.parameter_count(),
        stored_as: format!("{format}, {}", description.dtypes.join("/")),
        file_bytes: description.size_bytes,
        weights: spec.model.weights.to_string(),
        estimated_block_bytes: bytes(config.n_blocks),
        estimated_bytes_here: bytes(here),
        ends_bytes: checkpoint.part_parameter_count(Part::Ends) * 4,
    }
}

/// Estimated: norms are kept in fp32 whatever the format, which is not counted.
fn block_bytes(spec: &Spec, checkpoint: &Checkpoint, span: Span) -> u64 {
    (checkpoint.part_parameter_count(Part::Blocks(span)) as f64 * spec.model.weights.bits() / 8.0).ceil() as u64
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
    let mut tokens: Vec<usize> = prepared.train.epoch(0).map(|batch| batch.rows.n_tokens()).collect();
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
    // Parameters, two numbers of the optimizer for each, and the best parameters so far.
    let kept = if spec.output.adapter == KeptAdapter::Best { 1 } else { 0 };
    let checkpoint = &spec.checkpoint;
    let is_regular = checkpoint.every_minutes.is_some() || checkpoint.every_steps.is_some();
    // One is written before the oldest goes; without regular ones there is that of an interruption.
    let at_once = if is_regular { checkpoint.keep as u64 + 1 } else { 1 };
    DiskPlan {
        estimated_adapter_bytes: adapter,
        estimated_checkpoint_bytes: at_once * adapter * (3 + kept),
        free_bytes: free_space(&spec.output.folder),
    }
}
