use std::collections::BTreeSet;

use sepal_track::EvaluationRecord;

use crate::chart::{Chart, Series};
use crate::curve::{Point, SMOOTHED_FROM, half_life, smooth};
use crate::page::{Section, missing, page, paragraph, render, side_by_side};
use crate::parts::headline::state;
use crate::read::Run;
use crate::table::{Cell, Table};
use crate::text;

use askama::Template;

/// Runs whose curves are drawn at most; more could not be told apart.
const DRAWN: usize = 24;
/// Runs that a table lists at most.
const LISTED: usize = 100;
/// Options that a table shows at most.
const OPTIONS: usize = 24;

#[derive(Template)]
#[template(path = "compare.html")]
struct Head {
    title: String,
    lead: String,
}

/// The page of several runs beside each other.
pub fn compare(runs: &[Run]) -> String {
    let mut names: Vec<&str> = runs.iter().map(|run| run.manifest.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let title = text::counted(runs.len() as u64, "run", "runs");
    let of: Vec<String> = names.iter().take(6).map(|name| text::cut(name, 40)).collect();
    let lead = format!("{}{}", of.join(", "), if names.len() > 6 { " and others" } else { "" });
    let head = render(&Head { title: title.clone(), lead });
    let sections = [
        Section::new("runs", "Results", results(runs)),
        Section::new("curves", "Curves", curves(runs)),
        Section::new("options", "Differences", options(runs)),
    ];
    page(&format!("{title} – Sepal"), &head, &sections, &format!("Made by Sepal {}.", env!("CARGO_PKG_VERSION")))
}

/// The table of runs.
fn results(runs: &[Run]) -> Vec<String> {
    if runs.is_empty() {
        return vec![missing("There are no runs.")];
    }
    let metrics: BTreeSet<&str> = runs.iter().flat_map(|run| run.manifest.metrics.keys().map(String::as_str)).collect();
    let metrics: Vec<&str> = metrics.into_iter().take(12).collect();
    let mut head = vec!["Run".to_owned(), "Outcome".to_owned()];
    head.extend(metrics.iter().map(|name| text::metric_name(name)));
    head.extend(["Kept", "Steps", "Time", "Tokens/s", "Sent", "Received", "Trained"].map(str::to_owned));
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    let mut table = Table::new("Metrics of the kept evaluation; the best of each is marked with ★", &head);
    table.head[1].class = "";
    let best: Vec<Option<f64>> = metrics.iter().map(|name| best(runs, name)).collect();
    table.rows = runs.iter().take(LISTED).map(|run| row(run, &metrics, &best)).collect();
    let mut parts = vec![table.html()];
    if runs.len() > LISTED {
        parts.push(paragraph(&format!("The first {LISTED} of {} runs are listed.", runs.len())));
    }
    let incomplete = runs.iter().filter(|run| !run.problems.is_empty()).take(20);
    parts
        .extend(incomplete.map(|run| {
            missing(&format!("{}: {}", text::cut(&run.id(), 80), text::cut(&run.problems.join("; "), 400)))
        }));
    parts
}

/// The best value of a metric, if runs differ in it.
fn best(runs: &[Run], name: &str) -> Option<f64> {
    let values =
        runs.iter().filter_map(|run| run.manifest.metrics.get(name)).copied().filter(|value| value.is_finite());
    let values: Vec<f64> = values.collect();
    let better = if text::less_is_better(name) { f64::min } else { f64::max };
    let best = values.iter().copied().reduce(better)?;
    values.iter().any(|value| *value != best).then_some(best)
}

fn row(run: &Run, metrics: &[&str], best: &[Option<f64>]) -> Vec<Cell> {
    let manifest = &run.manifest;
    let state = state(run);
    let mut cells = vec![
        Cell::cut(&run.id(), 60),
        Cell { class: state.class, ..Cell::words(format!("{} {}", state.sign, state.word)) },
    ];
    cells.extend(metrics.iter().zip(best).map(|(name, best)| {
        let value = manifest.metrics.get(*name).copied();
        let shown = text::or_missing(value, |value| text::metric(name, value));
        match value.is_some() && value == *best {
            true => Cell { class: "n best", ..Cell::number(format!("★ {shown}")) },
            false => Cell::number(shown),
        }
    }));
    let kept = manifest
        .best
        .as_ref()
        .map(|best| format!("{} at {}", text::metric(&best.metric, best.value), text::count(best.step)));
    let speed = (manifest.train_seconds > 0.0).then(|| manifest.train_tokens as f64 / manifest.train_seconds);
    cells.extend(
        [
            kept.unwrap_or_else(|| text::MISSING.to_owned()),
            text::count(manifest.steps),
            text::seconds(manifest.seconds),
            text::or_missing(speed, |speed| text::digits(speed, 3)),
            text::bytes(manifest.bytes.sent),
            text::bytes(manifest.bytes.received),
            text::count(manifest.parameters.trainable),
        ]
        .map(Cell::number),
    );
    cells
}

/// The options, one a row, in which runs differ.
fn options(runs: &[Run]) -> Vec<String> {
    let keys = differing(runs);
    if runs.len() < 2 || keys.is_empty() {
        return vec![paragraph("All options are the same.")];
    }
    let shown: Vec<&Run> = runs.iter().take(LISTED).collect();
    let head: Vec<String> =
        std::iter::once("Run".to_owned()).chain(keys.iter().take(OPTIONS).map(|key| text::cut(key, 60))).collect();
    let mut table =
        Table::new("Options in which the runs differ", &head.iter().map(String::as_str).collect::<Vec<_>>());
    let value = |run: &Run, key: &str| {
        run.options.get(key).map_or_else(|| Cell::words(text::MISSING), |value| Cell::words(text::cut(value, 40)))
    };
    let cells = |run: &&Run| {
        let values = keys.iter().take(OPTIONS).map(|key| value(run, key));
        std::iter::once(Cell::cut(&run.id(), 60)).chain(values).collect()
    };
    table.head.iter_mut().for_each(|cell| cell.class = "");
    table.rows = shown.iter().map(cells).collect();
    let mut parts = vec![table.html()];
    if keys.len() > OPTIONS {
        parts.push(paragraph(&format!("The first {OPTIONS} of {} are shown.", keys.len())));
    }
    parts
}

/// Keys that do not have the same value in all runs, in the files' order.
fn differing(runs: &[Run]) -> Vec<String> {
    let mut keys = Vec::new();
    let mut seen = BTreeSet::new();
    for (key, _) in runs.iter().flat_map(|run| run.options.flat()) {
        if seen.insert(key) && runs.iter().any(|run| run.options.get(key) != runs[0].options.get(key)) {
            keys.push(key.clone());
        }
    }
    keys
}

fn curves(runs: &[Run]) -> Vec<String> {
    let mut parts = Vec::new();
    let drawn = &runs[..runs.len().min(DRAWN)];
    if drawn.len() < runs.len() {
        parts.push(paragraph(&format!("The curves of the first {DRAWN} runs.")));
    }
    let limit = (4000 / drawn.len().max(1)).clamp(150, 1000);
    let name = |run: &Run| text::cut(&run.id(), 48);
    let metrics: BTreeSet<&str> = drawn
        .iter()
        .flat_map(|run| &run.history.evaluations)
        .flat_map(|one| one.metrics.keys().map(String::as_str))
        .collect();
    let training = |value: fn(&sepal_track::StepRecord) -> f64| {
        let of = |(i, run): (usize, &Run)| Series::line(name(run), smoothed(run, value)).coloured(i);
        drawn.iter().enumerate().map(of).collect::<Vec<_>>()
    };
    let mut charts = vec![
        Chart { note: "smoothed".into(), ..Chart::new("loss", "Training loss", training(|step| step.loss)) },
        Chart {
            note: "smoothed".into(),
            from_zero: false,
            unit: " %",
            ..Chart::new(
                "accuracy",
                "Training accuracy, %",
                training(|step| step.accuracy.map_or(f64::NAN, |a| a * 100.0)),
            )
        },
    ];
    let validation = |id: String, title: String, scale: f64, value: &dyn Fn(&EvaluationRecord) -> f64| {
        let points = |run: &Run| -> Vec<Point> {
            run.history.evaluations.iter().map(|one| (one.step as f64, scale * value(one))).collect()
        };
        let of = |(i, run): (usize, &Run)| Series::dots(name(run), points(run)).coloured(i);
        let series = drawn.iter().enumerate().map(of).collect();
        Chart { from_zero: false, ..Chart::new(id, title, series) }
    };
    charts.push(validation("eval-loss".into(), "Validation loss".into(), 1.0, &|one| one.loss));
    for (i, metric) in metrics.iter().take(8).enumerate() {
        let value = |one: &EvaluationRecord| one.metrics.get(*metric).copied().unwrap_or(f64::NAN);
        let shares = metric.ends_with("accuracy");
        let title = format!("Validation {}{}", text::metric_name(metric), if shares { ", %" } else { "" });
        let chart = validation(format!("eval-{i}"), title, if shares { 100.0 } else { 1.0 }, &value);
        charts.push(Chart { unit: if shares { " %" } else { "" }, ..chart });
    }
    charts.iter_mut().for_each(|chart| chart.limit = limit);
    let html = side_by_side(charts.iter().map(Chart::html));
    parts.push(if html.is_empty() { missing("No run has recorded a step.") } else { html });
    parts
}

fn smoothed(run: &Run, value: fn(&sepal_track::StepRecord) -> f64) -> Vec<Point> {
    let points: Vec<Point> = run.history.steps.iter().map(|step| (step.step as f64, value(step))).collect();
    if points.len() < SMOOTHED_FROM { points } else { smooth(&points, half_life(points.len())) }
}
