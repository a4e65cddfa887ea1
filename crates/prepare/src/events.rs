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

/// Observer that ignores all events.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&mut self, _: Event<'_>) {}
}
