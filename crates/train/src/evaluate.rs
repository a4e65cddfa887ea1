//! Predicting labelled rows, and the selection of the best evaluation.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use sepal_config::spec::{EvaluateSpec, Goal};
use sepal_core::{NamedHostTensor, RowForm};
use sepal_data::Loader;
use sepal_metrics::Metric;
use sepal_model::{Model, without_liars};
use sepal_plugin::{Logits, Phase, Prediction};
use sepal_track::{BestEvaluation, EvaluationRecord};
use tch::{Device, Kind, Tensor};

use crate::error::{EvaluateError, MetricError, MetricUsage, require_labels};
use crate::observer::{Event, Observer};

/// Result of one pass over labelled rows.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// Measurements.
    pub record: EvaluationRecord,
    /// First metric of the task.
    pub headline: String,
    /// Predictions, in the order of the rows.
    pub prediction: Prediction,
}

/// Evaluation whose parameters become the adapter.
#[derive(Debug, Clone)]
pub struct SelectedEvaluation {
    /// The evaluation.
    pub evaluation: Evaluation,
    /// Value that selected it.
    pub best: BestEvaluation,
    /// Parameters of the evaluation; empty where the parameters of the last step become the adapter.
    pub params: Vec<NamedHostTensor>,
}

/// Labelled rows with the name that errors give them.
#[derive(Debug, Clone, Copy)]
pub struct Split<'a> {
    /// The rows.
    pub loader: &'a Loader,
    /// `validation` or `labelled`.
    pub name: &'static str,
}

/// Predicts all rows of the split after `steps` training steps. `stop` is read between batches.
///
/// # Errors
/// [`EvaluateError::Interrupted`] if `stop` is set; [`EvaluateError::Forward`] if a prediction is NaN or infinite.
pub fn evaluate(
    model: &Model,
    Split { loader, name }: Split<'_>,
    steps: u64,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Evaluation, EvaluateError> {
    let started = Instant::now();
    let traffic = model.blocks.traffic();
    let (up, down) = (traffic.up(), traffic.down());
    // A server that lies may have answered earlier batches, too: all of them are repeated without it.
    let (prediction, loss, tokens) =
        without_liars(|| predict_all(model, Split { loader, name }, &mut *observer, stop))?;
    let named = model.head.metrics(&prediction, require_labels(loader.labels())?).map_err(EvaluateError::Head)?;
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
    Ok(Evaluation { record, headline, prediction })
}

/// Predicts all rows of the split. Returns the predictions, the sum of the losses of the rows, and the number of tokens.
fn predict_all(
    model: &Model,
    Split { loader, name }: Split<'_>,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<(Prediction, f64, usize), EvaluateError> {
    let mut prediction = Prediction::default();
    let (mut loss, mut tokens) = (0.0, 0);
    tch::no_grad(|| {
        let session = model.tune_for_predictions()?;
        for batch in loader.epoch(0) {
            if stop.load(Ordering::Relaxed) {
                return Err(EvaluateError::Interrupted);
            }
            let logits = model.forward(&*session, &batch.tokens, Phase::Evaluate);
            let logits = logits.map_err(|error| error.with_rows_of(name, &batch.indices))?;
            let labels = require_labels(batch.labels.as_ref())?;
            let mean = model.head.loss(&logits, labels).map_err(EvaluateError::Head)?;
            loss += f64::try_from(&mean)? * batch.n_rows() as f64;
            tokens += batch.tokens.n_tokens();
            prediction.append(model.head.predict(&logits).map_err(EvaluateError::Head)?);
            observer.event(Event::Evaluating { done: prediction.rows(), total: loader.rows() });
        }
        Ok((prediction, loss, tokens))
    })
}

/// Names of the metrics that evaluations of these rows have: those of a constant prediction, or all that the task names if
/// its rows have logits for each of their items.
///
/// # Errors
/// [`EvaluateError`] if the head fails.
pub fn metric_names(model: &Model, loader: &Loader) -> Result<Vec<String>, EvaluateError> {
    let task = model.head.task();
    if task.row_form() != RowForm::Text {
        return Ok(task.metric_names().into_iter().chain([LOSS.to_owned()]).collect());
    }
    let labels = require_labels(loader.labels())?;
    let size = [labels.len() as i64, task.labels().len() as i64]; // [rows, n_labels]
    let values = Tensor::f_zeros(size, (Kind::Float, Device::Cpu))?;
    let prediction = model.head.predict(&Logits::new(values)).map_err(EvaluateError::Head)?;
    let named = model.head.metrics(&prediction, labels).map_err(EvaluateError::Head)?;
    Ok(named.into_iter().map(|(name, _)| name).chain([LOSS.to_owned()]).collect())
}

/// Name of the loss where it is used as a metric.
const LOSS: &str = "loss";

/// Ratio of the rows of the most frequent class to those of the rarest one at which classes count as imbalanced.
const IMBALANCED: u64 = 3;

const IMBALANCED_METRIC: &str = "f1_macro";

/// Name of the metric to show first: the first one of the task, or `f1_macro` if the classes of the training rows are
/// imbalanced and the task has it.
pub fn headline<'a>(evaluation: &'a Evaluation, class_rows: &[u64]) -> &'a str {
    let (most, least) = (class_rows.iter().max().copied(), class_rows.iter().min().copied());
    let is_imbalanced = most.unwrap_or(0) >= IMBALANCED * least.unwrap_or(0).max(1) && class_rows.len() > 1;
    if is_imbalanced && evaluation.record.metrics.contains_key(IMBALANCED_METRIC) {
        return IMBALANCED_METRIC;
    }
    &evaluation.headline
}

/// Selects the best evaluation.
#[derive(Debug, Clone)]
pub struct ModelSelector {
    metric: Option<String>,
    goal: Option<Goal>,
}

