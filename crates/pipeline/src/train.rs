//! The training loop: steps, evaluations and checkpoints, in this order, until the run is complete.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sepal_core::in_one_line;
use sepal_data::{Batch, Epoch, Loader};
use sepal_optim::{Optimizer, Schedule};
use sepal_track::{Best, ServerUse};
use serde::{Deserialize, Serialize};

use crate::error::RunError;
use crate::evaluate::{Judge, Kept, Split, evaluate, value_of};
use crate::model::Model;
use crate::precision::Scaling;
use crate::progress::{Event, Observer};
use crate::records::Records;
use crate::run_checkpoint::Saver;
use crate::spec::{EvaluateEvery, KeptAdapter, Spec};

/// Everything that the loop turns on.
pub(crate) struct Training<'a> {
    pub(crate) model: &'a mut Model,
    pub(crate) optimizer: Box<dyn Optimizer>,
    pub(crate) schedule: Box<dyn Schedule>,
    pub(crate) scaling: Scaling,
    pub(crate) train: &'a Loader,
    pub(crate) validation: Option<&'a Loader>,
    pub(crate) spec: &'a Spec,
    pub(crate) length: Length,
    pub(crate) judge: Judge,
    /// Training rows of each class; empty where rows have no class.
    pub(crate) class_rows: &'a [u64],
    pub(crate) records: &'a mut Records,
    pub(crate) observer: &'a mut dyn Observer,
    pub(crate) stop: &'a AtomicBool,
}

/// How many steps there are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Length {
    pub(crate) steps_per_epoch: u64,
    pub(crate) total_steps: u64,
}

impl Length {
    pub(crate) fn of(spec: &Spec, train: &Loader) -> Self {
        let steps_per_epoch = (train.batches_per_epoch() as u64).div_ceil(spec.train.accumulate as u64);
        let total_steps = spec.train.max_steps.unwrap_or(spec.train.epochs * steps_per_epoch);
        Self { steps_per_epoch, total_steps }
    }
}

/// How far a run has come. What a checkpoint holds of it is how far it had come then.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Progress {
    /// Made or skipped.
    pub(crate) steps: u64,
    pub(crate) skipped: u64,
    /// What the loss was multiplied by in the last of them.
    pub(crate) scale: Option<f64>,
    pub(crate) rows: u64,
    pub(crate) tokens: u64,
    pub(crate) train_seconds: f64,
    /// Of training and evaluation.
    pub(crate) loop_seconds: f64,
    /// Of all, in processes before this one.
    pub(crate) seconds_before: f64,
    /// Moved by processes before this one.
    pub(crate) sent_before: u64,
    pub(crate) received_before: u64,
    /// Used by processes before this one.
    pub(crate) servers_before: Vec<ServerUse>,
    /// When the run began.
    pub(crate) started: String,
    pub(crate) resumed_at: Vec<u64>,
    /// The step after which the validation rows were last predicted.
    pub(crate) evaluated_at: Option<u64>,
    /// The evaluation that was best.
    pub(crate) best: Option<Best>,
    /// Evaluations since then.
    pub(crate) without_improvement: u64,
    /// Why it ends before its last step.
    pub(crate) ended_early: Option<String>,
}

/// What the loop came to, also when it ended early.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) progress: Progress,
    pub(crate) interrupted: bool,
    pub(crate) kept: Option<Kept>,
}

