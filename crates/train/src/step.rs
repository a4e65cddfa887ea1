//! One optimizer step.

use std::time::Instant;

use sepal_config::spec::TrainSpec;
use sepal_data::Batch;
use sepal_model::{BlocksSession, Model, without_liars};
use sepal_optim::{Optimizer, Schedule, clip_grad_norm};
use sepal_plugin::Phase;
use sepal_track::StepRecord;

use crate::error::{TrainError, require_labels};
use crate::loss_scaling::LossScaling;

struct StepSums {
    /// Sum of each batch's mean loss times its share of all rows.
    loss: f64,
    rows: usize,
    /// Rows with a known loss.
    seen: usize,
    tokens: usize,
    /// Correctly classified rows; `None` if rows have no class.
    correct: Option<usize>,
}

impl StepSums {
    fn new(group: &[Batch]) -> Self {
        let rows = group.iter().map(Batch::n_rows).sum();
        Self { loss: 0.0, rows, seen: 0, tokens: 0, correct: Some(0) }
    }

    /// Mean loss of the rows with a known loss; NaN if there are none.
    fn mean_loss(&self) -> f64 {
        if self.seen == self.rows { self.loss } else { self.loss * self.rows as f64 / self.seen as f64 }
    }

    /// Fraction of correctly classified rows, if rows have a class and all were seen.
    fn accuracy(&self) -> Option<f64> {
        self.correct.filter(|_| self.seen == self.rows).map(|correct| correct as f64 / self.rows as f64)
    }
}

pub(crate) struct Stepper<'a> {
    pub(crate) model: &'a mut Model,
    pub(crate) optimizer: Box<dyn Optimizer>,
    pub(crate) schedule: Box<dyn Schedule>,
    pub(crate) scaling: LossScaling,
}

impl Stepper<'_> {
    /// Makes or skips the step `number` over the batches of `group`, which end `epoch` epochs into the data.
    pub(crate) fn step(
        &mut self,
        spec: &TrainSpec,
        group: &[Batch],
        number: u64,
        epoch: f64,
    ) -> Result<StepRecord, TrainError> {
        let started = Instant::now();
        let seed = seed_of_step(spec.seed, number);
        let traffic = self.model.blocks.traffic().clone();
        let (up, down) = (traffic.up(), traffic.down());
        let scale = self.scaling.scale();
        // A skipped step moves neither the parameters nor the schedule.
        let lr = self.optimizer.lr() * self.schedule.factor((number - 1 - self.scaling.skipped()) as usize);
        let mut sums = StepSums::new(group);
        let (grad_norm, skipped) = self.attempt(spec, group, (number, seed), lr, &mut sums)?;
        Ok(StepRecord {
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
        })
    }

    /// Makes a step, or skips it after an overflow of a scaled loss. Returns the gradients' norm, and the reason to skip.
    fn attempt(
        &mut self,
        spec: &TrainSpec,
        group: &[Batch],
        (step, seed): (u64, i64),
        lr: f64,
        sums: &mut StepSums,
    ) -> Result<(f64, Option<String>), TrainError> {
        let (model, scaling) = (&mut *self.model, &self.scaling);
        // A repetition begins like the first attempt, so that it makes the same step as one without the wrong results.
        let accumulated = without_liars(|| {
            model.params.zero_grad();
            *sums = StepSums::new(group);
            tch::manual_seed(seed);
            accumulate(model, scaling, group, step, sums, &|| false)
        });
        match accumulated.and_then(|()| self.update(spec, group, step, lr)) {
            Ok(grad_norm) => Ok((grad_norm, None)),
            Err(error) => match error.overflow().filter(|_| self.scaling.skip()) {
                Some(reason) => Ok((f64::NAN, Some(reason))),
                None => Err(error),
            },
        }
    }

    /// Moves the parameters by the accumulated gradients. Returns the norm of the gradients, unscaled and before clipping.
    fn update(&mut self, spec: &TrainSpec, group: &[Batch], step: u64, lr: f64) -> Result<f64, TrainError> {
        let are_finite = self.scaling.unscale(&self.model.params)?;
        let max_norm = spec.clip_norm.unwrap_or(f64::INFINITY);
        let grad_norm = if are_finite { clip_grad_norm(&self.model.params, max_norm)? } else { f64::NAN };
        if !grad_norm.is_finite() {
            let (what, rows) = ("norm of the gradients", row_indices(group));
            return Err(TrainError::NonFinite { what, step, rows, servers: self.model.blocks.description() });
        }
        self.scaling.step(&mut *self.optimizer, &self.model.params, lr).map_err(TrainError::Optimizer)?;
        Ok(grad_norm)
    }
}

