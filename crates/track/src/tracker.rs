use std::error::Error;
use std::path::PathBuf;

use crate::{EvaluationRecord, Manifest, StepRecord};

/// Receiver of the events of a run, for example a writer of event files or a client of a tracking server.
///
/// A method may block and may fail: each tracker has its own thread, gets all events in order, and its errors become
/// warnings that never end a run.
pub trait Tracker: Send {
    /// Starts or resumes a run.
    ///
    /// # Errors
    /// [`TrackError`] if the run cannot be tracked; no further events are sent then, unless the tracker
    /// [retries](Self::retries_start).
    fn start(&mut self, run: &RunInfo) -> Result<(), TrackError>;

    /// Returns true if events are to be sent after a failed [`start`](Self::start), because the tracker retries it.
    fn retries_start(&self) -> bool {
        false
    }

    /// Records an optimizer step, made or skipped.
    ///
    /// # Errors
    /// [`TrackError`] if the step cannot be recorded; later events are sent all the same.
    fn step(&mut self, record: &StepRecord) -> Result<(), TrackError>;

    /// Records an evaluation.
    ///
    /// # Errors
    /// [`TrackError`] as for [`step`](Self::step).
    fn evaluation(&mut self, record: &EvaluationRecord) -> Result<(), TrackError>;

    /// Ends the run, successful or not; the files of its folder are written.
    ///
    /// # Errors
    /// [`TrackError`] if the end cannot be recorded.
    fn finish(&mut self, manifest: &Manifest) -> Result<(), TrackError>;
}

/// Facts of a run at its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInfo {
    /// Name of the pipeline.
    pub name: String,
    /// Name of the run folder, unique in its parent folder.
    pub id: String,
    /// Run folder. A tracker may keep its own files there.
    pub folder: PathBuf,
    /// Resolved pipeline, one value to a key: `train.seed`, `data.train.0`; secrets are [redacted](crate::REDACTED).
    pub options: Vec<(String, String)>,
    /// Number of trainable parameters.
    pub trainable: u64,
    /// Number of steps before the interruption that are not repeated; 0 in a new run. Later steps may have been
    /// recorded before.
    pub resumed_at: u64,
}

/// Error of a tracker.
pub type TrackError = Box<dyn Error + Send + Sync>;
