use std::collections::BTreeMap;
use std::path::PathBuf;

use sepal_assets::FetchEvent;
use sepal_track::{EvaluationRecord, StepRecord};

/// Event of a run.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// One line of text for people, for example on a source that was used.
    Notice(&'a str),
    /// A file of the model or the data is fetched from the hub.
    Fetch(FetchEvent<'a>),
    /// Training starts.
    Started {
        /// Optimizer steps of the run.
        total_steps: u64,
        /// Steps made before the run was resumed.
        done: u64,
        /// Number of trained values.
        trainable: usize,
    },
    /// A step was made or skipped.
    Step(&'a StepRecord),
    /// Rows were predicted.
    Evaluating {
        /// Predicted rows.
        done: usize,
        /// All rows.
        total: usize,
    },
    /// An evaluation is complete.
    Evaluated {
        /// Its measurements.
        record: &'a EvaluationRecord,
        /// Name of the most informative metric, or `loss`.
        headline: &'a str,
    },
    /// A measurement of a probe starts.
    Probing {
        /// Kind of measurement: `step`, or `batch of the evaluation`.
        what: &'static str,
        /// Number of this measurement, from 0; the first is a warm-up.
        number: u64,
        /// Number of the last measurement.
        last: u64,
    },
}

/// Receives the events of a run.
pub trait Observer {
    /// Handles an event. The run waits for it.
    fn event(&mut self, event: Event<'_>);
}

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

/// Observer that ignores all events.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&mut self, _: Event<'_>) {}
}

/// Result of a run.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Run folder.
    pub folder: PathBuf,
    /// True if the run was stopped before its last step.
    pub interrupted: bool,
    /// Metrics of the selected evaluation, by name.
    pub metrics: BTreeMap<String, f64>,
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
    /// Bytes sent to servers.
    pub bytes_sent: u64,
    /// Bytes received from servers.
    pub bytes_received: u64,
    /// Wall time of the run, in seconds.
    pub seconds: f64,
}