/// Measurements of a step that left the parameters as they were.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepMeasurement {
    /// Wall time.
    pub seconds: f64,
    /// Tokens, without prompts.
    pub tokens: usize,
    /// Bytes sent to servers.
    pub bytes_up: u64,
    /// Bytes received from servers.
    pub bytes_down: u64,
    /// True if every batch of the step was run.
    pub is_complete: bool,
}

/// Runs the forward and backward passes of a step without the optimizer, and clears the gradients.
///
/// `is_over` is read after each batch and ends the step early; the figures are then scaled up to all tokens. `None` if the
/// step would have been skipped because of overflow.
///
/// # Errors
/// [`TrainError`] if a pass fails.
pub fn measure_step(
    model: &mut Model,
    scaling: &LossScaling,
    group: &[Batch],
    step: u64,
    is_over: &dyn Fn() -> bool,
) -> Result<Option<StepMeasurement>, TrainError> {
    let traffic = model.blocks.traffic().clone();
    let (started, up, down) = (Instant::now(), traffic.up(), traffic.down());
    let mut sums = StepSums::new(group);
    let accumulated = without_liars(|| {
        model.params.zero_grad();
        sums = StepSums::new(group);
        accumulate(model, scaling, group, step, &mut sums, is_over)
    });
    let tokens = group.iter().map(|batch| batch.tokens.n_tokens()).sum();
    let share = tokens as f64 / sums.tokens.max(1) as f64;
    let measurement = StepMeasurement {
        seconds: started.elapsed().as_secs_f64() * share,
        tokens,
        bytes_up: ((traffic.up() - up) as f64 * share) as u64,
        bytes_down: ((traffic.down() - down) as f64 * share) as u64,
        is_complete: sums.tokens == tokens,
    };
    model.params.zero_grad();
    match accumulated {
        Ok(()) => Ok(Some(measurement)),
        Err(error) if scaling.scale().is_some() && error.overflow().is_some() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Accumulates the gradients of the scaled mean loss over all rows of the group, or over the batches before `is_over`.
fn accumulate(
    model: &Model,
    scaling: &LossScaling,
    group: &[Batch],
    step: u64,
    sums: &mut StepSums,
    is_over: &dyn Fn() -> bool,
) -> Result<(), TrainError> {
    let mut session: Option<Box<dyn BlocksSession + '_>> = None;
    for (i, batch) in group.iter().enumerate() {
        if i > 0 && is_over() {
            break;
        }
        // Each backward pass needs a graph of its own; the values are uploaded once.
        let session = match &mut session {
            None => session.insert(model.tune()?),
            Some(session) => {
                session.set_graph(model.tunables()?);
                session
            }
        };
        let is_untrained = step == 1 && scaling.scale().is_none();
        let logits = match model.forward(&**session, &batch.tokens, Phase::Train) {
            Err(error) if is_untrained && error.is_non_finite() => {
                check_untrained(model, &**session, batch)?;
                return Err(error.into());
            }
            logits => logits?,
        };
        let labels = require_labels(batch.labels.as_ref())?;
        let loss = model.head.loss(&logits, labels).map_err(TrainError::Head)?;
        let value = f64::try_from(&loss)?;
        if !value.is_finite() {
            if is_untrained {
                check_untrained(model, &**session, batch)?;
            }
            let (rows, servers) = (batch.indices.clone(), model.blocks.description());
            return Err(TrainError::NonFinite { what: "loss", step, rows, servers });
        }
        let share = batch.n_rows() as f64 / sums.rows as f64;
        sums.loss += value * share;
        sums.seen += batch.n_rows();
        sums.tokens += batch.tokens.n_tokens();
        let correct = model.head.count_correct(&logits, labels).map_err(TrainError::Head)?;
        sums.correct = sums.correct.zip(correct).map(|(before, correct)| before + correct);
        let scaled = scaling.scaled(loss * share)?;
        model.blocks.backward(&scaled).map_err(|source| TrainError::Backward { step, source })?;
    }
    Ok(())
}

/// Returns an error if the logits are NaN or infinite before anything was trained.
fn check_untrained(model: &Model, session: &dyn BlocksSession, batch: &Batch) -> Result<(), TrainError> {
    let logits = tch::no_grad(|| model.forward(session, &batch.tokens, Phase::Evaluate));
    logits.map(drop).map_err(|error| error.with_rows_of("training", &batch.indices).into())
}

/// Seed of libtorch's generator in one step. It depends on seed and step alone, so that checkpoints need no state of it.
fn seed_of_step(seed: u64, step: u64) -> i64 {
    // An odd factor, so that no two steps of a seed have the same.
    seed.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15)).cast_signed()
}

fn row_indices(group: &[Batch]) -> Vec<usize> {
    group.iter().flat_map(|batch| batch.indices.iter().copied()).collect()
}
