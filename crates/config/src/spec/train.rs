//! The training loop's part of the pipeline file.

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
    /// Optimizer steps; if given, it counts instead of `epochs`. 0 only evaluates and writes the untrained adapter.
    pub max_steps: Option<u64>,
    /// Minutes that training and evaluation may take, those before a resume included; then the run ends as if it were
    /// complete.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub max_minutes: Option<f64>,
    /// Ends the run when evaluations no longer get better.
    pub early_stopping: Option<EarlyStoppingSpec>,
    /// Batches whose gradients make one optimizer step.
    #[schemars(range(min = 1))]
    pub accumulate: usize,
    /// Longest gradient, over all parameters together; a longer one is scaled down to it. `null` lets it be.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub clip_norm: Option<f64>,
    /// The number format of what goes to the blocks and comes to the head, and of its gradients; see
    /// docs/precision.md. What trains, the optimizer and the loss are `f32` in any case.
    pub precision: Precision,
    /// How the loss is scaled, so that small gradients do not vanish in `f16`; a step whose gradients overflow is skipped.
    /// If not given, it is scaled as by default where `precision` or `swarm.with.wire_dtype` is `f16`, and not elsewhere.
    pub scaler: Option<GradScalerConfig>,
    /// Decides everything that is left to chance: initial numbers, the order of rows, splits.
    pub seed: u64,
    /// Threads for computing; as many as there are cores if not given.
    #[schemars(range(min = 1))]
    pub threads: Option<usize>,
    /// Cuts batches by `micro_batch_tokens` alone and never by what servers were measured at, so that sums are added up
    /// in the same order in every run: losses are then the same to the last bit, whatever the servers and their
    /// failures, if all compute with as many threads on processors of a kind and hidden states travel as `f32`.
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

/// When evaluations count as no longer getting better.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EarlyStoppingSpec {
    /// So many evaluations in a row without a new best by `evaluate.metric` end the run.
    #[schemars(range(min = 1))]
    pub patience: u64,
    /// What a new best must be better by.
    #[schemars(range(min = 0.0))]
    pub min_delta: f64,
}

impl Default for EarlyStoppingSpec {
    fn default() -> Self {
        Self { patience: 3, min_delta: 0.0 }
    }
}

/// A number format to train in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// 16 bits with the range of `f32`: 8 bits of precision, and nothing overflows.
    Bf16,
    /// 16 bits with 11 bits of precision, up to 65504: the loss is scaled (`scaler`).
    F16,
}

impl Precision {
    /// The format's name elsewhere.
    pub fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::Bf16,
            Precision::F16 => DType::F16,
        }
    }
}

/// When the validation rows are predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateSpec {
    /// How often.
    pub every: EvaluateEvery,
    /// Rows of a batch.
    #[schemars(range(min = 1))]
    pub batch_size: usize,
    /// The metric that says which evaluation is best, one of the task's or `loss`. If not given: of a GLUE task the one
    /// that its table reports, else the task's first.
    pub metric: Option<String>,
    /// Whether larger values of it are better; known of all usual metrics.
    pub goal: Option<Goal>,
}

/// Which values of a metric are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Larger ones.
    Max,
    /// Smaller ones.
    Min,
}

impl Default for EvaluateSpec {
    fn default() -> Self {
        Self { every: EvaluateEvery::Epoch, batch_size: 64, metric: None, goal: None }
    }
}

/// How often the validation rows are predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EvaluateEvery {
    /// After each pass, and at the end.
    Epoch,
    /// At the end.
    End,
    /// Not at all.
    Never,
    /// After each this many optimizer steps, and at the end.
    Steps(
        /// How many optimizer steps.
        #[schemars(range(min = 1))]
        u64,
    ),
}

/// What an interrupted run goes on from: files in the run's folder, each whole or not there.
///
/// A run that is interrupted or fails leaves one in any case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSpec {
    /// One after so many minutes; none by time if `null`.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub every_minutes: Option<f64>,
    /// One after so many optimizer steps; none by steps if `null`.
    #[schemars(range(min = 1))]
    pub every_steps: Option<u64>,
    /// How many are kept, the newest.
    #[schemars(range(min = 1))]
    pub keep: usize,
}

impl Default for CheckpointSpec {
    fn default() -> Self {
        Self { every_minutes: Some(5.0), every_steps: None, keep: 2 }
    }
}
