//! Run folders, what is recorded in them, and where else a run is shown.
//!
//! A [`RunFolder`] is made once per run; [`MetricsLog`] appends one JSON object per line to it;
//! everything else is written whole or not at all. [`Trackers`] tells each [`Tracker`] of a run on a thread of its own:
//! [`TensorBoard`], [`Mlflow`], [`Wandb`]. This crate computes nothing.
//!
//! Invariant: a file of a run folder is never half-written: it is written beside its place, synced
//! and renamed. `metrics.jsonl` alone grows, a line at a time, and so do the files of trackers, a record at a time. Nothing
//! that a tracker does stops a run or makes it wait, but for some seconds at its end.
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

#[cfg(test)]
mod examples;
mod folder;
mod history;
mod manifest;
mod mlflow;
mod names;
mod nullable;
#[cfg(test)]
mod python;
mod records;
mod scalars;
mod secret;
mod tensorboard;
mod tracker;
mod trackers;
mod wandb;

pub use folder::now;
pub use folder::{RunFolder, WriteError, remove_unfinished, write_whole};
pub use history::{History, HistoryError};
pub use manifest::{
    Best, Bytes, DataFacts, Manifest, ModelFacts, NearWords, Parameters, ReadError, ServerUse, Status, Versions,
};
pub use mlflow::{Mlflow, MlflowAccess, MlflowConfig, MlflowError};
pub use records::{EvaluationRecord, MetricsLog, StepRecord};
pub use secret::{WITHHELD, is_secret};
pub use tensorboard::{TensorBoard, TensorBoardConfig};
pub use tracker::{RunInfo, TrackError, Tracker};
pub use trackers::{TrackerLimits, Trackers, Warn};
pub use wandb::{Wandb, WandbConfig};
