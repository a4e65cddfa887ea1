//! Measurement of a few steps and predictions on real batches.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sepal_config::Spec;
use sepal_config::spec::RunLength;
use sepal_data::Loader;
use sepal_model::{Model, without_liars};
use sepal_plugin::Phase;
use sepal_prepare::PreparedData;
use sepal_prepare::plan::{DataPlan, ProbeEnd, StepsPlan, TimePlan};
use sepal_train::{BatchCursor, EvaluateError, LossScaling, StepMeasurement, measure_step};

use crate::error::RunError;
use crate::progress::{Event, Observer};

/// Extent of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeSpec {
    /// Steps after the warm-up; with 0 the probe connects to nothing.
    pub steps: u64,
    /// Time limit of steps and predictions. A started batch is completed, and one step and one prediction are always
    /// measured.
    pub limit: Duration,
}

pub(super) struct Probe<'a> {
    pub(super) spec: &'a Spec,
    pub(super) prepared: &'a PreparedData,
    pub(super) length: RunLength,
    pub(super) probe: ProbeSpec,
    pub(super) observer: &'a mut dyn Observer,
    pub(super) stop: &'a AtomicBool,
}

impl Probe<'_> {
    /// Measures steps and predictions. `None` if no step was made because of an interruption or overflow.
    pub(super) fn run(
        mut self,
        model: &mut Model,
        data: &DataPlan,
        steps: &StepsPlan,
    ) -> Result<Option<TimePlan>, RunError> {
        let (n, limit) = (self.probe.steps, self.probe.limit);
        self.observer.event(Event::Notice(&format!(
            "probe: {n} steps after one to warm up, {} seconds at the most",
            limit.as_secs_f64()
        )));
        let started = Instant::now();
        // A third of the time is for predictions.
        let mut clock = Clock { stop: self.stop, deadline: started.checked_add(limit.mul_f64(2.0 / 3.0)), end: None };
        let Some(measured) = self.steps(model, &mut clock)? else { return Ok(None) };
        clock.deadline = started.checked_add(limit);
        let rate = match &self.prepared.validation {
            Some(loader) => predict(model, loader, n, self.observer, &mut clock)?,
            None => None,
        };
        Ok(Some(estimate(&measured, rate, clock.end, self.prepared, data, steps)))
    }

    /// Measures steps, the warm-up first. `None` if no step was made.
    fn steps(&mut self, model: &mut Model, clock: &mut Clock<'_>) -> Result<Option<Vec<StepMeasurement>>, RunError> {
        let scaling = LossScaling::new(self.spec.scaler());
        let mut cursor = BatchCursor::new(&self.prepared.train, self.length, self.spec.train.accumulate);
        let mut measured = Vec::new();
        for step in 0..=self.probe.steps {
            if clock.is_over(step == 0) {
                break;
            }
            self.observer.event(Event::Probing { what: "step", number: step, last: self.probe.steps });
            // A run may have a single step.
            let (group, _) = cursor.group(step % self.length.total_steps.max(1));
            let made = measure_step(model, &scaling, &group, step + 1, &|| clock.is_late())?;
            if made.is_some_and(|made| !made.is_complete) {
                clock.is_over(false);
            }
            measured.extend(made);
        }
        Ok((!measured.is_empty()).then_some(measured))
    }
}

struct Clock<'a> {
    stop: &'a AtomicBool,
    /// `None` if the deadline is beyond the range of the clock.
    deadline: Option<Instant>,
    end: Option<ProbeEnd>,
}

impl Clock<'_> {
    fn is_late(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Returns true if no further measurement may begin, and records the reason. No deadline stops the first one.
    fn is_over(&mut self, is_first: bool) -> bool {
        let end = match self.stop.load(Ordering::Relaxed) {
            true => Some(ProbeEnd::Interrupted),
            false => (!is_first && self.is_late()).then_some(ProbeEnd::TimeLimit),
        };
        // An interruption takes precedence over the time limit.
        self.end = if end == Some(ProbeEnd::Interrupted) { end } else { self.end.or(end) };
        end.is_some()
    }
}

