//! The training loop, and evaluation.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use sepal_data::{Batch, Loader};
use sepal_optim::{Optimizer, Schedule, clip_grad_norm};
use sepal_plugin::{BuildError, Labels, Phase, Prediction};
use sepal_track::{EvaluationRecord, MetricsLog, StepRecord};
use tch::{Kind, Tensor};

use crate::blocks::Tuned;
use crate::data::to_tensor;
use crate::error::RunError;
use crate::model::Model;
use crate::precision::Scaling;
use crate::progress::{Event, Observer};
use crate::spec::{EvaluateEvery, TrainSpec};

/// Everything that the loop turns on.
pub(crate) struct Training<'a> {
    pub(crate) model: &'a mut Model,
    pub(crate) optimizer: Box<dyn Optimizer>,
    pub(crate) schedule: Box<dyn Schedule>,
    pub(crate) scaling: Scaling,
    pub(crate) train: &'a Loader,
    pub(crate) validation: Option<&'a Loader>,
    pub(crate) spec: &'a TrainSpec,
    pub(crate) every: EvaluateEvery,
    pub(crate) total_steps: u64,
    pub(crate) log: &'a mut MetricsLog,
    pub(crate) observer: &'a mut dyn Observer,
    pub(crate) stop: &'a AtomicBool,
}

/// What the loop came to, also when it ended early.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Made or skipped.
    pub(crate) steps: u64,
    pub(crate) skipped: u64,
    /// What the loss was multiplied by in the last of them.
    pub(crate) scale: Option<f64>,
    pub(crate) rows: u64,
    pub(crate) tokens: u64,
    pub(crate) seconds: f64,
    pub(crate) interrupted: bool,
    pub(crate) last: Option<Evaluated>,
}

/// One pass over the validation rows.
#[derive(Debug)]
pub(crate) struct Evaluated {
    pub(crate) record: EvaluationRecord,
    /// The metric that comes first for the task.
    pub(crate) headline: Option<(String, f64)>,
    pub(crate) prediction: Prediction,
}

/// What one step was made of, as far as it came.
struct Sums {
    /// Each batch's mean loss times its share of all rows.
    loss: f64,
    rows: usize,
    /// Rows whose loss is known.
    seen: usize,
    tokens: usize,
    right: Option<usize>,
}

impl Sums {
    fn of(group: &[Batch]) -> Self {
        let rows = group.iter().map(|batch| batch.rows.len()).sum();
        Self { loss: 0.0, rows, seen: 0, tokens: 0, right: Some(0) }
    }

    /// Of the rows whose loss is known; not a number if there are none.
    fn mean_loss(&self) -> f64 {
        if self.seen == self.rows { self.loss } else { self.loss * self.rows as f64 / self.seen as f64 }
    }

    /// Share of the rows that the model had right, if they have a class and were all seen.
    fn accuracy(&self) -> Option<f64> {
        self.right.filter(|_| self.seen == self.rows).map(|right| right as f64 / self.rows as f64)
    }
}

