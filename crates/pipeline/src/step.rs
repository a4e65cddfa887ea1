//! One optimizer step.

use std::time::Instant;

use sepal_data::Batch;
use sepal_optim::clip_grad_norm;
use sepal_plugin::{Labels, Phase};
use sepal_track::StepRecord;
use tch::{Kind, Tensor};

use crate::blocks::Tuned;
use crate::data::require_labels;
use crate::error::RunError;
use crate::model::Model;
use crate::precision::Scaling;
use crate::progress::Event;
use crate::train::{Outcome, Training};

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
    /// One optimizer step over the batches of `group`, which end `epoch` epochs into the data.
    pub(crate) fn step(&mut self, group: &[Batch], epoch: f64, outcome: &mut Outcome) -> Result<(), RunError> {
        let started = Instant::now();
        let progress = &mut outcome.progress;
        let number = progress.steps + 1;
        tch::manual_seed(seed_of_step(self.spec.train.seed, number));
        let traffic = self.model.blocks.traffic().clone();
        let (up, down) = (traffic.up(), traffic.down());
        let scale = self.scaling.scale();
        // A step that was skipped moves neither the parameters nor the schedule.
        let lr = self.optimizer.lr() * self.schedule.factor((progress.steps - self.scaling.skipped()) as usize);
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
        progress.steps = number;
        progress.skipped = self.scaling.skipped();
        progress.scale = scale;
        progress.rows += sums.rows as u64;
        progress.tokens += sums.tokens as u64;
        progress.train_seconds += record.seconds;
        self.records.step(&record)?;
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
        let made = accumulate(self.model, &self.scaling, group, step, sums, &|| false);
        let made = made.and_then(|()| self.update(group, step, lr));
        match made {
            Ok(grad_norm) => Ok((grad_norm, None)),
            Err(error) => match error.overflow().filter(|_| self.scaling.skip()) {
                Some(reason) => Ok((f64::NAN, Some(reason))),
                None => Err(error),
            },
        }
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
        let max_norm = self.spec.train.clip_norm.unwrap_or(f64::INFINITY);
        clip_grad_norm(&self.model.params, max_norm).map_err(RunError::Torch)
    }
}

/// What a step took that moved nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Measured {
    pub(crate) seconds: f64,
    pub(crate) tokens: usize,
    pub(crate) bytes_up: u64,
    pub(crate) bytes_down: u64,
    /// No batch was left out.
    pub(crate) is_whole: bool,
}

/// Everything of a step but the optimizer's part: the parameters stay as they are, and so do their gradients, which are
/// none. Nothing if it would have been skipped for overflow. If `is_over` says so behind one of its batches, the step ends
/// there; then the figures are those of a whole step, by its tokens.
pub(crate) fn measure(
    model: &mut Model,
    scaling: &Scaling,
    group: &[Batch],
    step: u64,
    is_over: &dyn Fn() -> bool,
) -> Result<Option<Measured>, RunError> {
    let traffic = model.blocks.traffic().clone();
    let (started, up, down) = (Instant::now(), traffic.up(), traffic.down());
    let mut sums = Sums::of(group);
    let made = accumulate(model, scaling, group, step, &mut sums, is_over);
    let tokens = group.iter().map(|batch| batch.rows.n_tokens()).sum();
    let share = tokens as f64 / sums.tokens.max(1) as f64;
    let measured = Measured {
        seconds: started.elapsed().as_secs_f64() * share,
        tokens,
        bytes_up: ((traffic.up() - up) as f64 * share) as u64,
        bytes_down: ((traffic.down() - down) as f64 * share) as u64,
        is_whole: sums.tokens == tokens,
    };
    model.params.zero_grad();
    match made {
        Ok(()) => Ok(Some(measured)),
        Err(error) if scaling.scale().is_some() && error.overflow().is_some() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Gradients of the mean loss over all rows of the group, times the scale, or of those of its batches until `is_over`.
fn accumulate(
    model: &Model,
    scaling: &Scaling,
    group: &[Batch],
    step: u64,
    sums: &mut Sums,
    is_over: &dyn Fn() -> bool,
) -> Result<(), RunError> {
    let mut tuned: Option<Tuned<'_>> = None;
    for (i, batch) in group.iter().enumerate() {
        if i > 0 && is_over() {
            break;
        }
        // A graph of its own for each backward; the numbers go up once.
        let tunables = model.tunables()?;
        let current = match tuned.take() {
            None => model.blocks.tune(tunables)?,
            Some(earlier) => earlier.with_graph(tunables),
        };
        let tuned = tuned.insert(current);
        let is_untrained = step == 1 && scaling.scale().is_none();
        let logits = match model.forward(tuned, &batch.ids, &batch.rows, Phase::Train) {
            Err(error) if is_untrained && error.is_non_finite() => {
                check_untrained(model, tuned, batch)?;
                return Err(error);
            }
            logits => logits?,
        };
        let labels = require_labels(batch.labels.as_ref())?;
        let loss = model.head.loss(&logits, labels).map_err(RunError::Head)?;
        let value = f64::try_from(&loss).map_err(RunError::Torch)?;
        if !value.is_finite() {
            if is_untrained {
                check_untrained(model, tuned, batch)?;
            }
            let (rows, servers) = (batch.indices.clone(), model.blocks.places());
            return Err(RunError::NonFinite { what: "loss", step, rows, servers });
        }
        let share = batch.rows.len() as f64 / sums.rows as f64;
        sums.loss += value * share;
        sums.seen += batch.rows.len();
        sums.tokens += batch.rows.n_tokens();
        sums.right = match (labels, sums.right) {
            (Labels::Class(classes), Some(right)) => Some(right + count_right(&logits.values, classes)?),
            _ => None,
        };
        let scaled = scaling.scaled(loss * share).map_err(RunError::Torch)?;
        model.blocks.backward(&scaled).map_err(|source| RunError::Backward { step, source })?;
    }
    Ok(())
}

/// Errors if the model gives logits that are NaN or infinite before anything was trained.
fn check_untrained(model: &Model, tuned: &Tuned<'_>, batch: &Batch) -> Result<(), RunError> {
    let logits = tch::no_grad(|| model.forward(tuned, &batch.ids, &batch.rows, Phase::Evaluate));
    logits.map(drop).map_err(|error| error.of_rows("training", &batch.indices))
}

/// What libtorch draws from in a step, dropout for example. It depends on seed and step alone, so that nothing of it needs
/// to be saved.
fn seed_of_step(seed: u64, step: u64) -> i64 {
    // An odd factor, so that no two steps of a seed have the same.
    seed.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15)).cast_signed()
}

/// Rows whose largest logit is that of their class.
fn count_right(logits: &Tensor, classes: &[i64]) -> Result<usize, RunError> {
    let classes = Tensor::from_slice(classes); // [rows]
    let right = logits.argmax(-1, false).f_eq_tensor(&classes).and_then(|right| right.f_sum(Kind::Int64));
    let right = right.and_then(|right| i64::try_from(&right)).map_err(RunError::Torch)?;
    Ok(right.unsigned_abs() as usize)
}

fn rows_of(group: &[Batch]) -> Vec<usize> {
    group.iter().flat_map(|batch| batch.indices.iter().copied()).collect()
}