fn estimate(
    made: &[StepMeasurement],
    evaluation_rate: Option<f64>,
    ended_by: Option<ProbeEnd>,
    prepared: &PreparedData,
    data: &DataPlan,
    steps: &StepsPlan,
) -> TimePlan {
    // The warm-up counts if it is the only step.
    let measured = if made.len() > 1 { &made[1..] } else { made };
    let n = measured.len() as f64;
    let mean = |get: fn(&StepMeasurement) -> f64| measured.iter().map(get).sum::<f64>() / n;
    let (seconds, tokens) = (mean(|step| step.seconds), mean(|step| step.tokens as f64));
    let tokens_per_second = tokens / seconds;
    // Time is proportional to the tokens of a step.
    let training_tokens = data.mean_batch_tokens * steps.accumulate as f64 * steps.total as f64;
    let training = training_tokens / tokens_per_second;
    let validation_tokens = prepared.validation.as_ref().map_or(0, tokens_of);
    // A prediction is faster than a step with as many tokens.
    let evaluation = validation_tokens as f64 / evaluation_rate.unwrap_or(tokens_per_second);
    let whole = training + evaluation * steps.evaluations as f64;
    let limit = steps.max_minutes.map_or(f64::INFINITY, |minutes| minutes * 60.0 + evaluation);
    TimePlan {
        probe_steps: measured.len() as u64,
        ended_by,
        first_step_seconds: made.first().map_or(0.0, |first| first.seconds),
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
    loader.epoch(0).map(|batch| batch.tokens.n_tokens()).sum()
}

/// Tokens per second of up to `batches` predictions of batches after a warm-up, which counts if it is the only one.
fn predict(
    model: &Model,
    loader: &Loader,
    batches: u64,
    observer: &mut dyn Observer,
    clock: &mut Clock<'_>,
) -> Result<Option<f64>, RunError> {
    let last = batches.min(loader.batches_per_epoch().saturating_sub(1) as u64);
    let mut measure = || -> Result<Option<f64>, EvaluateError> {
        let session = model.tune_for_predictions()?;
        let (mut tokens, mut started) = (0, Instant::now());
        let mut seconds = 0.0;
        for (number, batch) in (0..=last).zip(loader.epoch(0)) {
            if clock.is_over(number == 0) {
                break;
            }
            observer.event(Event::Probing { what: "batch of the evaluation", number, last });
            if number == 1 {
                (tokens, started) = (0, Instant::now());
            }
            let logits = model.forward(&*session, &batch.tokens, Phase::Evaluate);
            let logits = logits.map_err(|error| error.with_rows_of("validation", &batch.indices))?;
            model.head.predict(&logits).map_err(EvaluateError::Head)?;
            tokens += batch.tokens.n_tokens();
            seconds = started.elapsed().as_secs_f64();
        }
        Ok((tokens > 0).then(|| tokens as f64 / seconds))
    };
    without_liars(|| tch::no_grad(&mut measure)).map_err(RunError::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(stop: &AtomicBool, seconds: u64) -> Clock<'_> {
        Clock { stop, deadline: Instant::now().checked_add(Duration::from_secs(seconds)), end: None }
    }

    #[test]
    fn time_is_left_for_the_first_but_not_after_an_interruption() {
        let (go, stop) = (AtomicBool::new(false), AtomicBool::new(true));
        let mut ahead = clock(&go, 3600);
        assert!(!ahead.is_over(true) && !ahead.is_over(false) && ahead.end.is_none());
        let mut late = clock(&go, 0);
        assert!(!late.is_over(true) && late.end.is_none());
        assert!(late.is_over(false) && late.end == Some(ProbeEnd::TimeLimit));
        let mut stopped = clock(&stop, 3600);
        assert!(stopped.is_over(true) && stopped.end == Some(ProbeEnd::Interrupted));
        late.stop = &stop;
        assert!(late.is_over(true) && late.end == Some(ProbeEnd::Interrupted), "an interruption says more");
    }
}
