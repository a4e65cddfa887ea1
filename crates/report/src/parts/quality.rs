use sepal_data::Outcomes;
use sepal_track::{Calibration, EvaluationRecord};

use super::{calibration, class_predictions, classes, items, values};
use crate::page::{Section, folded, missing, paragraph};
use crate::read::Run;
use crate::table::{Cell, Table};
use crate::text;

/// Section with metrics, scores and calibration.
pub(crate) fn section(run: &Run) -> Option<Section> {
    let mut parts = metrics(run);
    parts.extend(run.manifest.calibration.as_ref().map(fit));
    match &run.predictions {
        None => parts.push(missing(
            "There is no predictions.parquet, so nothing is said of single labels, mistakes and calibration.",
        )),
        Some(predictions) => {
            let rows = text::counted(predictions.len() as u64, "row", "rows");
            parts.push(paragraph(&format!("What follows is computed from the {rows} of predictions.parquet.")));
            match &predictions.outcomes {
                Outcomes::Class { label, predicted } => {
                    let classes = class_predictions::Classes::new(&run.manifest.labels, predictions, label, predicted);
                    parts.extend(classes::html(&classes));
                    parts.push(calibration::class_html(&classes));
                }
                Outcomes::Value { label, predicted } => parts.extend(values::html(label, predicted)),
                Outcomes::Multi { label, predicted } => {
                    let names = class_predictions::names(&run.manifest.labels, label.first().map_or(0, Vec::len));
                    parts.push(classes::labels_html(&names, label, predicted));
                    parts.push(calibration::label_html(label, &predictions.probabilities));
                }
                Outcomes::Choice { label, predicted, options } => {
                    parts.extend(items::choice_html(label, predicted, options));
                }
                Outcomes::Tags { label, predicted } => parts.extend(items::tags_html(label, predicted)),
                Outcomes::Text { label, predicted } => {
                    parts.extend(items::answers_html(&predictions.logits, label, predicted));
                }
            }
        }
    }
    Some(Section::new("quality", "Quality", parts))
}

fn metrics(run: &Run) -> Vec<String> {
    let evaluations = &run.history.evaluations;
    if evaluations.is_empty() && run.manifest.metrics.is_empty() {
        return vec![missing("Nothing was evaluated.")];
    }
    let Some(last) = evaluations.last() else {
        let mut table = Table::new("Metrics of the last evaluation", &["Metric", "Value"]);
        let row = |(name, value): (&String, &f64)| {
            vec![Cell::words(text::metric_name(name)), Cell::number(text::metric(name, *value))]
        };
        table.rows = run.manifest.metrics.iter().map(row).collect();
        return vec![table.html()];
    };
    let several = evaluations.len() > 1;
    let head: &[&str] = if several { &["Metric", "First", "Best", "at step", "Last"] } else { &["Metric", "Value"] };
    let best = run.manifest.best.as_ref().map(|best| {
        format!(", kept the parameters after step {} by {}", text::count(best.step), text::metric_name(&best.metric))
    });
    let times = text::counted(evaluations.len() as u64, "evaluation", "evaluations");
    let rows = text::counted(last.rows as u64, "validation row", "validation rows");
    let last_one = if several { "the last " } else { "" };
    let step = text::count(last.step);
    let caption = format!("{times} of {rows}, {last_one}after step {step}{}", best.unwrap_or_default());
    let mut table = Table::new(caption, head);
    let names = std::iter::once("loss").chain(last.metrics.keys().map(String::as_str).take(60));
    table.rows = names.map(|name| row(evaluations, name)).collect();
    let mut parts = vec![table.html()];
    if several {
        parts.push(folded("All evaluations", &all(evaluations)));
    }
    parts
}

/// Table of the fit of probabilities and decisions.
fn fit(calibration: &Calibration) -> String {
    let rows = text::counted(calibration.rows as u64, "row", "rows");
    let caption = format!("Calibrated on {rows} of {}: {}", calibration.data, calibration.description());
    let mut table = Table::new(caption, &["Metric", "Before", "After"]);
    let row = |(name, before): (&String, &f64)| {
        let after = text::or_missing(calibration.after.get(name).copied(), |value| text::metric(name, value));
        let numbers = [text::metric(name, *before), after].map(Cell::number);
        std::iter::once(Cell::words(text::metric_name(name))).chain(numbers).collect()
    };
    table.rows = calibration.before.iter().map(row).collect();
    table.html()
}

fn value(evaluation: &EvaluationRecord, name: &str) -> f64 {
    if name == "loss" { evaluation.loss } else { evaluation.metrics.get(name).copied().unwrap_or(f64::NAN) }
}

/// Evaluation with the best value of a metric.
pub(crate) fn best<'a>(evaluations: &'a [EvaluationRecord], name: &str) -> Option<(&'a EvaluationRecord, f64)> {
    let sign = if text::less_is_better(name) { -1.0 } else { 1.0 };
    let known = evaluations.iter().map(|one| (one, value(one, name))).filter(|(_, value)| value.is_finite());
    // Equal values keep the first.
    known.reduce(|best, one| if sign * one.1 > sign * best.1 { one } else { best })
}

fn row(evaluations: &[EvaluationRecord], name: &str) -> Vec<Cell> {
    let show = |evaluation: Option<&EvaluationRecord>| {
        Cell::number(text::or_missing(evaluation.map(|one| value(one, name)), |value| text::metric(name, value)))
    };
    let title = Cell::words(text::metric_name(name));
    if evaluations.len() == 1 {
        return vec![title, show(evaluations.first())];
    }
    let best = best(evaluations, name).map(|(one, _)| one);
    let step = best.map_or(text::MISSING.to_owned(), |one| text::count(one.step));
    let best = Cell { class: "n best", ..show(best) };
    vec![title, show(evaluations.first()), best, Cell::number(step), show(evaluations.last())]
}

/// Maximum number of listed evaluations; longer lists are sampled.
const LISTED: usize = 100;

fn all(evaluations: &[EvaluationRecord]) -> String {
    let names: Vec<&str> = std::iter::once("loss")
        .chain(evaluations.last().into_iter().flat_map(|last| last.metrics.keys().map(String::as_str)).take(12))
        .collect();
    let every = evaluations.len().div_ceil(LISTED);
    let caption = if every > 1 { format!("One of every {every} evaluations") } else { "Each evaluation".to_owned() };
    let head: Vec<String> = std::iter::once("Step".to_owned())
        .chain(names.iter().map(|name| text::metric_name(name)))
        .chain(["Time".to_owned()])
        .collect();
    let mut table = Table::new(caption, &head);
    let cells = |one: &EvaluationRecord| {
        let show = |name: &&str| text::or_missing(Some(value(one, name)), |value| text::metric(name, value));
        let measures = names.iter().map(show).chain([text::seconds(one.seconds)]).map(Cell::number);
        std::iter::once(Cell::words(text::count(one.step))).chain(measures).collect()
    };
    table.rows = evaluations.iter().rev().step_by(every).map(cells).collect();
    table.rows.reverse();
    table.html()
}
