//! The training loop: steps, evaluations and checkpoints, in this order, until the run is complete.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use sepal_config::spec::{EvaluateEvery, EvaluateSpec, KeptAdapter, RunLength, TrainSpec};
use sepal_core::in_one_line;
use sepal_data::{Batch, Loader};
use sepal_model::Model;
use sepal_optim::{GradScalerConfig, Optimizer, Schedule};
use sepal_track::BestEvaluation;

use crate::checkpoint::Checkpoints;
use crate::cursor::BatchCursor;
use crate::error::{CheckpointError, MetricUsage, TrainError};
use crate::evaluate::{ModelSelector, SelectedEvaluation, Split, evaluate, value_of};
use crate::loss_scaling::LossScaling;
use crate::observer::{Event, Observer, Recorder};
use crate::progress::{Progress, TIME_LIMIT, ended_by_time};
use crate::state::TrainState;
use crate::step::Stepper;

/// Inputs of a [`Trainer`].
pub struct TrainerInputs<'a> {
    /// Model with the parameters to train.
    pub model: &'a mut Model,
    /// Optimizer of the parameters.
    pub optimizer: Box<dyn Optimizer>,
    /// Schedule of the learning rate.
    pub schedule: Box<dyn Schedule>,
    /// Training rows.
    pub train: &'a Loader,
    /// Validation rows.
    pub validation: Option<&'a Loader>,
    /// Options of the loop.
    pub options: TrainerOptions,
}

/// Options of a [`Trainer`].
#[derive(Debug, Clone)]
pub struct TrainerOptions {
    /// Steps, accumulation, clipping, limits and seed.
    pub train: TrainSpec,
    /// Loss scaling; `None` leaves the loss as it is.
    pub scaler: Option<GradScalerConfig>,
    /// Times of evaluations, and the metric that selects the best one.
    pub evaluate: EvaluateSpec,
    /// Metric that selects the best evaluation where `evaluate` names none; else the first metric of the task.
    pub default_metric: Option<String>,
    /// Parameters that become the adapter.
    pub adapter: KeptAdapter,
    /// Training rows of each class; empty if rows have no class.
    pub class_rows: Vec<u64>,
    /// Start of this process's part of the run.
    pub started: Instant,
    /// Step at which the run is paused and measured; `None` for a run to its end.
    pub pause: Option<Pause>,
}

/// Pause of a run. The measurement changes nothing in the run: it counts neither for the best evaluation nor for early
/// stopping, so that a resumed run makes the steps of one without the pause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// Optimizer steps before the pause. A run that is complete earlier is not paused.
    pub after: u64,
    /// Metric to measure; the one that selects the best evaluation if not given.
    pub metric: Option<String>,
}

/// Environment of a running [`Trainer`].
pub struct TrainerContext<'a> {
    /// Receives the measurements.
    pub recorder: &'a mut dyn Recorder,
    /// Receives the events.
    pub observer: &'a mut dyn Observer,
    /// Checkpoints to write, if any.
    pub checkpoints: Option<Checkpoints<'a>>,
    /// Ends the loop between two steps when set.
    pub stop: &'a AtomicBool,
}

/// Result of a training loop, also of one that ended early.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Progress of the run.
    pub progress: Progress,
    /// True if `stop` ended the loop.
    pub interrupted: bool,
    /// Evaluation whose parameters become the adapter.
    pub selected: Option<SelectedEvaluation>,
    /// Measurement at the pause that ended the loop.
    pub paused: Option<BestEvaluation>,
}

/// Training loop of one run.
pub struct Trainer<'a> {
    stepper: Stepper<'a>,
    train: &'a Loader,
    validation: Option<&'a Loader>,
    options: TrainerOptions,
    length: RunLength,
    selector: ModelSelector,
    outcome: Outcome,
}

impl<'a> Trainer<'a> {
    /// Starts before the first step. `started` is the start of the run, as text.
    pub fn new(inputs: TrainerInputs<'a>, started: String) -> Self {
        let TrainerInputs { model, optimizer, schedule, train, validation, options } = inputs;
        let mut outcome = Outcome::default();
        outcome.progress.started = started;
        Self {
            stepper: Stepper { model, optimizer, schedule, scaling: LossScaling::new(options.scaler.clone()) },
            train,
            validation,
            length: RunLength::new(&options.train, train.batches_per_epoch()),
            selector: ModelSelector::new(&options.evaluate, options.default_metric.as_deref()),
            options,
            outcome,
        }
    }

    /// Progress so far.
    pub fn progress(&self) -> &Progress {
        &self.outcome.progress
    }

    /// Length of the run.
    pub fn length(&self) -> RunLength {
        self.length
    }

    /// Returns the result, which is up to date after [`run`](Self::run), with or without an error.
    pub fn into_outcome(self) -> Outcome {
        self.outcome
    }