impl Training<'_> {
    /// Makes the steps that are left; `outcome` is up to date whenever this returns, with or without an error.
    pub(crate) fn run(&mut self, outcome: &mut Outcome, saver: &mut Saver<'_>) -> Result<(), RunError> {
        let result = self.turn(outcome, saver);
        let is_complete = result.is_ok() && !outcome.interrupted;
        // An optimizer that failed may have moved some parameters and not the others.
        if is_complete || outcome.progress.steps == 0 || matches!(result, Err(RunError::Optimizer(_))) {
            return result;
        }
        match (self.save(outcome, saver), result) {
            (saved, Ok(())) => saved,
            (Ok(()), error) => error,
            (Err(unsaved), error) => {
                self.observer.event(Event::Notice(&format!("no checkpoint: {}", in_one_line(&unsaved))));
                error
            }
        }
    }

    fn turn(&mut self, outcome: &mut Outcome, saver: &mut Saver<'_>) -> Result<(), RunError> {
        let mut dealt = Dealt::new(self.train, self.length, self.spec.train.accumulate);
        let earlier = outcome.progress.loop_seconds;
        let started = Instant::now();
        loop {
            outcome.progress.loop_seconds = earlier + started.elapsed().as_secs_f64();
            self.end_by_time(outcome);
            if self.evaluation_is_due(outcome) {
                self.evaluate_into(outcome)?;
                continue;
            }
            if saver.is_due(outcome.progress.steps) {
                self.save(outcome, saver)?;
            }
            if self.is_complete(outcome) {
                return Ok(());
            }
            if self.stop.load(Ordering::Relaxed) {
                outcome.interrupted = true;
                return Ok(());
            }
            let (group, epoch) = dealt.group(outcome.progress.steps);
            self.step(&group, epoch, outcome)?;
        }
    }

    fn is_complete(&self, outcome: &Outcome) -> bool {
        outcome.progress.steps >= self.length.total_steps || outcome.progress.ended_early.is_some()
    }

    /// Whether the rows are to be predicted now, and were not since the last step.
    fn evaluation_is_due(&self, outcome: &Outcome) -> bool {
        let steps = outcome.progress.steps;
        let in_between = match self.spec.evaluate.every {
            EvaluateEvery::Never => return false,
            EvaluateEvery::End => false,
            EvaluateEvery::Epoch => steps > 0 && steps.is_multiple_of(self.length.steps_per_epoch),
            EvaluateEvery::Steps(every) => steps > 0 && steps.is_multiple_of(every),
        };
        let is_due = in_between || self.is_complete(outcome);
        is_due && self.validation.is_some() && outcome.progress.evaluated_at != Some(steps)
    }

    fn end_by_time(&self, outcome: &mut Outcome) {
        let minutes = self.spec.train.max_minutes.filter(|minutes| outcome.progress.loop_seconds >= minutes * 60.0);
        if let (Some(minutes), false) = (minutes, self.is_complete(outcome)) {
            outcome.progress.ended_early = Some(format!("{BY_TIME} is {minutes}"));
        }
    }

    fn evaluate_into(&mut self, outcome: &mut Outcome) -> Result<(), RunError> {
        let Some(loader) = self.validation else { return Ok(()) };
        let progress = &mut outcome.progress;
        let (rows, never) = (Split { loader, name: "validation" }, AtomicBool::new(false));
        // One that was begun is made whole: it would have to begin anew when the run goes on.
        let evaluated = evaluate(self.model, rows, progress.steps, self.observer, &never)?;
        let value = self.judge.value(&evaluated)?;
        self.records.evaluation(&evaluated.record)?;
        let headline = self.judge.shown_first(&evaluated, self.class_rows);
        self.observer.event(Event::Evaluated { record: &evaluated.record, headline });
        if let Some(watched) = self.schedule.watches() {
            let watched = value_of(&evaluated.record, watched, "schedule.with.metric")?;
            self.schedule.evaluated((progress.steps - self.scaling.skipped()) as usize, watched);
        }
        progress.evaluated_at = Some(progress.steps);
        let min_delta = self.spec.train.early_stopping.as_ref().map_or(0.0, |early| early.min_delta);
        let is_improved = self.judge.is_better(&value, progress.best.as_ref(), min_delta);
        let is_best = self.judge.is_better(&value, progress.best.as_ref(), 0.0);
        progress.without_improvement = if is_improved { 0 } else { progress.without_improvement + 1 };
        if let Some(early) = &self.spec.train.early_stopping
            && progress.without_improvement >= early.patience
            && progress.ended_early.is_none()
        {
            let evaluations = progress.without_improvement;
            progress.ended_early = Some(format!("no better {} in {evaluations} evaluations", value.metric));
        }
        if is_best {
            progress.best = Some(value.clone());
        }
        let keeps_best = self.spec.output.adapter == KeptAdapter::Best;
        if is_best || !keeps_best {
            let params = if keeps_best { self.model.params.to_host().map_err(RunError::Numbers)? } else { Vec::new() };
            outcome.kept = Some(Kept { evaluated, best: value, params });
        }
        Ok(())
    }

    fn save(&mut self, outcome: &Outcome, saver: &mut Saver<'_>) -> Result<(), RunError> {
        self.records.sync()?;
        saver.save(self, outcome)
    }
}

/// Deals the batches of one step after the other; only the first of them needs to be looked for.
pub(crate) struct Dealt<'a> {
    train: &'a Loader,
    length: Length,
    accumulate: usize,
    /// The epoch that is being dealt, and the step that is next in it.
    open: Option<(u64, u64, Epoch)>,
}

impl<'a> Dealt<'a> {
    pub(crate) fn new(train: &'a Loader, length: Length, accumulate: usize) -> Self {
        Self { train, length, accumulate, open: None }
    }

    /// The batches of the step after `steps` others, and how many epochs they end after.
    pub(crate) fn group(&mut self, steps: u64) -> (Vec<Batch>, f64) {
        let (epoch, in_epoch) = (steps / self.length.steps_per_epoch, steps % self.length.steps_per_epoch);
        let first = in_epoch as usize * self.accumulate;
        let mut batches = match self.open.take() {
            Some((open, next, batches)) if (open, next) == (epoch, in_epoch) => batches,
            _ => self.train.epoch_from(epoch, first),
        };
        let group: Vec<Batch> = batches.by_ref().take(self.accumulate).collect();
        self.open = Some((epoch, in_epoch + 1, batches));
        let share = (first + group.len()) as f64 / self.train.batches_per_epoch() as f64;
        (group, epoch as f64 + share)
    }
}

/// How the reason begins that a run ended because its time was up.
const BY_TIME: &str = "`train.max_minutes`";

/// Whether a run ended early because its time was up: with more time it may go on.
pub(crate) fn is_by_time(ended_early: Option<&str>) -> bool {
    ended_early.is_some_and(|reason| reason.starts_with(BY_TIME))
}

/// Seconds as a span of time, for options given in minutes.
pub(crate) fn minutes(minutes: f64) -> Duration {
    Duration::try_from_secs_f64(minutes * 60.0).unwrap_or(Duration::MAX)
}
