//! Run folders and what is recorded in them.
//!
//! A [`RunFolder`] is made once per run; [`MetricsLog`] appends one JSON object per line to it;
//! everything else is written whole or not at all. This crate computes nothing.
//!
//! Invariant: a file of a run folder is never half-written: it is written beside its place, synced
//! and renamed. `metrics.jsonl` alone grows, a line at a time.
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

mod folder;
mod history;
mod manifest;
mod nullable;
mod records;
mod tracker;

pub use folder::now;
pub use folder::{RunFolder, WriteError, write_whole};
pub use history::{History, HistoryError};
pub use manifest::{Best, Bytes, DataFacts, Manifest, ModelFacts, NearWords, Parameters, ServerUse, Status, Versions};
pub use records::{EvaluationRecord, MetricsLog, StepRecord};
pub use tracker::{RunInfo, TrackError, Tracker};
