//! Options of the training loop.

use schemars::JsonSchema;
use sepal_core::{DType, GradScalerConfig};
use serde::{Deserialize, Serialize};

/// The training loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSpec {
    /// Passes over the training rows.
    #[schemars(range(min = 1))]
    pub epochs: u64,
    /// Optimizer steps; replaces `epochs` if given. With 0 the run only evaluates and writes the untrained adapter.
    pub max_steps: Option<u64>,
    /// Time limit of training and evaluation in minutes, including the time before a resume. After that the run ends as
    /// if it were complete.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub max_minutes: Option<f64>,
    /// Ends the run when evaluations no longer improve.
    pub early_stopping: Option<EarlyStoppingSpec>,
    /// Batches whose gradients make one optimizer step.
    #[schemars(range(min = 1))]
    pub accumulate: usize,
    /// Maximum norm of the gradient over all parameters; a larger gradient is scaled down. `null` disables clipping.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub clip_norm: Option<f64>,
    /// Number format of the inputs of the blocks and of the head, and of their gradients; see docs/precision.md.
    /// Trained parameters, the optimizer and the loss are always `f32`.
    pub precision: Precision,
    /// Loss scaling, so that small gradients do not vanish in `f16`; a step whose gradients overflow is skipped. If not
    /// given, the loss is scaled with the defaults if `precision` or `swarm.with.wire_dtype` is `f16`.
    pub scaler: Option<GradScalerConfig>,
    /// Seed of initial parameters, the order of rows, and splits.
    pub seed: u64,
    /// Number of compute threads, at most 1024; the number of cores if not given.
    #[schemars(range(min = 1, max = sepal_core::MAX_THREADS))]
    pub threads: Option<usize>,
    /// Cuts batches by `micro_batch_tokens` alone and never by the measured speed of servers, so that every run sums in
    /// the same order. Losses are then bit-identical with any servers and failures, if all machines use the same number
    /// of threads on processors of one kind and hidden states are sent as `f32`.
    pub deterministic: bool,
}

impl Default for TrainSpec {
    fn default() -> Self {
        Self {
            epochs: 1,
            max_steps: None,
            max_minutes: None,
            early_stopping: None,
            accumulate: 1,
            clip_norm: Some(1.0),
            precision: Precision::F32,
            scaler: None,
            seed: 42,
            threads: None,
            deterministic: false,
        }
    }
}

/// Length of a run in optimizer steps.
#[derive(Debug, Clone, Copy)]
pub struct RunLength {
    /// Steps of one pass over the training rows.
    pub steps_per_epoch: u64,
    /// Steps of the run, if nothing ends it early.
    pub total_steps: u64,
}

impl RunLength {
    /// Returns the length of a run whose training rows make `batches_per_epoch` batches.
    pub fn new(spec: &TrainSpec, batches_per_epoch: usize) -> Self {
        let steps_per_epoch = (batches_per_epoch as u64).div_ceil(spec.accumulate as u64);
        let total_steps = spec.max_steps.unwrap_or(spec.epochs.saturating_mul(steps_per_epoch));
        Self { steps_per_epoch, total_steps }
    }
}

/// Condition for ending a run whose evaluations no longer improve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EarlyStoppingSpec {
    /// Consecutive evaluations without a new best `evaluate.metric` that end the run.
    #[schemars(range(min = 1))]
    pub patience: u64,
    /// Minimum improvement of a new best.
    #[schemars(range(min = 0.0))]
    pub min_delta: f64,
}

impl Default for EarlyStoppingSpec {
    fn default() -> Self {
        Self { patience: 3, min_delta: 0.0 }
    }
}

/// Number format for training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// 16 bits with the range of `f32` and 8 bits of precision; nothing overflows.
    Bf16,
    /// 16 bits with 11 bits of precision, up to 65504: the loss is scaled (`scaler`).
    F16,
}

impl Precision {
    /// Converts to the number format of tensors.
    pub fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::Bf16,
            Precision::F16 => DType::F16,
        }
    }
}

/// Evaluation on the validation rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateSpec {
    /// Times of evaluations.
    pub every: EvaluateEvery,
    /// Rows of a batch.
    #[schemars(range(min = 1))]
    pub batch_size: usize,
    /// Metric that selects the best evaluation: one of the task's metrics or `loss`. Defaults to the metric that GLUE
    /// reports for its tasks, else to the first metric of the task.
    pub metric: Option<String>,
    /// Direction of improvement; known for all usual metrics.
    pub goal: Option<Goal>,
}

/// Direction in which a metric improves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Larger values are better.
    Max,
    /// Smaller values are better.
    Min,
}

impl Default for EvaluateSpec {
    fn default() -> Self {
        Self { every: EvaluateEvery::Epoch, batch_size: 64, metric: None, goal: None }
    }
}

/// Times of evaluations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EvaluateEvery {
    /// After each epoch, and at the end.
    Epoch,
    /// At the end.
    End,
    /// Never.
    Never,
    /// After every given number of optimizer steps, and at the end.
    Steps(
        /// Optimizer steps between two evaluations.
        #[schemars(range(min = 1))]
        u64,
    ),
}

/// Checkpoints, from which an interrupted run is resumed. Each is a file in the run's folder, written completely or not
/// at all.
///
/// A run that is interrupted or fails always leaves a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSpec {
    /// Minutes between checkpoints; `null` disables checkpoints by time.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub every_minutes: Option<f64>,
    /// Optimizer steps between checkpoints; `null` disables checkpoints by steps.
    #[schemars(range(min = 1))]
    pub every_steps: Option<u64>,
    /// Number of newest checkpoints that are kept.
    #[schemars(range(min = 1))]
    pub keep: usize,
}

impl Default for CheckpointSpec {
    fn default() -> Self {
        Self { every_minutes: Some(5.0), every_steps: None, keep: 2 }
    }
}
