//! Predicting validation rows, and which evaluation is best.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use sepal_core::NamedHostTensor;
use sepal_data::Loader;
use sepal_metrics::Metric;
use sepal_plugin::{Logits, Phase, Prediction};
use sepal_track::{Best, EvaluationRecord};
use tch::{Device, Kind, Tensor};

use crate::data::require_labels;
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

/// Rows that are to be predicted, and how they are called in errors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Split<'a> {
    pub(crate) loader: &'a Loader,
    /// `validation` or `labelled`.
    pub(crate) name: &'static str,
}

/// Predicts all rows of the split, in their order. `stop` is looked at between batches.
///
/// # Errors
/// [`RunError::Interrupted`] if `stop` is set, [`RunError::NonFiniteLogits`] if a prediction is NaN or infinite.
pub(crate) fn evaluate(
    model: &Model,
    Split { loader, name }: Split<'_>,
    steps: u64,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Evaluated, RunError> {
    let started = Instant::now();
    let traffic = model.blocks.traffic();
    let (up, down) = (traffic.up(), traffic.down());
    let mut prediction = Prediction::default();
    let (mut loss, mut tokens) = (0.0, 0);
    tch::no_grad(|| {
        let tuned = model.blocks.tune(model.tunables()?)?;
        for batch in loader.epoch(0) {
            if stop.load(Ordering::Relaxed) {
                return Err(RunError::Interrupted);
            }
            let logits = model.forward(&tuned, &batch.ids, &batch.rows, Phase::Evaluate);
            let logits = logits.map_err(|error| error.of_rows(name, &batch.indices))?;
            let mean = model.head.loss(&logits, require_labels(batch.labels.as_ref())?).map_err(RunError::Head)?;
            loss += f64::try_from(&mean).map_err(RunError::Torch)? * batch.rows.len() as f64;
            tokens += batch.rows.n_tokens();
            prediction.append(model.head.predict(&logits).map_err(RunError::Head)?);
            observer.event(Event::Evaluating { done: prediction.rows(), total: loader.rows() });
        }
        Ok::<(), RunError>(())
    })?;
    let named = model.head.metrics(&prediction, require_labels(loader.labels())?).map_err(RunError::Head)?;
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

/// The metrics that evaluations of these rows will have: those of a prediction that knows nothing.
pub(crate) fn metric_names(model: &Model, loader: &Loader) -> Result<Vec<String>, RunError> {
    let labels = require_labels(loader.labels())?;
    let size = [labels.len() as i64, model.head.label_names().len() as i64]; // [rows, n_labels]
    let values = Tensor::f_zeros(size, (Kind::Float, Device::Cpu)).map_err(RunError::Torch)?;
    let prediction = model.head.predict(&Logits { values }).map_err(RunError::Head)?;
    let named = model.head.metrics(&prediction, labels).map_err(RunError::Head)?;
    Ok(named.into_iter().map(|(name, _)| name).chain([LOSS.to_owned()]).collect())
}

/// The loss under the name by which it can be the metric that decides.
const LOSS: &str = "loss";

/// Ratio of the rows of the most frequent class to those of the rarest from which on accuracy says little.
const UNEVEN: u64 = 3;

/// The metric that says most of predictions where classes are uneven.
const OF_UNEVEN_CLASSES: &str = "f1_macro";

/// The metric to show first: the task's first one, or [`OF_UNEVEN_CLASSES`] if the training rows of the classes are that
/// many and the task has it.
pub(crate) fn shown_first<'a>(evaluated: &'a Evaluated, class_rows: &[u64]) -> &'a str {
    let (most, least) = (class_rows.iter().max().copied(), class_rows.iter().min().copied());
    let is_uneven = most.unwrap_or(0) >= UNEVEN * least.unwrap_or(0).max(1) && class_rows.len() > 1;
    if is_uneven && evaluated.record.metrics.contains_key(OF_UNEVEN_CLASSES) {
        return OF_UNEVEN_CLASSES;
    }
    &evaluated.headline
}

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

    /// The metric to show first: what was asked for, or else what says most of these classes.
    pub(crate) fn shown_first<'a>(&'a self, evaluated: &'a Evaluated, class_rows: &[u64]) -> &'a str {
        self.metric.as_deref().unwrap_or_else(|| shown_first(evaluated, class_rows))
    }

    /// The value that decides.
    ///
    /// # Errors
    /// [`RunError::Metric`] if the task has no such metric.
    pub(crate) fn value(&self, evaluated: &Evaluated) -> Result<Best, RunError> {
        let metric = self.metric.as_ref().unwrap_or(&evaluated.headline);
        let value = value_of(&evaluated.record, metric, "evaluate.metric")?;
        Ok(Best { step: evaluated.record.step, metric: metric.clone(), value })
    }

    /// Whether `new` is better than `old` by more than `min_delta`; what is not a number never is.
    pub(crate) fn is_better(&self, new: &Best, old: Option<&Best>, min_delta: f64) -> bool {
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

/// What an evaluation gave for the metric that `key` of the pipeline names.
///
/// # Errors
/// [`RunError::Metric`] if the task has no such metric.
pub(crate) fn value_of(record: &EvaluationRecord, metric: &str, key: &'static str) -> Result<f64, RunError> {
    let value = if metric == LOSS { Some(record.loss) } else { record.metrics.get(metric).copied() };
    value.ok_or_else(|| {
        let known = record.metrics.keys().cloned().chain([LOSS.to_owned()]).collect();
        RunError::Metric { key, metric: metric.to_owned(), known }
    })
}

/// Of a metric by its name; larger values are taken for better where it is a head's own.
fn goal_of(metric: &str) -> Goal {
    match Metric::find(metric) {
        Ok(metric) if !metric.larger_is_better => Goal::Min,
        _ => Goal::Max,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluated(step: u64, loss: f64, accuracy: f64) -> Evaluated {
        let metrics = [("accuracy".to_owned(), accuracy), ("mse".to_owned(), loss)].into();
        let record = EvaluationRecord { step, loss, metrics, ..EvaluationRecord::default() };
        Evaluated { record, headline: "accuracy".to_owned(), prediction: Prediction::default() }
    }

    fn judge(metric: Option<&str>, usual: Option<&str>, goal: Option<Goal>) -> Judge {
        let spec = EvaluateSpec { metric: metric.map(str::to_owned), goal, ..EvaluateSpec::default() };
        Judge::new(&spec, usual)
    }

    fn check(judge: &Judge, metric: &str, expected: bool) {
        let [old, new] = [evaluated(1, 0.5, 0.8), evaluated(2, 0.6, 0.9)].map(|e| judge.value(&e).expect("a value"));
        assert_eq!((old.metric.as_str(), new.step), (metric, 2));
        assert_eq!(judge.is_better(&new, Some(&old), 0.0), expected);
        assert!(judge.is_better(&new, None, 0.0) && !judge.is_better(&new, Some(&old), 0.2));
        let nan = Best { value: f64::NAN, ..new.clone() };
        assert!(!judge.is_better(&nan, Some(&old), 0.0) && judge.is_better(&new, Some(&nan), 0.0));
        assert!(!judge.is_better(&nan, Some(&nan), 0.0), "nothing gets better by not being a number");
    }

    #[test]
    fn the_metric_says_what_is_better() {
        check(&judge(None, None, None), "accuracy", true);
        check(&judge(None, Some("mse"), None), "mse", false);
        check(&judge(Some("loss"), Some("accuracy"), None), "loss", false);
        check(&judge(Some("loss"), None, Some(Goal::Max)), "loss", true);
    }

    #[test]
    fn metric_shown_first_follows_the_classes_unless_one_is_asked_for() {
        let mut evaluated = evaluated(1, 0.5, 0.8);
        let first = |judge: Judge, evaluated: &Evaluated, rows: &[u64]| judge.shown_first(evaluated, rows).to_owned();
        assert_eq!(first(judge(None, None, None), &evaluated, &[1, 9]), "accuracy", "there is no other");
        evaluated.record.metrics.insert("f1_macro".to_owned(), 0.5);
        for (rows, expected) in [
            (&[10_u64, 29][..], "accuracy"),
            (&[10, 30], "f1_macro"),
            (&[0, 3, 5], "f1_macro"),
            (&[], "accuracy"),
            (&[7], "accuracy"),
        ] {
            assert_eq!(first(judge(None, None, None), &evaluated, rows), expected, "{rows:?}");
        }
        assert_eq!(first(judge(Some("loss"), None, None), &evaluated, &[1, 9]), "loss");
        assert_eq!(first(judge(None, Some("mse"), None), &evaluated, &[1, 9]), "mse");
    }

    #[test]
    fn a_metric_that_the_task_does_not_have_is_refused() {
        let error = judge(Some("auroc"), None, None).value(&evaluated(1, 0.5, 0.8)).expect_err("there is none");
        let text = "find `auroc` (`evaluate.metric`) among the metrics of the task: accuracy, mse, loss";
        assert_eq!(error.to_string(), text);
    }
}
