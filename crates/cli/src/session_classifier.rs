//! Classifier of a run behind a gateway.

use std::ops::Range;

use sepal_data::{EncodedRow, RowTexts};
use sepal_gateway::{Answer, AnswerKind, ClassifierInfo, Classify, ClassifyError, InvalidRow, RowProblem};
use sepal_pipeline::{Classifier, Session};
use sepal_plugin::Prediction;
use sepal_track::Manifest;

use crate::output::Failure;
use crate::units::grouped;

pub(crate) struct SessionClassifier<'a> {
    pub(crate) session: Session<'a>,
    pub(crate) kind: AnswerKind,
    pub(crate) is_remote: bool,
}

impl Classify for SessionClassifier<'_> {
    fn classify(&mut self, texts: &[&str], pairs: Option<&[&str]>) -> Result<Vec<Answer>, ClassifyError> {
        let tokens = self.encode(texts, pairs)?;
        match self.session.classify(&tokens) {
            Ok(prediction) => Ok(answers(prediction, self.kind, texts)),
            Err(error) if error.is_unreachable() => Err(ClassifyError::Unavailable(error.into())),
            Err(error) => Err(ClassifyError::Failed(error.into())),
        }
    }

    fn check(&mut self, texts: &[&str], pairs: Option<&[&str]>) -> Result<(), ClassifyError> {
        self.encode(texts, pairs).map(drop)
    }

    fn uses_remote_servers(&self) -> bool {
        self.is_remote
    }
}

impl SessionClassifier<'_> {
    fn encode(&self, texts: &[&str], pairs: Option<&[&str]>) -> Result<Vec<EncodedRow>, ClassifyError> {
        let encode = |rows: Range<usize>| {
            let pairs = pairs.map(|pairs| &pairs[rows.clone()]);
            self.session.encode(RowTexts { texts: &texts[rows], pairs, ..RowTexts::default() })
        };
        let invalid: Vec<InvalidRow> = match encode(0..texts.len()) {
            Ok(rows) => {
                let problems = rows.iter().map(|row| (!row.has_tokens()).then_some(RowProblem::NoToken));
                let invalid: Vec<InvalidRow> = with_indices(problems).collect();
                if invalid.is_empty() {
                    return Ok(rows);
                }
                invalid
            }
            Err(error) if error.too_many_windows().is_none() => return Err(ClassifyError::Failed(error.into())),
            // The error is that of the first row. Each row alone shows all of them.
            Err(_) => with_indices((0..texts.len()).map(|row| match encode(row..row + 1) {
                Ok(rows) => (!rows.iter().all(EncodedRow::has_tokens)).then_some(RowProblem::NoToken),
                Err(error) => {
                    let windows = error.too_many_windows();
                    windows.map(|[n_windows, max_windows]| RowProblem::TooLong { n_windows, max_windows })
                }
            }))
            .collect(),
        };
        Err(ClassifyError::InvalidRows(invalid))
    }
}

/// Rows that have a problem.
fn with_indices(problems: impl Iterator<Item = Option<RowProblem>>) -> impl Iterator<Item = InvalidRow> {
    problems.enumerate().filter_map(|(row, problem)| Some(InvalidRow { row, problem: problem? }))
}

fn answers(prediction: Prediction, kind: AnswerKind, texts: &[&str]) -> Vec<Answer> {
    let Prediction { class, probabilities, logits, items, .. } = prediction;
    // The gateway refuses an index out of range.
    let index = |class: i64| usize::try_from(class).unwrap_or(usize::MAX);
    match kind {
        AnswerKind::Class => {
            let rows = class.into_iter().map(index).zip(probabilities);
            rows.map(|(class, probabilities)| Answer::Class { class, probabilities }).collect()
        }
        AnswerKind::Labels => probabilities.into_iter().map(|probabilities| Answer::Labels { probabilities }).collect(),
        AnswerKind::Value => {
            logits.into_iter().map(|row| Answer::Value(row.first().copied().unwrap_or(f32::NAN))).collect()
        }
        AnswerKind::Tags => {
            let rows = texts.iter().zip(items).zip(probabilities);
            rows.map(|((text, tags), probabilities)| {
                let words = text.split_whitespace().map(str::to_owned).collect();
                Answer::Tags { words, tags: tags.into_iter().map(index).collect(), probabilities }
            })
            .collect()
        }
    }
}

/// Description of a classifier for its clients.
pub(crate) fn info(classifier: &Classifier) -> Result<ClassifierInfo, Failure> {
    let task = classifier.task();
    let Some(kind) = AnswerKind::of_task(task) else {
        return Err(format!(
            "serve a task of this kind ({}): requests are texts or pairs of texts; use `sepal predict` or `sepal evaluate`",
            task.kind()
        )
        .into());
    };
    let manifest = classifier.manifest();
    Ok(ClassifierInfo {
        takes_pairs: classifier.takes_pairs(),
        thresholds: classifier.label_thresholds().to_vec(),
        facts: facts(manifest),
        ..ClassifierInfo::new(manifest.name.clone(), kind, task.labels())
    })
}

fn facts(manifest: &Manifest) -> Vec<(String, String)> {
    let metrics: Vec<String> = manifest.metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
    let parameters = manifest.parameters;
    let share = 100.0 * parameters.trainable as f64 / parameters.total.max(1) as f64;
    // Paths of this machine are not public.
    let is_public = ["hub:", "pypi:"].iter().any(|kind| manifest.model.source.starts_with(kind));
    let source = if is_public { format!("{}: ", manifest.model.source) } else { String::new() };
    let model = format!("{source}{}", manifest.model.weights);
    let mut facts = vec![
        ("model", model),
        ("trained", format!("{} ({} steps)", manifest.started, manifest.steps)),
        ("trainable", format!("{} numbers, {share:.3} % of all", grouped(parameters.trainable))),
        ("training rows", grouped(manifest.data.train_rows as u64)),
    ];
    if !metrics.is_empty() {
        let rows = grouped(manifest.data.validation_rows as u64);
        facts.push(("measured", format!("on {rows} validation rows: {}", metrics.join(", "))));
    }
    if let Some(calibration) = &manifest.calibration {
        let rows = grouped(calibration.rows as u64);
        facts.push(("calibrated", format!("on {rows} rows: {}", calibration.description())));
    }
    facts.push(("adapter", manifest.adapter_digest.clone()));
    facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