    /// Copies everything that the next step depends on.
    ///
    /// # Errors
    /// [`CheckpointError`] if a tensor cannot be copied.
    pub fn state(&self) -> Result<TrainState, CheckpointError> {
        let Stepper { model, optimizer, schedule, scaling } = &self.stepper;
        let mut progress = self.outcome.progress.clone();
        progress.seconds_before += self.options.started.elapsed().as_secs_f64();
        progress.servers_before = progress.server_usage(model.blocks.server_usage());
        let traffic = model.blocks.traffic();
        progress.sent_before += traffic.up();
        progress.received_before += traffic.down();
        Ok(TrainState {
            progress,
            selected: self.outcome.selected.clone(),
            parameters: model.params.to_host().map_err(CheckpointError::Parameters)?,
            optimizer: optimizer.state().map_err(CheckpointError::State)?,
            schedule: schedule.state().map_err(CheckpointError::State)?,
            scaler: scaling.state().map_err(CheckpointError::State)?,
            skips: scaling.skips(),
        })
    }

    /// Resumes from a saved state.
    ///
    /// # Errors
    /// An error of the part that refuses its state.
    pub fn load_state(&mut self, state: TrainState) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let TrainState { mut progress, selected, parameters, optimizer, schedule, scaler, skips } = state;
        self.stepper.model.params.set(parameters)?;
        self.stepper.optimizer.load_state(&self.stepper.model.params, &optimizer)?;
        self.stepper.schedule.load_state(&schedule)?;
        self.stepper.scaling.load_state(&scaler, progress.skipped, skips)?;
        progress.resumed_at.push(progress.steps);
        // The loop sets the reason again if the time is still up.
        progress.ended_early = progress.ended_early.filter(|reason| !ended_by_time(Some(reason)));
        self.outcome = Outcome { progress, interrupted: false, selected, paused: None };
        Ok(())
    }

    /// Makes the remaining steps. An interruption or an error leaves a checkpoint, unless a step has no complete record.
    ///
    /// # Errors
    /// [`TrainError`].
    pub fn run(&mut self, context: &mut TrainerContext<'_>) -> Result<(), TrainError> {
        let result = self.run_loop(context);
        let is_complete = result.is_ok() && !self.outcome.interrupted;
        // An optimizer that failed may have moved only some of the parameters. A step whose record was not written, for example on
        // a full disk, is made again by a resumed run; with a checkpoint after it, its record would be missing for ever.
        let is_partial = matches!(result, Err(TrainError::Optimizer(_) | TrainError::Record(_)));
        if is_complete || self.outcome.progress.steps == 0 || is_partial {
            return result;
        }
        match (self.save(context), result) {
            (saved, Ok(())) => saved,
            (Ok(()), error) => error,
            (Err(unsaved), error) => {
                context.observer.event(Event::Notice(&format!("no checkpoint: {}", in_one_line(&unsaved))));
                error
            }
        }
    }

    fn run_loop(&mut self, context: &mut TrainerContext<'_>) -> Result<(), TrainError> {
        let mut cursor = BatchCursor::new(self.train, self.length, self.options.train.accumulate);
        let earlier = self.outcome.progress.loop_seconds;
        let started = Instant::now();
        loop {
            self.outcome.progress.loop_seconds = earlier + started.elapsed().as_secs_f64();
            self.check_time();
            if self.is_evaluation_due() {
                self.evaluate(context)?;
                continue;
            }
            let steps = self.outcome.progress.steps;
            if context.checkpoints.as_ref().is_some_and(|checkpoints| checkpoints.is_due(steps)) {
                self.save(context)?;
            }
            if self.is_complete() {
                return Ok(());
            }
            if let Some(pause) = self.options.pause.clone().filter(|pause| pause.after == steps) {
                self.outcome.paused = self.measure(&pause, context)?;
                self.outcome.interrupted = true;
                return Ok(());
            }
            if context.stop.load(Ordering::Relaxed) {
                self.outcome.interrupted = true;
                return Ok(());
            }
            let (group, epoch) = cursor.group(steps);
            self.step(&group, epoch, context)?;
        }
    }

    fn step(&mut self, group: &[Batch], epoch: f64, context: &mut TrainerContext<'_>) -> Result<(), TrainError> {
        let number = self.outcome.progress.steps + 1;
        let record = self.stepper.step(&self.options.train, group, number, epoch)?;
        let progress = &mut self.outcome.progress;
        progress.steps = number;
        progress.skipped = self.stepper.scaling.skipped();
        progress.scale = record.scale;
        progress.rows += record.rows as u64;
        progress.tokens += record.tokens as u64;
        progress.train_seconds += record.seconds;
        context.recorder.step(&record).map_err(TrainError::Record)?;
        context.observer.event(Event::Step(&record));
        let exhausted = record.skipped.and_then(|reason| self.stepper.scaling.exhausted(number, reason));
        exhausted.map_or(Ok(()), Err)
    }

    fn is_complete(&self) -> bool {
        let progress = &self.outcome.progress;
        progress.steps >= self.length.total_steps || progress.ended_early.is_some()
    }

    /// True if the validation rows are to be predicted now, and were not since the last step.
    fn is_evaluation_due(&self) -> bool {
        let steps = self.outcome.progress.steps;
        let in_between = match self.options.evaluate.every {
            EvaluateEvery::Never => return false,
            EvaluateEvery::End => false,
            EvaluateEvery::Epoch => steps > 0 && steps.is_multiple_of(self.length.steps_per_epoch),
            EvaluateEvery::Steps(every) => steps > 0 && steps.is_multiple_of(every),
        };
        let is_due = in_between || self.is_complete();
        is_due && self.validation.is_some() && self.outcome.progress.evaluated_at != Some(steps)
    }

    fn check_time(&mut self) {
        let limit = self.options.train.max_minutes;
        let limit = limit.filter(|minutes| self.outcome.progress.loop_seconds >= minutes * 60.0);
        if let (Some(minutes), false) = (limit, self.is_complete()) {
            self.outcome.progress.ended_early = Some(format!("{TIME_LIMIT} is {minutes}"));
        }
    }

    fn evaluate(&mut self, context: &mut TrainerContext<'_>) -> Result<(), TrainError> {
        let Some(loader) = self.validation else { return Ok(()) };
        let Stepper { model, schedule, scaling, .. } = &mut self.stepper;
        let progress = &mut self.outcome.progress;
        // Not interruptible: an interrupted evaluation would start again when the run is resumed.
        let (split, never) = (Split { loader, name: "validation" }, AtomicBool::new(false));
        let evaluation = evaluate(model, split, progress.steps, context.observer, &never)?;
        let value = self.selector.value(&evaluation)?;
        context.recorder.evaluation(&evaluation.record).map_err(TrainError::Record)?;
        let headline = self.selector.headline(&evaluation, &self.options.class_rows);
        context.observer.event(Event::Evaluated { record: &evaluation.record, headline });
        if let Some(watched) = schedule.watches() {
            let watched = value_of(&evaluation.record, watched, MetricUsage::Schedule)?;
            schedule.evaluated((progress.steps - scaling.skipped()) as usize, watched);
        }
        progress.evaluated_at = Some(progress.steps);
        let early_stopping = self.options.train.early_stopping.as_ref();
        let min_delta = early_stopping.map_or(0.0, |early| early.min_delta);
        let is_improved = self.selector.is_better(&value, progress.best.as_ref(), min_delta);
        let is_best = self.selector.is_better(&value, progress.best.as_ref(), 0.0);
        progress.without_improvement = if is_improved { 0 } else { progress.without_improvement + 1 };
        if let Some(early) = early_stopping
            && progress.without_improvement >= early.patience
            && progress.ended_early.is_none()
        {
            let evaluations = progress.without_improvement;
            progress.ended_early = Some(format!("no better {} in {evaluations} evaluations", value.metric));
        }
        if is_best {
            progress.best = Some(value.clone());
        }
        let selects_best = self.options.adapter == KeptAdapter::Best;
        if is_best || !selects_best {
            let params =
                if selects_best { model.params.to_host().map_err(TrainError::Parameters)? } else { Vec::new() };
            self.outcome.selected = Some(SelectedEvaluation { evaluation, best: value, params });
        }
        Ok(())
    }

    /// Predicts the validation rows beside the evaluations of the run. The records do not show it.
    fn measure(&self, pause: &Pause, context: &mut TrainerContext<'_>) -> Result<Option<BestEvaluation>, TrainError> {
        let Some(loader) = self.validation else { return Ok(None) };
        let Stepper { model, .. } = &self.stepper;
        let (split, never) = (Split { loader, name: "validation" }, AtomicBool::new(false));
        let evaluation = evaluate(model, split, pause.after, context.observer, &never)?;
        match &pause.metric {
            None => Ok(Some(self.selector.value(&evaluation)?)),
            Some(metric) => {
                let value = value_of(&evaluation.record, metric, MetricUsage::Halving)?;
                Ok(Some(BestEvaluation { step: pause.after, metric: metric.clone(), value }))
            }
        }
    }

    fn save(&mut self, context: &mut TrainerContext<'_>) -> Result<(), TrainError> {
        context.recorder.sync().map_err(TrainError::Record)?;
        let Some(checkpoints) = &mut context.checkpoints else { return Ok(()) };
        Ok(checkpoints.save(self.state()?)?)
    }
}

impl std::fmt::Debug for TrainerInputs<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrainerInputs")
            .field("model", &self.model)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for TrainerContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrainerContext").field("checkpoints", &self.checkpoints).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Trainer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer")
            .field("model", &self.stepper.model)
            .field("options", &self.options)
            .field("progress", &self.outcome.progress)
            .finish_non_exhaustive()
    }
}
