//! Predicting validation rows, and which evaluation is best.

use std::time::Instant;

use sepal_core::NamedHostTensor;
use sepal_data::Loader;
use sepal_plugin::{Labels, Phase, Prediction};
use sepal_track::{Best, EvaluationRecord};

use crate::data::to_tensor;
use crate::error::RunError;
use crate::model::Model;
use crate::progress::{Event, Observer};
use crate::spec::{EvaluateSpec, Goal};

/// One pass over the validation rows.
#[derive(Debug)]
pub(crate) struct Evaluated {
    pub(crate) record: EvaluationRecord,
    /// The metric that comes first for the task.
    pub(crate) headline: String,
    pub(crate) prediction: Prediction,
}

/// An evaluation whose parameters become the adapter.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) evaluated: Evaluated,
    pub(crate) best: Best,
    /// The parameters that it was made with; none where those of the last step are kept.
    pub(crate) params: Vec<NamedHostTensor>,
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
    let headline = named.into_iter().next().map_or_else(|| LOSS.to_owned(), |(name, _)| name);
    Ok(Evaluated { record, headline, prediction })
}

/// The loss under the name by which it can be the metric that decides.
const LOSS: &str = "loss";

/// Says which of two evaluations is better.
#[derive(Debug, Clone)]
pub(crate) struct Judge {
    metric: Option<String>,
    goal: Option<Goal>,
}

impl Judge {
    /// By what the pipeline asks for, or else `usual`, or else the task's first metric.
    pub(crate) fn new(spec: &EvaluateSpec, usual: Option<&str>) -> Self {
        Self { metric: spec.metric.clone().or_else(|| usual.map(str::to_owned)), goal: spec.goal }
    }

    /// The value that decides.
    ///
    /// # Errors
    /// [`RunError::Metric`] if the task has no such metric.
    pub(crate) fn value(&self, evaluated: &Evaluated) -> Result<Best, RunError> {
        let metric = self.metric.as_ref().unwrap_or(&evaluated.headline);
        let Evaluated { record: EvaluationRecord { step, loss, metrics, .. }, .. } = evaluated;
        let value = if metric == LOSS { Some(*loss) } else { metrics.get(metric).copied() };
        let known = || metrics.keys().cloned().chain([LOSS.to_owned()]).collect();
        match value {
            Some(value) => Ok(Best { step: *step, metric: metric.clone(), value }),
            None => Err(RunError::Metric { metric: metric.clone(), known: known() }),
        }
    }

    /// Whether `new` is better than `old` by more than `min_delta`; what is not a number never is.
    pub(crate) fn is_better(&self, new: &Best, old: Option<&Best>, min_delta: f64) -> bool {
        let Some(old) = old.filter(|old| !old.value.is_nan()) else { return true };
        match self.goal.unwrap_or_else(|| goal_of(&new.metric)) {
            Goal::Max => new.value > old.value + min_delta,
            Goal::Min => new.value < old.value - min_delta,
        }
    }
}

/// Of a metric by its name.
fn goal_of(metric: &str) -> Goal {
    match metric {
        LOSS | "mse" | "rmse" | "mae" | "ece" | "brier" | "log_loss" | "hamming_loss" => Goal::Min,
        _ => Goal::Max,
    }
}
