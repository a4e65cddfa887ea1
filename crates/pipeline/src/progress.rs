use std::collections::BTreeMap;
use std::path::PathBuf;

pub use sepal_prepare::{Event, Observer, Silent};
use sepal_track::{BestEvaluation, Calibration};

/// Forwards the events of the training loop to the observer of a run.
pub(crate) struct TrainEvents<'a>(pub(crate) &'a mut dyn Observer);

impl sepal_train::Observer for TrainEvents<'_> {
    fn event(&mut self, event: sepal_train::Event<'_>) {
        self.0.event(match event {
            sepal_train::Event::Notice(line) => Event::Notice(line),
            sepal_train::Event::Step(record) => Event::Step(record),
            sepal_train::Event::Evaluating { done, total } => Event::Evaluating { done, total },
            sepal_train::Event::Evaluated { record, headline } => Event::Evaluated { record, headline },
            _ => return,
        });
    }
}

/// Result of a run.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Run folder.
    pub folder: PathBuf,
    /// True if the run was stopped before its last step.
    pub interrupted: bool,
    /// Measurement at the pause of a run in a sweep, which also counts as an interruption.
    pub paused: Option<BestEvaluation>,
    /// Metrics of the selected evaluation, by name.
    pub metrics: BTreeMap<String, f64>,
    /// Fit of probabilities and decisions, if there is one.
    pub calibration: Option<Calibration>,
    /// Metric that selected it, and its value.
    pub headline: Option<(String, f64)>,
    /// Optimizer steps before that evaluation.
    pub best_step: Option<u64>,
    /// Reason for ending before the last step without an error or an interruption.
    pub ended_early: Option<String>,
    /// Optimizer steps, made or skipped.
    pub steps: u64,
    /// Steps skipped because their gradients overflowed.
    pub skipped_steps: u64,
    /// Training rows per second of the training steps.
    pub rows_per_second: f64,
    /// Tokens per second of the training steps.
    pub tokens_per_second: f64,
    /// Servers that were taken out of use because their results were wrong.
    pub quarantined: Vec<String>,
    /// Bytes sent to servers.
    pub bytes_sent: u64,
    /// Bytes received from servers.
    pub bytes_received: u64,
    /// Wall time of the run, in seconds.
    pub seconds: f64,
}
