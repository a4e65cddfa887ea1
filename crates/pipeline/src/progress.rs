use std::collections::BTreeMap;
use std::path::PathBuf;

use sepal_assets::FetchEvent;
use sepal_track::{EvaluationRecord, StepRecord};

/// What a run tells whoever watches it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// One line for people: a source that was used or passed over, a server that was started.
    Notice(&'a str),
    /// A file of the model or the data comes from the hub.
    Fetch(FetchEvent<'a>),
    /// Training begins.
    Started {
        /// Optimizer steps of the whole run.
        total_steps: u64,
        /// Of these, made before the run went on from a checkpoint.
        done: u64,
        /// Numbers that train.
        trainable: usize,
    },
    /// A step was made, or skipped.
    Step(&'a StepRecord),
    /// Validation rows were predicted.
    Evaluating {
        /// Rows done.
        done: usize,
        /// Rows in all.
        total: usize,
    },
    /// An evaluation is complete.
    Evaluated {
        /// The measurements.
        record: &'a EvaluationRecord,
        /// The metric, or the loss, that says most.
        headline: &'a str,
    },
    /// A part of a probe begins.
    Probing {
        /// Kind of measurement: `step`, or `batch of the evaluation`.
        what: &'static str,
        /// Number of this measurement, from 0; the first is a warm-up.
        number: u64,
        /// The last of them.
        last: u64,
    },
}

/// Watches a run.
pub trait Observer {
    /// Called from the training loop; it should return soon.
    fn event(&mut self, event: Event<'_>);
}

/// An observer that looks away.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&mut self, _: Event<'_>) {}
}

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The run folder.
    pub folder: PathBuf,
    /// Whether it was stopped before its last step.
    pub interrupted: bool,
    /// Metrics of the evaluation whose parameters were kept, by name.
    pub metrics: BTreeMap<String, f64>,
    /// The one that decided which.
    pub headline: Option<(String, f64)>,
    /// Optimizer steps made before that evaluation.
    pub best_step: Option<u64>,
    /// Why training ended before its last step, without an error or an interruption.
    pub ended_early: Option<String>,
    /// Optimizer steps made, and those that were skipped.
    pub steps: u64,
    /// Steps skipped because their gradients overflowed.
    pub skipped_steps: u64,
    /// Training rows per second, over the training steps.
    pub rows_per_second: f64,
    /// Tokens per second, over the training steps.
    pub tokens_per_second: f64,
    /// Bytes sent to servers, over the whole run.
    pub bytes_sent: u64,
    /// Bytes received from servers, over the whole run.
    pub bytes_received: u64,
    /// Wall time of the whole run, in seconds.
    pub seconds: f64,
}
