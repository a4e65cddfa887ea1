//! Plan of a run: the model, the trained tensors, the data, bytes, servers, time and disk space.
//!
//! Counts are made here, from shapes. The other parts are measured where the blocks are.

use sepal_assets::free_space;
use sepal_checkpoint::{Checkpoint, Format, Part, ends_bytes};
use sepal_config::spec::{EvaluateEvery, KeptAdapter, RunLength, Spec, SwarmSpec};
use sepal_core::{Device, Span, TrainedTensor};
use serde::Serialize;

use crate::model_files::ModelFiles;
use crate::rows::PreparedData;

mod bytes;

pub use self::bytes::{BytesPlan, Step};

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
    pub shape: Vec<usize>,
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

/// A span of blocks and its server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HopPlan {
    /// The blocks.
    pub blocks: Span,
    /// Index of the server in [`Plan::servers`]; `None` for blocks in this process.
    pub server: Option<usize>,
    /// Estimated: bytes of the weights of these blocks.
    pub estimated_bytes: u64,
}

/// A server that serves the model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServerPlan {
    /// Address of the server.
    pub place: String,
    /// Blocks of the server.
    pub blocks: Span,
    /// Time of an empty call, in milliseconds.
    pub round_trip_ms: f64,
    /// Microseconds per token and block of a forward pass, as the server reports it; `None` before its first call.
    pub us_per_token_block: Option<f64>,
    /// Calls in the server's queue.
    pub queue: u32,
}

/// Measured and estimated times.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TimePlan {
    /// Measured: number of steps, without the warm-up.
    pub probe_steps: u64,
    /// Reason for measuring less than requested; none if everything was measured.
    pub ended_by: Option<ProbeEnd>,
    /// Measured: seconds of the warm-up step, which opens connections.
    pub first_step_seconds: f64,
    /// Measured: mean seconds of a step, without the optimizer.
    pub step_seconds: f64,
    /// Measured: mean tokens of a step.
    pub step_tokens: f64,
    /// Measured: training tokens per second.
    pub tokens_per_second: f64,
    /// Measured: mean bytes sent in a step.
    pub step_bytes_up: u64,
    /// Measured: mean bytes received in a step.
    pub step_bytes_down: u64,
    /// Measured: validation tokens per second; `None` without validation rows or predictions. Evaluations are then
    /// assumed to be as fast as training.
    pub evaluation_tokens_per_second: Option<f64>,
    /// Estimated: seconds of all steps.
    pub estimated_training_seconds: f64,
    /// Estimated: seconds of one evaluation.
    pub estimated_evaluation_seconds: f64,
    /// Estimated: seconds of the run, without fetching; at most `train.max_minutes` and the last evaluation.
    pub estimated_seconds: f64,
}

/// Reason for a probe to measure less than requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProbeEnd {
    /// Time limit.
    TimeLimit,
    /// Interruption.
    Interrupted,
}

/// Trained tensors of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trained {
    /// Parameters, in their order.
    pub params: Vec<TrainedTensor>,
    /// Tunables of the blocks; tensors that the blocks do not take are ignored.
    pub tunables: Vec<TrainedTensor>,
    /// Positions before each row.
    pub prompts: usize,
}

/// Plans the run of `spec` by counts alone, without a route and times.
pub fn counted(spec: &Spec, files: &ModelFiles, prepared: &PreparedData, trained: &Trained) -> Plan {
    let length = RunLength::new(&spec.train, prepared.train.batches_per_epoch());
    let data = data_plan(spec, prepared);
    let step = Step::new(spec, files.checkpoint.config(), trained, &data);
    Plan {
        name: spec.name.clone(),
        model: model_plan(spec, files),
        trainable: tensor_plans(&trained.params),
        data,
        steps: steps_plan(spec, length, prepared.validation.is_some()),
        bytes: step.bytes(spec, None, None),
        route: None,
        servers: Vec::new(),
        time: None,
        disk: disk_plan(spec, numbers_of(&trained.params)),
    }
}

fn numbers_of(tensors: &[TrainedTensor]) -> u64 {
    tensors.iter().map(TrainedTensor::numbers).sum()
}

fn model_plan(spec: &Spec, files: &ModelFiles) -> ModelPlan {
    let (checkpoint, config) = (&files.checkpoint, files.checkpoint.config());
    let description = checkpoint.describe();
    let bytes = |blocks: usize| Span::new(0, blocks).map_or(0, |span| block_bytes(spec, checkpoint, span));
    let here = match spec.swarm {
        SwarmSpec::None(_) | SwarmSpec::Embedded(_) => config.n_blocks,
        _ => spec.model.local_blocks.min(config.n_blocks),
    };
    let format = if description.format == Format::Gguf { "gguf" } else { "safetensors" };
    ModelPlan {
        source: files.asset.pinned().to_string(),
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
        ends_bytes: ends_bytes(config),
    }
}

/// Estimated bytes of the blocks.
pub fn block_bytes(spec: &Spec, checkpoint: &Checkpoint, span: Span) -> u64 {
    let (model, sizes) = (&spec.model, checkpoint.part_sizes(Part::Blocks(span)));
    sizes.weight_bytes(model.weights, model.compute_format(), model.device == Device::Cpu)
}

fn tensor_plans(tensors: &[TrainedTensor]) -> Vec<TensorPlan> {
    let all = numbers_of(tensors).max(1) as f64;
    let plan = |tensor: &TrainedTensor| TensorPlan {
        name: tensor.name.clone(),
        shape: tensor.shape.clone(),
        numbers: tensor.numbers(),
        share: tensor.numbers() as f64 / all,
    };
    tensors.iter().map(plan).collect()
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
