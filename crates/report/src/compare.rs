use std::collections::{BTreeMap, BTreeSet};

use sepal_track::{EvaluationRecord, StepRecord};

use crate::chart::{Chart, PERCENT, Series, Style, legend};
use crate::curve::{Point, SMOOTHED_FROM, half_life, smooth};
use crate::page::{Section, missing, multiples, page, paragraph, render};
use crate::parts::headline::{State, state};
use crate::read::Run;
use crate::table::{Cell, Table};
use crate::text;

use askama::Template;

/// Maximum number of runs with drawn curves; more could not be told apart.
const MAX_DRAWN_RUNS: usize = 24;
/// Maximum number of runs in a table.
const LISTED: usize = 100;
/// Maximum number of options in a table.
const OPTIONS: usize = 24;
/// Maximum number of metrics.
const METRICS: usize = 16;
/// Maximum number of runs with a column each; otherwise each has a row.
const MAX_COLUMNS: usize = 6;

#[derive(Template)]
#[template(path = "compare.html")]
struct Head {
    title: String,
    lead: String,
}

/// Returns the page that compares several runs as HTML.
pub fn compare(runs: &[Run]) -> String {
    let mut names: Vec<&str> = runs.iter().map(|run| run.manifest.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let title = text::counted(runs.len() as u64, "run", "runs");
    let shown: Vec<String> = names.iter().take(6).map(|name| text::cut(name, 40)).collect();
    let lead = format!("{}{}", shown.join(", "), if names.len() > 6 { " and others" } else { "" });
    let head = head(title.clone(), lead);
    let sections = [
        Section::new("runs", "Results", results(runs, &runs.iter().map(state).collect::<Vec<_>>())),
        Section::new("curves", "Curves", curves(runs)),
        Section::new("options", "Differences", options(runs)),
    ];
    page(&format!("{title} – Sepal"), &head, &sections, &format!("Made by Sepal {}.", env!("CARGO_PKG_VERSION")))
}

/// Head of a page of several runs.
pub(crate) fn head(title: String, lead: String) -> String {
    render(&Head { title, lead })
}

/// Table of the runs with the outcome of each.
pub(crate) fn results(runs: &[Run], outcomes: &[State]) -> Vec<String> {
    if runs.is_empty() {
        return vec![missing("There are no runs.")];
    }
    let metrics = metrics(runs);
    let mut head = vec!["Run".to_owned(), "Outcome".to_owned()];
    head.extend(metrics.iter().map(|name| text::metric_name(name)));
    head.extend(
        ["Kept", "Steps", "Time", "Tokens/s", "Blocks", "Sent to them", "Received", "Trained"].map(str::to_owned),
    );
    let mut table = Table::new("Metrics of the kept evaluation; the best of each is marked with ★", &head);
    table.head[1].class = "";
    let best: Vec<Option<f64>> = metrics.iter().map(|name| best(runs, name)).collect();
    let rows = runs.iter().zip(outcomes).take(LISTED);
    table.rows = rows.map(|(run, outcome)| row(run, outcome, &metrics, &best)).collect();
    let mut parts = vec![transposed_if_few(table, runs).html()];
    if runs.len() > LISTED {
        parts.push(paragraph(&format!("The first {LISTED} of {} runs are listed.", runs.len())));
    }
    let incomplete = runs.iter().filter(|run| !run.problems.is_empty()).take(20);
    let problems = |run: &Run| format!("{}: {}", text::cut(&run.id(), 80), text::cut(&run.problems.join("; "), 400));
    parts.extend(incomplete.map(|run| missing(&problems(run))));
    parts
}

/// Transposes the table for few runs, so that it fits the page.
fn transposed_if_few(table: Table, runs: &[Run]) -> Table {
    if runs.len() <= MAX_COLUMNS { table.transposed() } else { table }
}

/// Metrics of the runs in the order of `sepal-metrics`, those of custom heads after them. Metrics of single labels are
/// left to each run's own report, and copies of the accuracy are left out.
fn metrics(runs: &[Run]) -> Vec<&str> {
    let all = runs.iter().flat_map(values).flat_map(|values| values.keys().map(String::as_str));
    let all: BTreeSet<&str> = all.filter(|name| !name.contains('/') && *name != "loss").collect();
    let position = |name: &&str| sepal_metrics::names().position(|known| known == *name).unwrap_or(usize::MAX);
    let mut shown: Vec<&str> = all.into_iter().filter(|name| !is_copy_of_accuracy(runs, name)).collect();
    shown.sort_by_key(position);
    shown.truncate(METRICS);
    shown
}

/// Metrics of all evaluations and of the manifest.
fn values(run: &Run) -> impl Iterator<Item = &BTreeMap<String, f64>> {
    run.history.evaluations.iter().map(|one| &one.metrics).chain([&run.manifest.metrics])
}

/// Returns true for micro averages that equal the accuracy, as with one label per row.
fn is_copy_of_accuracy(runs: &[Run], name: &str) -> bool {
    let same = |values: &BTreeMap<String, f64>| match (values.get(name), values.get("accuracy")) {
        (Some(value), Some(accuracy)) => (value - accuracy).abs() < 1e-9,
        (value, _) => value.is_none(),
    };
    name.ends_with("_micro") && runs.iter().flat_map(values).all(same)
}

/// Best value of a metric, if the runs differ in it.
fn best(runs: &[Run], name: &str) -> Option<f64> {
    let values =
        runs.iter().filter_map(|run| run.manifest.metrics.get(name)).copied().filter(|value| value.is_finite());
    let values: Vec<f64> = values.collect();
    let better = if text::less_is_better(name) { f64::min } else { f64::max };
    let best = values.iter().copied().reduce(better)?;
    values.iter().any(|value| *value != best).then_some(best)
}

fn row(run: &Run, outcome: &State, metrics: &[&str], best: &[Option<f64>]) -> Vec<Cell> {
    let manifest = &run.manifest;
    let mut cells = vec![
        Cell::cut(&run.id(), 60),
        Cell { class: outcome.class, ..Cell::words(format!("{} {}", outcome.sign, outcome.word)) },
    ];
    cells.extend(metrics.iter().zip(best).map(|(name, best)| {
        let value = manifest.metrics.get(*name).copied();
        let shown = text::or_missing(value, |value| text::metric(name, value));
        match value.is_some() && value == *best {
            true => Cell { class: "n best", ..Cell::number(format!("★ {shown}")) },
            false => Cell::number(shown),
        }
    }));
    let best = manifest
        .best
        .as_ref()
        .map(|best| format!("{} at {}", text::metric(&best.metric, best.value), text::count(best.step)));
    let speed = (manifest.train_seconds > 0.0).then(|| manifest.train_tokens as f64 / manifest.train_seconds);
    cells.extend(
        [
            best.unwrap_or_else(|| text::MISSING.to_owned()),
            text::count(manifest.steps),
            text::seconds(manifest.seconds),
            text::or_missing(speed, |speed| text::digits(speed, 3)),
            blocks(run),
            text::bytes(manifest.bytes.sent),
            text::bytes(manifest.bytes.received),
            text::count(manifest.parameters.trainable),
        ]
        .map(Cell::number),
    );
    cells
}

fn blocks(run: &Run) -> String {
    match run.manifest.servers.len() {
        0 => text::MISSING.to_owned(),
        _ if run.is_in_process() => "in its process".to_owned(),
        some => format!("on {}", text::counted(some as u64, "server", "servers")),
    }
}

pub(crate) fn options(runs: &[Run]) -> Vec<String> {
    let keys = differing(runs);
    if runs.len() < 2 || keys.is_empty() {
        return vec![paragraph("All options are the same.")];
    }
    let shown: Vec<&Run> = runs.iter().take(LISTED).collect();
    let head: Vec<String> =
        std::iter::once("Run".to_owned()).chain(keys.iter().take(OPTIONS).map(|key| text::cut(key, 60))).collect();
    let mut table = Table::new("Options in which the runs differ", &head);
    let value = |run: &Run, key: &str| {
        Cell::words(option(run, key).map_or_else(|| text::MISSING.to_owned(), |value| text::cut(value, 40)))
    };
    let cells = |run: &&Run| {
        let values = keys.iter().take(OPTIONS).map(|key| value(run, key));
        std::iter::once(Cell::cut(&run.id(), 60)).chain(values).collect()
    };
    table.head.iter_mut().for_each(|cell| cell.class = "");
    table.rows = shown.iter().map(cells).collect();
    let mut parts = vec![transposed_if_few(table, runs).html()];
    if keys.len() > OPTIONS {
        parts.push(paragraph(&format!("The first {OPTIONS} of {} are shown.", keys.len())));
    }
    parts
}

/// Value of a key, or of the nearest outer key: `evaluate.every.steps` is none where `evaluate.every` is none.
fn option<'a>(run: &'a Run, key: &str) -> Option<&'a str> {
    let outer = std::iter::successors(Some(key), |key| key.rsplit_once('.').map(|(outer, _)| outer));
    outer.filter_map(|key| run.options.get(key)).next()
}

