use std::path::PathBuf;

use sepal_core::Labels;
use sepal_model::{BlocksError, ForwardError, Repeatable, list_rows};
use sepal_nn::host::HostError;
use sepal_optim::StateError;
use sepal_plugin::HeadError;
use tch::TchError;

/// Labelled rows without labels.
#[derive(Debug, thiserror::Error)]
#[error("read the labelled rows: the rows have no labels")]
pub struct MissingLabelsError;

pub(crate) fn require_labels(labels: Option<&Labels>) -> Result<&Labels, MissingLabelsError> {
    labels.ok_or(MissingLabelsError)
}

/// An evaluation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluateError {
    /// Failure of the forward pass.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// Failure of the task head.
    #[error("compute with the task head")]
    Head(#[source] HeadError),
    /// Rows without labels.
    #[error(transparent)]
    Labels(#[from] MissingLabelsError),
    /// Interruption before all rows were predicted.
    #[error("predict all rows: it was interrupted")]
    Interrupted,
    /// Failure of libtorch.
    #[error("compute a step")]
    Torch(#[from] TchError),
}

/// A metric that the task does not have.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("find `{metric}` among the metrics of the task: {}", known.join(", "))]
pub struct MetricError {
    pub usage: MetricUsage,
    pub metric: String,
    pub known: Vec<String>,
}

/// Consumer of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricUsage {
    /// Selection of the best evaluation.
    Selection,
    /// Learning-rate schedule that follows evaluations.
    Schedule,
    /// Selection of the runs of a sweep that continue.
    Halving,
}

/// A training loop that failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum TrainError {
    /// Failure of the forward pass.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// Rows without labels.
    #[error(transparent)]
    Labels(#[from] MissingLabelsError),
    /// Failure of the task head.
    #[error("compute with the task head")]
    Head(#[source] HeadError),
    /// Failure of the backward pass.
    #[error("run step {step} backward")]
    Backward {
        /// Step, from 1.
        step: u64,
        source: BlocksError,
    },
    /// Overflow at every loss scale.
    #[error(
        "make step {step}: {skips} steps in a row were skipped because numbers overflowed, the last at a loss scale of \
         {scale:.2e} ({reason})"
    )]
    Overflow {
        /// Step, from 1.
        step: u64,
        skips: u64,
        scale: f64,
        reason: String,
    },
    /// Loss or gradients that are NaN or infinite.
    #[error("make step {step}: the {what} is not finite (training rows {}, servers: {servers})", list_rows(rows))]
    NonFinite {
        /// `loss` or `norm of the gradients`.
        what: &'static str,
        /// Step, from 1.
        step: u64,
        rows: Vec<usize>,
        servers: String,
    },
    /// Failure of the optimizer.
    #[error("move the parameters")]
    Optimizer(#[source] sepal_optim::StepError),
    /// Failure of an evaluation.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    /// Metric that the task does not have.
    #[error(transparent)]
    Metric(#[from] MetricError),
    /// Parameters that cannot be copied.
    #[error("copy the parameters")]
    Parameters(#[source] HostError),
    /// Record that cannot be written.
    #[error("record the run")]
    Record(#[source] sepal_track::WriteError),
    /// Failure of a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Failure of libtorch.
    #[error("compute a step")]
    Torch(#[from] TchError),
}

impl Repeatable for EvaluateError {
    fn is_quarantine(&self) -> bool {
        matches!(self, Self::Forward(error) if error.is_quarantine())
    }
}

impl Repeatable for TrainError {
    fn is_quarantine(&self) -> bool {
        match self {
            Self::Forward(error) => error.is_quarantine(),
            Self::Backward { source, .. } => source.is_quarantine(),
            _ => false,
        }
    }
}

impl TrainError {
    /// Description of the overflow, if values exceeded their range.
    pub(crate) fn overflow(&self) -> Option<String> {
        match self {
            Self::Forward(ForwardError::Blocks(source)) | Self::Backward { source, .. } if source.is_overflow() => {
                source.remote().map(ToString::to_string)
            }
            Self::NonFinite { what, .. } => Some(format!("the {what} is not finite")),
            _ => None,
        }
    }
}

/// A checkpoint that cannot be written or used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum CheckpointError {
    /// Parameters that cannot be copied.
    #[error("copy the parameters")]
    Parameters(#[source] HostError),
    /// State of the optimizer, the schedule or the loss scale that cannot be copied.
    #[error("copy the optimizer's state")]
    State(#[source] StateError),
    /// State of the loop without a JSON form.
    #[error("write the checkpoint's state")]
    Serialize(#[source] serde_json::Error),
    /// Folder that cannot be created.
    #[error("record the run")]
    Folder(#[source] sepal_track::WriteError),
    /// File that cannot be written.
    #[error("save a checkpoint")]
    Write(#[source] sepal_nn::file::WriteError),
    /// File that cannot be used.
    #[error("go on from {}: {problem}; remove it to go on from the one before it, if there is one", path.display())]
    Unusable { path: PathBuf, problem: String },
    /// Checkpoints of another run, or none.
    #[error("resume {}: {problem}", path.display())]
    Resume { path: PathBuf, problem: String },
}