impl Training<'_> {
    /// Makes the steps; `outcome` is up to date whenever this returns, with or without an error.
    pub(crate) fn run(&mut self, outcome: &mut Outcome) -> Result<(), RunError> {
        let accumulate = self.spec.accumulate;
        let mut epoch = 0;
        while outcome.steps < self.total_steps {
            let mut batches = self.train.epoch(epoch);
            for in_epoch in 1_u64.. {
                let group: Vec<Batch> = batches.by_ref().take(accumulate).collect();
                if group.is_empty() || outcome.steps >= self.total_steps {
                    break;
                }
                if self.stop.load(Ordering::Relaxed) {
                    outcome.interrupted = true;
                    return Ok(());
                }
                let batches_done = (in_epoch - 1) * accumulate as u64 + group.len() as u64;
                let share = batches_done as f64 / self.train.batches_per_epoch() as f64;
                self.step(&group, epoch as f64 + share, outcome)?;
                if let EvaluateEvery::Steps(steps) = self.every
                    && outcome.steps.is_multiple_of(steps)
                    && outcome.steps < self.total_steps
                {
                    self.evaluate_into(outcome)?;
                }
            }
            epoch += 1;
            if self.every == EvaluateEvery::Epoch && outcome.steps < self.total_steps {
                self.evaluate_into(outcome)?;
            }
        }
        if self.every != EvaluateEvery::Never {
            self.evaluate_into(outcome)?;
        }
        Ok(())
    }

    /// One optimizer step over the batches of `group`.
    fn step(&mut self, group: &[Batch], epoch: f64, outcome: &mut Outcome) -> Result<(), RunError> {
        let started = Instant::now();
        let number = outcome.steps + 1;
        let traffic = self.model.blocks.traffic().clone();
        let (up, down) = (traffic.up(), traffic.down());
        let scale = self.scaling.scale();
        // A step that was skipped moves neither the parameters nor the schedule.
        let lr = self.optimizer.lr() * self.schedule.factor((outcome.steps - self.scaling.skipped()) as usize);
        let mut sums = Sums::of(group);
        let (grad_norm, skipped) = self.attempt(group, number, lr, &mut sums)?;
        let record = StepRecord {
            step: number,
            epoch,
            loss: sums.mean_loss(),
            accuracy: sums.accuracy(),
            lr,
            grad_norm,
            scale,
            skipped,
            skipped_steps: scale.map(|_| self.scaling.skipped()),
            rows: sums.rows,
            tokens: sums.tokens,
            seconds: started.elapsed().as_secs_f64(),
            bytes_up: traffic.up() - up,
            bytes_down: traffic.down() - down,
        };
        outcome.steps = number;
        outcome.skipped = self.scaling.skipped();
        outcome.scale = scale;
        outcome.rows += sums.rows as u64;
        outcome.tokens += sums.tokens as u64;
        outcome.seconds += record.seconds;
        self.log.step(&record).map_err(RunError::Write)?;
        self.observer.event(Event::Step(&record));
        match record.skipped.and_then(|reason| self.scaling.hopeless(number, reason)) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Makes a step, or skips it if numbers overflow while the loss is scaled. Returns the norm of the gradients, or why
    /// it was skipped.
    fn attempt(
        &mut self,
        group: &[Batch],
        step: u64,
        lr: f64,
        sums: &mut Sums,
    ) -> Result<(f64, Option<String>), RunError> {
        self.model.params.zero_grad();
        let made = self.accumulate(group, step, sums).and_then(|()| self.update(group, step, lr));
        match made {
            Ok(grad_norm) => Ok((grad_norm, None)),
            Err(error) => match error.overflow().filter(|_| self.scaling.skip()) {
                Some(reason) => Ok((f64::NAN, Some(reason))),
                None => Err(error),
            },
        }
    }

    /// Gradients of the mean loss over all rows of the group, times the scale.
    fn accumulate(&self, group: &[Batch], step: u64, sums: &mut Sums) -> Result<(), RunError> {
        let mut tuned: Option<Tuned<'_>> = None;
        for batch in group {
            // A graph of its own for each backward; the numbers go up once.
            let tunables = self.model.tunables()?;
            let current = match tuned.take() {
                None => self.model.blocks.tune(tunables)?,
                Some(earlier) => earlier.with_graph(tunables),
            };
            let tuned = tuned.insert(current);
            let logits = self.model.forward(tuned, &batch.ids, &batch.rows, Phase::Train)?;
            let labels = to_tensor(batch.labels.as_ref())?;
            let loss = self.model.head.loss(&logits, &labels).map_err(RunError::Head)?;
            let value = f64::try_from(&loss).map_err(RunError::Torch)?;
            if !value.is_finite() {
                let (rows, servers) = (batch.indices.clone(), self.model.blocks.places());
                return Err(RunError::NonFinite { what: "loss", step, rows, servers });
            }
            let share = batch.rows.len() as f64 / sums.rows as f64;
            sums.loss += value * share;
            sums.seen += batch.rows.len();
            sums.tokens += batch.rows.n_tokens();
            sums.right = match (&labels, sums.right) {
                (Labels::Class(classes), Some(right)) => Some(right + count_right(&logits.values, classes)?),
                _ => None,
            };
            let scaled = self.scaling.scaled(loss * share).map_err(RunError::Torch)?;
            self.model.blocks.backward(&scaled).map_err(|source| RunError::Backward { step, source })?;
        }
        Ok(())
    }

    /// Moves the parameters by the gradients that were added up. Returns the norm of these, without scale and before
    /// clipping.
    fn update(&mut self, group: &[Batch], step: u64, lr: f64) -> Result<f64, RunError> {
        let are_finite = self.scaling.unscale(&self.model.params).map_err(RunError::Torch)?;
        let grad_norm = if are_finite { self.clip()? } else { f64::NAN };
        if !grad_norm.is_finite() {
            let (what, rows) = ("norm of the gradients", rows_of(group));
            return Err(RunError::NonFinite { what, step, rows, servers: self.model.blocks.places() });
        }
        self.scaling.step(&mut *self.optimizer, &self.model.params, lr).map_err(RunError::Optimizer)?;
        Ok(grad_norm)
    }

    fn clip(&self) -> Result<f64, RunError> {
        let max_norm = self.spec.clip_norm.unwrap_or(f64::INFINITY);
        clip_grad_norm(&self.model.params, max_norm).map_err(RunError::Torch)
    }

    fn evaluate_into(&mut self, outcome: &mut Outcome) -> Result<(), RunError> {
        if let Some(loader) = self.validation {
            let evaluated = evaluate(self.model, loader, outcome.steps, self.observer)?;
            self.log.evaluation(&evaluated.record).map_err(RunError::Write)?;
            self.observer.event(Event::Evaluated(&evaluated.record));
            self.tell_schedule(&evaluated.record)?;
            outcome.last = Some(evaluated);
        }
        Ok(())
    }
}