/// Keys with different values, in the files' order; for a map that some runs lack, its inner keys.
fn differing(runs: &[Run]) -> Vec<String> {
    let mut keys = Vec::new();
    let mut seen = BTreeSet::new();
    for (key, _) in runs.iter().flat_map(|run| run.options.flat()) {
        if seen.insert(key) && runs.iter().any(|run| run.options.get(key) != runs[0].options.get(key)) {
            keys.push(key.clone());
        }
    }
    let is_map =
        |key: &String| keys.iter().any(|inner| inner.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')));
    keys.iter().filter(|key| !is_map(key)).cloned().collect()
}

/// Charts of all metrics, with common colours and one legend.
pub(crate) fn curves(runs: &[Run]) -> Vec<String> {
    let mut parts = Vec::new();
    let drawn = &runs[..runs.len().min(MAX_DRAWN_RUNS)];
    if drawn.len() < runs.len() {
        parts.push(paragraph(&format!("The curves of the first {MAX_DRAWN_RUNS} runs.")));
    }
    let mut charts = vec![
        Chart { from_zero: true, ..training(drawn, "loss", "Training loss", |step| step.loss) },
        percent(training(drawn, "accuracy", "Training accuracy", |step| step.accuracy.map_or(f64::NAN, |a| a * 100.0))),
        validation(drawn, "eval-loss".to_owned(), "Loss", &|one| one.loss),
    ];
    for (i, metric) in metrics(drawn).into_iter().enumerate() {
        let is_share = metric.ends_with("accuracy");
        let scale = if is_share { 100.0 } else { 1.0 };
        let value = |one: &EvaluationRecord| scale * one.metrics.get(metric).copied().unwrap_or(f64::NAN);
        let chart = validation(drawn, format!("eval-{i}"), &text::metric_name(metric), &value);
        charts.push(if is_share { percent(chart) } else { chart });
    }
    let limit = (4000 / drawn.len().max(1)).clamp(150, 1000);
    charts.iter_mut().for_each(|chart| (chart.limit, chart.legend) = (limit, false));
    let html = multiples(charts.iter().map(Chart::html));
    if html.is_empty() {
        parts.push(missing("No run has recorded a step."));
    } else {
        parts.extend([legend(&lines(drawn, Style::Line, |_| Vec::new())), html]);
    }
    parts
}

/// Line for each run in its colour.
fn lines(runs: &[Run], style: Style, points: impl Fn(&Run) -> Vec<Point>) -> Vec<Series> {
    let line = |(i, run): (usize, &Run)| Series::new(style, text::cut(&run.id(), 48), points(run)).coloured(i);
    runs.iter().enumerate().map(line).collect()
}

fn percent(chart: Chart) -> Chart {
    Chart { unit: PERCENT, title: format!("{}, %", chart.title), ..chart }
}

fn training(runs: &[Run], id: &str, title: &str, value: fn(&StepRecord) -> f64) -> Chart {
    let raw =
        runs.iter().filter(|run| !run.history.steps.is_empty() && run.history.steps.len() < SMOOTHED_FROM).count();
    let note = match raw {
        0 => "smoothed".to_owned(),
        raw if raw == runs.len() => String::new(),
        _ => format!("smoothed from {SMOOTHED_FROM} steps on, shorter runs as they are"),
    };
    Chart { note, from_zero: false, ..Chart::new(id, title, lines(runs, Style::Line, |run| smoothed(run, value))) }
}

fn validation(runs: &[Run], id: String, title: &str, value: &dyn Fn(&EvaluationRecord) -> f64) -> Chart {
    let points = |run: &Run| run.history.evaluations.iter().map(|one| (one.step as f64, value(one))).collect();
    let series = lines(runs, Style::Dots, points);
    Chart { note: "validation".to_owned(), from_zero: false, ..Chart::new(id, title, series) }
}

fn smoothed(run: &Run, value: fn(&StepRecord) -> f64) -> Vec<Point> {
    let points: Vec<Point> = run.history.steps.iter().map(|step| (step.step as f64, value(step))).collect();
    if points.len() < SMOOTHED_FROM { points } else { smooth(&points, half_life(points.len())) }
}
