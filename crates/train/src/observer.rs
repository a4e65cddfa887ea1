use sepal_track::{EvaluationRecord, MetricsLog, StepRecord, WriteError};

/// Event of a training loop.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// One line of text for people.
    Notice(&'a str),
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
}

/// Receives the events of a training loop.
pub trait Observer {
    /// Handles an event. The loop waits for it.
    fn event(&mut self, event: Event<'_>);
}

/// Records the measurements of a training loop. Its methods return a [`WriteError`] if a record cannot be written.
pub trait Recorder {
    /// Records a step.
    fn step(&mut self, record: &StepRecord) -> Result<(), WriteError>;

    /// Records an evaluation.
    fn evaluation(&mut self, record: &EvaluationRecord) -> Result<(), WriteError>;

    /// Waits until all records are on the disk.
    fn sync(&self) -> Result<(), WriteError>;
}

impl Recorder for MetricsLog {
    fn step(&mut self, record: &StepRecord) -> Result<(), WriteError> {
        MetricsLog::step(self, record)
    }

    fn evaluation(&mut self, record: &EvaluationRecord) -> Result<(), WriteError> {
        MetricsLog::evaluation(self, record)
    }

    fn sync(&self) -> Result<(), WriteError> {
        MetricsLog::sync(self)
    }
}

/// Observer and recorder that ignores everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&mut self, _: Event<'_>) {}
}

impl Recorder for Silent {
    fn step(&mut self, _: &StepRecord) -> Result<(), WriteError> {
        Ok(())
    }

    fn evaluation(&mut self, _: &EvaluationRecord) -> Result<(), WriteError> {
        Ok(())
    }

    fn sync(&self) -> Result<(), WriteError> {
        Ok(())
    }
}
