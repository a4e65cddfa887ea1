use std::error::Error;
use std::path::PathBuf;

use crate::{EvaluationRecord, Manifest, StepRecord};

/// Shows a run elsewhere as it goes: event files, a tracking server.
///
/// Each method may take its time and may fail: a tracker has a thread of its own, is told of everything in order, and
/// what it cannot do is a warning, never the end of a run.
pub trait Tracker: Send {
    /// The run begins, or goes on after an interruption.
    ///
    /// # Errors
    /// [`TrackError`] if it cannot be followed; nothing more is told then, unless it [goes on](Self::goes_on).
    fn start(&mut self, run: &RunInfo) -> Result<(), TrackError>;

    /// Returns true if the run is to be told although [`start`](Self::start) failed, because that is made up for later.
    fn goes_on(&self) -> bool {
        false
    }

    /// An optimizer step was made, or skipped.
    ///
    /// # Errors
    /// [`TrackError`] if it cannot be shown; what comes next is told all the same.
    fn step(&mut self, record: &StepRecord) -> Result<(), TrackError>;

    /// The validation rows were predicted.
    ///
    /// # Errors
    /// [`TrackError`] as for [`step`](Self::step).
    fn evaluation(&mut self, record: &EvaluationRecord) -> Result<(), TrackError>;

    /// The run ended, well or not; the files of its folder are written.
    ///
    /// # Errors
    /// [`TrackError`] if that cannot be shown.
    fn finish(&mut self, manifest: &Manifest) -> Result<(), TrackError>;
}

/// What is known of a run when it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInfo {
    /// The pipeline's name.
    pub name: String,
    /// The folder's name, which no other run in the same place has.
    pub id: String,
    /// The run's folder. A tracker may keep files of its own there.
    pub folder: PathBuf,
    /// The resolved pipeline, one value to a key: `train.seed`, `data.train.0`; secrets are [withheld](crate::WITHHELD).
    pub options: Vec<(String, String)>,
    /// Numbers that train.
    pub trainable: u64,
    /// Steps that were made before an interruption and are not made again; 0 in a new run. Steps after it may have been
    /// told before.
    pub resumed_at: u64,
}

/// Why something cannot be shown.
pub type TrackError = Box<dyn Error + Send + Sync>;