impl ModelSelector {
    /// Selects by the metric of `spec`, else by `default`, else by the first metric of the task.
    pub fn new(spec: &EvaluateSpec, default: Option<&str>) -> Self {
        Self { metric: spec.metric.clone().or_else(|| default.map(str::to_owned)), goal: spec.goal }
    }

    /// Name of the metric to show first: the selecting one if it was requested, else the [`headline`].
    pub fn headline<'a>(&'a self, evaluation: &'a Evaluation, class_rows: &[u64]) -> &'a str {
        self.metric.as_deref().unwrap_or_else(|| headline(evaluation, class_rows))
    }

    /// Value that evaluations are compared by.
    ///
    /// # Errors
    /// [`MetricError`] if the task has no such metric.
    pub fn value(&self, evaluation: &Evaluation) -> Result<BestEvaluation, MetricError> {
        let metric = self.metric.as_ref().unwrap_or(&evaluation.headline);
        let value = value_of(&evaluation.record, metric, MetricUsage::Selection)?;
        Ok(BestEvaluation { step: evaluation.record.step, metric: metric.clone(), value })
    }

    /// True if `new` is better than `old` by more than `min_delta`. NaN is never better.
    pub fn is_better(&self, new: &BestEvaluation, old: Option<&BestEvaluation>, min_delta: f64) -> bool {
        let Some(old) = old else { return true };
        if old.value.is_nan() {
            return !new.value.is_nan();
        }
        match self.goal.unwrap_or_else(|| goal_of(&new.metric)) {
            Goal::Max => new.value > old.value + min_delta,
            Goal::Min => new.value < old.value - min_delta,
        }
    }
}

/// Value of a metric or the loss.
pub(crate) fn value_of(record: &EvaluationRecord, metric: &str, usage: MetricUsage) -> Result<f64, MetricError> {
    let value = if metric == LOSS { Some(record.loss) } else { record.metrics.get(metric).copied() };
    value.ok_or_else(|| {
        let known = record.metrics.keys().cloned().chain([LOSS.to_owned()]).collect();
        MetricError { usage, metric: metric.to_owned(), known }
    })
}

/// Goal of a metric by its name; larger values of unknown metrics are better.
pub fn goal_of(metric: &str) -> Goal {
    match Metric::find(metric) {
        Ok(metric) if !metric.larger_is_better => Goal::Min,
        _ => Goal::Max,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(step: u64, loss: f64, accuracy: f64) -> Evaluation {
        let metrics = [("accuracy".to_owned(), accuracy), ("mse".to_owned(), loss)].into();
        let record = EvaluationRecord { step, loss, metrics, ..EvaluationRecord::default() };
        Evaluation { record, headline: "accuracy".to_owned(), prediction: Prediction::default() }
    }

    fn selector(metric: Option<&str>, default: Option<&str>, goal: Option<Goal>) -> ModelSelector {
        let spec = EvaluateSpec { metric: metric.map(str::to_owned), goal, ..EvaluateSpec::default() };
        ModelSelector::new(&spec, default)
    }

    fn check(selector: &ModelSelector, metric: &str, expected: bool) {
        let [old, new] = [evaluation(1, 0.5, 0.8), evaluation(2, 0.6, 0.9)]
            .map(|evaluation| selector.value(&evaluation).expect("a value"));
        assert_eq!((old.metric.as_str(), new.step), (metric, 2));
        assert_eq!(selector.is_better(&new, Some(&old), 0.0), expected);
        assert!(selector.is_better(&new, None, 0.0) && !selector.is_better(&new, Some(&old), 0.2));
        let nan = BestEvaluation { value: f64::NAN, ..new.clone() };
        assert!(!selector.is_better(&nan, Some(&old), 0.0) && selector.is_better(&new, Some(&nan), 0.0));
        assert!(!selector.is_better(&nan, Some(&nan), 0.0), "NaN is never better");
    }

    #[test]
    fn selection_follows_the_goal_of_the_metric() {
        check(&selector(None, None, None), "accuracy", true);
        check(&selector(None, Some("mse"), None), "mse", false);
        check(&selector(Some("loss"), Some("accuracy"), None), "loss", false);
        check(&selector(Some("loss"), None, Some(Goal::Max)), "loss", true);
    }

    #[test]
    fn headline_follows_class_balance_unless_a_metric_is_requested() {
        let mut evaluation = evaluation(1, 0.5, 0.8);
        let first = |selector: ModelSelector, evaluation: &Evaluation, rows: &[u64]| {
            selector.headline(evaluation, rows).to_owned()
        };
        assert_eq!(first(selector(None, None, None), &evaluation, &[1, 9]), "accuracy", "there is no other");
        evaluation.record.metrics.insert("f1_macro".to_owned(), 0.5);
        for (rows, expected) in [
            (&[10_u64, 29][..], "accuracy"),
            (&[10, 30], "f1_macro"),
            (&[0, 3, 5], "f1_macro"),
            (&[], "accuracy"),
            (&[7], "accuracy"),
        ] {
            assert_eq!(first(selector(None, None, None), &evaluation, rows), expected, "{rows:?}");
        }
        assert_eq!(first(selector(Some("loss"), None, None), &evaluation, &[1, 9]), "loss");
        assert_eq!(first(selector(None, Some("mse"), None), &evaluation, &[1, 9]), "mse");
    }

    #[test]
    fn selection_by_unknown_metric_is_refused() {
        let error = selector(Some("auroc"), None, None).value(&evaluation(1, 0.5, 0.8)).expect_err("there is none");
        let text = "find `auroc` among the metrics of the task: accuracy, mse, loss";
        assert_eq!(error.to_string(), text);
    }
}
