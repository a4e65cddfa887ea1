//! A few steps and a few predictions on real batches, measured.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use sepal_data::Loader;
use sepal_plugin::Phase;
use serde::Serialize;

use super::{DataPlan, StepsPlan};
use crate::data::Prepared;
use crate::error::RunError;
use crate::model::Model;
use crate::precision::Scaling;
use crate::progress::{Event, Observer};
use crate::spec::Spec;
use crate::step::{Measured, measure};
use crate::train::{Dealt, Length};

/// What was measured, and what is estimated by it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TimePlan {
    /// Measured: steps that count.
    pub probe_steps: u64,
    /// Measured: seconds of the step before them, which opens connections and warms up.
    pub first_step_seconds: f64,
    /// Measured: seconds of a step, the mean. The optimizer's part is not in it.
    pub step_seconds: f64,
    /// Measured: tokens of a step of the probe, the mean.
    pub step_tokens: f64,
    /// Measured: training tokens per second.
    pub tokens_per_second: f64,
    /// Measured: bytes that went up in a step, the mean.
    pub step_bytes_up: u64,
    /// Measured: bytes that came down in a step, the mean.
    pub step_bytes_down: u64,
    /// Measured: validation tokens per second; nothing if there are no validation rows.
    pub evaluation_tokens_per_second: Option<f64>,
    /// Estimated: seconds of all steps.
    pub estimated_training_seconds: f64,
    /// Estimated: seconds of one evaluation.
    pub estimated_evaluation_seconds: f64,
    /// Estimated: seconds of the run, after model and data are there; not longer than `train.max_minutes` and the last
    /// evaluation.
    pub estimated_seconds: f64,
}

/// What is to be measured.
pub(super) struct Probe<'a> {
    pub(super) spec: &'a Spec,
    pub(super) prepared: &'a Prepared,
    pub(super) length: Length,
    pub(super) steps: u64,
    pub(super) observer: &'a mut dyn Observer,
    pub(super) stop: &'a AtomicBool,
}

impl Probe<'_> {
    /// Nothing if no step was made: it was interrupted, or all numbers overflowed.
    pub(super) fn run(
        self,
        model: &mut Model,
        data: &DataPlan,
        steps: &StepsPlan,
    ) -> Result<Option<TimePlan>, RunError> {
        self.observer.event(Event::Notice(&format!("probe: {} steps after one to warm up", self.steps)));
        let scaling = Scaling::new(self.spec.scaler());
        let mut dealt = Dealt::new(&self.prepared.train, self.length, self.spec.train.accumulate);
        let (mut first, mut measured) = (None, Vec::new());
        for step in 0..=self.steps {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            // A run of one step has one.
            let (group, _) = dealt.group(step % self.length.total_steps.max(1));
            if let Some(taken) = measure(model, &scaling, &group, step + 1)? {
                match first {
                    None => first = Some(taken),
                    Some(_) => measured.push(taken),
                }
            }
        }
        let Some(first) = first else { return Ok(None) };
        if measured.is_empty() {
            measured.push(first);
        }
        let rate = self.prepared.validation.as_ref().map(|loader| predict(model, loader, self.steps, self.stop));
        Ok(Some(estimate(&measured, first.seconds, rate.transpose()?.flatten(), self.prepared, data, steps)))
    }
}

fn estimate(
    measured: &[Measured],
    first_step_seconds: f64,
    evaluation_rate: Option<f64>,
    prepared: &Prepared,
    data: &DataPlan,
    steps: &StepsPlan,
) -> TimePlan {
    let n = measured.len() as f64;
    let mean = |get: fn(&Measured) -> f64| measured.iter().map(get).sum::<f64>() / n;
    let (seconds, tokens) = (mean(|step| step.seconds), mean(|step| step.tokens as f64));
    let tokens_per_second = tokens / seconds;
    // Time grows with the tokens of a step.
    let training_tokens = data.mean_batch_tokens * steps.accumulate as f64 * steps.total as f64;
    let training = training_tokens / tokens_per_second;
    let validation_tokens = prepared.validation.as_ref().map_or(0, tokens_of);
    let evaluation = evaluation_rate.map_or(0.0, |rate| validation_tokens as f64 / rate);
    let whole = training + evaluation * steps.evaluations as f64;
    let limit = steps.max_minutes.map_or(f64::INFINITY, |minutes| minutes * 60.0 + evaluation);
    TimePlan {
        probe_steps: measured.len() as u64,
        first_step_seconds,
        step_seconds: seconds,
        step_tokens: tokens,
        tokens_per_second,
        step_bytes_up: mean(|step| step.bytes_up as f64) as u64,
        step_bytes_down: mean(|step| step.bytes_down as f64) as u64,
        evaluation_tokens_per_second: evaluation_rate,
        estimated_training_seconds: training,
        estimated_evaluation_seconds: evaluation,
        estimated_seconds: whole.min(limit),
    }
}

fn tokens_of(loader: &Loader) -> usize {
    loader.epoch(0).map(|batch| batch.rows.n_tokens()).sum()
}

/// Tokens per second of the predictions of so many batches, after one to warm up if there are several.
fn predict(model: &Model, loader: &Loader, batches: u64, stop: &AtomicBool) -> Result<Option<f64>, RunError> {
    tch::no_grad(|| {
        let tuned = model.blocks.tune(model.tunables()?)?;
        let (mut tokens, mut started) = (0, Instant::now());
        for (i, batch) in loader.epoch(0).take(batches as usize + 1).enumerate() {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            if i == 1 {
                (tokens, started) = (0, Instant::now());
            }
            let logits = model.forward(&tuned, &batch.ids, &batch.rows, Phase::Evaluate)?;
            model.head.predict(&logits).map_err(RunError::Head)?;
            tokens += batch.rows.n_tokens();
        }
        Ok((tokens > 0).then(|| tokens as f64 / started.elapsed().as_secs_f64()))
    })
}