impl Training<'_> {
    /// Gives the schedule what it watches of an evaluation.
    fn tell_schedule(&mut self, record: &EvaluationRecord) -> Result<(), RunError> {
        let Some(watched) = self.schedule.watches() else { return Ok(()) };
        let value = if watched == "loss" { Some(record.loss) } else { record.metrics.get(watched).copied() };
        let Some(value) = value else {
            let known: Vec<&str> = record.metrics.keys().map(String::as_str).collect();
            let message = format!("expected one of loss, {}, found `{watched}`", known.join(", "));
            let source = BuildError::Option { key: "metric", message };
            return Err(RunError::Build { key: "schedule", source });
        };
        self.schedule.evaluated((record.step - self.scaling.skipped()) as usize, value);
        Ok(())
    }
}

/// Predicts all rows of the loader, in its order.
pub(crate) fn evaluate(
    model: &Model,
    loader: &Loader,
    steps: u64,
    observer: &mut dyn Observer,
) -> Result<Evaluated, RunError> {
    let started = Instant::now();
    let traffic = model.blocks.traffic();
    let (up, down) = (traffic.up(), traffic.down());
    let mut prediction = Prediction::default();
    let mut labels = Vec::new();
    let (mut loss, mut tokens) = (0.0, 0);
    tch::no_grad(|| {
        let tuned = model.blocks.tune(model.tunables()?)?;
        for batch in loader.epoch(0) {
            let logits = model.forward(&tuned, &batch.ids, &batch.rows, Phase::Evaluate)?;
            let truth = to_tensor(batch.labels.as_ref())?;
            let mean = model.head.loss(&logits, &truth).map_err(RunError::Head)?;
            loss += f64::try_from(&mean).map_err(RunError::Torch)? * batch.rows.len() as f64;
            tokens += batch.rows.n_tokens();
            prediction.append(model.head.predict(&logits).map_err(RunError::Head)?);
            labels.push(truth);
            observer.event(Event::Evaluating { done: prediction.rows(), total: loader.rows() });
        }
        Ok::<(), RunError>(())
    })?;
    let labels = Labels::cat(&labels).map_err(RunError::Head)?;
    let named = model.head.metrics(&prediction, &labels).map_err(RunError::Head)?;
    let record = EvaluationRecord {
        step: steps,
        loss: loss / prediction.rows() as f64,
        metrics: named.iter().cloned().collect(),
        rows: prediction.rows(),
        tokens,
        seconds: started.elapsed().as_secs_f64(),
        bytes_up: traffic.up() - up,
        bytes_down: traffic.down() - down,
    };
    Ok(Evaluated { record, headline: named.into_iter().next(), prediction })
}

/// Rows whose largest logit is that of their class.
fn count_right(logits: &Tensor, classes: &Tensor) -> Result<usize, RunError> {
    let right = logits.argmax(-1, false).f_eq_tensor(classes).and_then(|right| right.f_sum(Kind::Int64));
    let right = right.and_then(|right| i64::try_from(&right)).map_err(RunError::Torch)?;
    Ok(right.unsigned_abs() as usize)
}

fn rows_of(group: &[Batch]) -> Vec<usize> {
    group.iter().flat_map(|batch| batch.indices.iter().copied()).collect()
}
