//! Predictions of trained runs.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use pyo3::prelude::*;
use sepal_core::LabelKind;
use sepal_data::{EncodedRow, RowTexts};
use sepal_pipeline::Observer;
use sepal_plugin::Prediction;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::pipeline_text::load;
use crate::worker::{SecondInterrupt, Worker};

/// Classifier of a run.
#[pyclass(frozen, module = "sepal._sepal")]
pub(crate) struct Classifier {
    worker: Worker<sepal_pipeline::Classifier>,
    facts: String,
}

#[pymethods]
impl Classifier {
    /// Loads the adapter of the run folder `run` and its model.
    #[new]
    #[pyo3(signature = (run, sets, progress))]
    fn new(py: Python<'_>, run: PathBuf, sets: Vec<String>, progress: Option<Bound<'_, PyAny>>) -> PyResult<Self> {
        let (worker, facts) = Worker::start(py, progress.as_ref(), SecondInterrupt::Leave, move |observer, stop| {
            open(&run, sets, observer, stop)
        })?;
        Ok(Self { worker, facts })
    }

    /// Name, labels and kind as JSON.
    #[getter]
    fn facts(&self) -> &str {
        &self.facts
    }

    /// Returns one answer for each text as JSON: the label, or the labels, and the scores.
    #[pyo3(signature = (texts, pairs, options))]
    fn predict(
        &self,
        py: Python<'_>,
        texts: Vec<String>,
        pairs: Option<Vec<String>>,
        options: Option<Vec<Vec<String>>>,
    ) -> PyResult<String> {
        self.worker.call(py, move |classifier| {
            let answers = predict(classifier, &texts, pairs.as_deref(), options.as_deref())?;
            Ok(Value::Array(answers).to_string())
        })
    }

    /// Frees the model.
    fn close(&self, py: Python<'_>) {
        self.worker.close(py);
    }
}

fn open(
    run: &Path,
    sets: Vec<String>,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<(sepal_pipeline::Classifier, String), Failure> {
    let path = run.join("pipeline.yaml");
    let text = std::fs::read_to_string(&path)
        .map_err(|error| format!("open the run {}: pipeline.yaml cannot be read ({error})", run.display()))?;
    let registry = sepal_cli::plugins()?;
    let spec = load(&registry, &path.display().to_string(), &text, sets)?.spec;
    let classifier = sepal_pipeline::Classifier::open(&spec, run, &registry, observer, stop)?;
    let facts = json!({
        "name": classifier.manifest().name,
        "labels": classifier.label_names(),
        "kind": kind_name(classifier.task().kind()),
        "takes_pairs": classifier.takes_pairs(),
    });
    Ok((classifier, facts.to_string()))
}

fn predict(
    classifier: &sepal_pipeline::Classifier,
    texts: &[String],
    pairs: Option<&[String]>,
    options: Option<&[Vec<String>]>,
) -> Result<Vec<Value>, Failure> {
    let (first, second) = (borrowed(texts), pairs.map(borrowed));
    let session = classifier.session()?;
    let rows = session.encode(RowTexts { texts: &first, pairs: second.as_deref(), options, ..RowTexts::default() })?;
    if let Some(row) = rows.iter().position(|row| !EncodedRow::has_tokens(row)) {
        return Err(format!("predict text {row} (counted from 0): it yields no token").into());
    }
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let prediction = session.classify(&rows)?;
    Ok(answers(&prediction, classifier.task().kind(), classifier.label_names()))
}

fn borrowed(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

/// Answers of the rows: `label`, and `scores` by label, of the options, or of the words.
fn answers(prediction: &Prediction, kind: LabelKind, labels: &[String]) -> Vec<Value> {
    let name = |index: &i64| usize::try_from(*index).ok().and_then(|index| labels.get(index));
    let scores = |row: &[f32]| {
        let scores = labels.iter().zip(row).map(|(label, &score)| (label.clone(), json!(score)));
        Value::Object(scores.collect())
    };
    let class = |row: usize| prediction.class.get(row);
    let items = |row: usize| prediction.items.get(row).map_or(&[][..], Vec::as_slice);
    let answer = |(row, probabilities): (usize, &Vec<f32>)| match kind {
        LabelKind::Class => json!({ "label": class(row).and_then(name), "scores": scores(probabilities) }),
        LabelKind::Multi => {
            let decided = labels.iter().zip(prediction.label_decisions(probabilities));
            let names: Vec<&String> = decided.filter(|(_, is_label)| *is_label).map(|(label, _)| label).collect();
            json!({ "label": names, "scores": scores(probabilities) })
        }
        LabelKind::Value => {
            let value = prediction.logits.get(row).and_then(|logits| logits.first());
            json!({ "label": value, "scores": {} })
        }
        LabelKind::Choice => json!({ "label": class(row), "scores": probabilities }),
        LabelKind::Tags => {
            let tags: Vec<Option<&String>> = items(row).iter().map(name).collect();
            json!({ "label": tags, "scores": probabilities })
        }
        LabelKind::Text => json!({ "label": items(row), "scores": probabilities }),
    };
    prediction.probabilities.iter().enumerate().map(answer).collect()
}

fn kind_name(kind: LabelKind) -> &'static str {
    match kind {
        LabelKind::Class => "class",
        LabelKind::Multi => "labels",
        LabelKind::Value => "value",
        LabelKind::Choice => "choice",
        LabelKind::Tags => "tags",
        LabelKind::Text => "text",
    }
}
