//! Run folders, their records, and trackers that show runs elsewhere.
//!
//! A [`RunFolder`] is made once per run. [`MetricsLog`] appends one JSON object per line to it, and all other files are
//! written atomically. [`Trackers`] runs each [`Tracker`] on its own thread: [`TensorBoard`], [`Mlflow`], [`Wandb`].
//!
//! [`export`] describes the folders that runs are exported to.
//!
//! Limits: this crate computes no metrics and knows neither pipelines nor libtorch.
//!
//! Invariants: a file of a run folder is never half-written, since it is written to a temporary file, synced and
//! renamed; only `metrics.jsonl` and the files of trackers grow, by whole lines and records; a tracker never stops a
//! run, and delays it only for some seconds at its end.
//!
//! Without the default feature `mlflow`, the tracker of that name reads its options and refuses them.
//!
//! ```
//! use sepal_track::{RunFolder, StepRecord};
//!
//! let parent = tempfile::tempdir()?;
//! let run = RunFolder::create(parent.path(), "demo")?;
//! let mut log = run.metrics()?;
//! log.step(&StepRecord { step: 1, loss: 0.7, ..StepRecord::default() })?;
//! assert!(std::fs::read_to_string(run.path().join("metrics.jsonl"))?.starts_with(r#"{"kind":"step","step":1"#));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod calibration;
#[cfg(test)]
mod examples;
pub mod export;
mod folder;
mod history;
mod manifest;
#[cfg(feature = "mlflow")]
mod mlflow;
#[cfg(not(feature = "mlflow"))]
#[path = "mlflow_absent.rs"]
mod mlflow;
mod mlflow_config;
mod names;
mod nullable;
mod options;
#[cfg(test)]
mod python;
mod records;
mod redaction;
mod scalars;
mod sweep;
mod tensorboard;
mod tracker;
mod trackers;
mod wandb;

pub use calibration::Calibration;
pub use folder::{RunFolder, WriteError, remove_partial_files, timestamp, write_atomic};
pub use history::{History, HistoryError};
pub use manifest::{
    BestEvaluation, DataFacts, Manifest, ModelFacts, NearestWords, ParameterCounts, ReadError, ServerUsage, Status,
    Traffic, Versions,
};
pub use mlflow::{Mlflow, MlflowError};
pub use mlflow_config::{MlflowAccess, MlflowConfig};
pub use records::{EvaluationRecord, MetricsLog, StepRecord};
pub use redaction::{REDACTED, is_secret};
pub use sweep::{FailedRuns, MemberRecord, MemberState, SettingRecord, SweepRecord};
pub use tensorboard::{TensorBoard, TensorBoardConfig};
pub use tracker::{RunInfo, TrackError, Tracker};
pub use trackers::{TrackerLimits, Trackers, WarningHandler};
pub use wandb::{Wandb, WandbConfig};
