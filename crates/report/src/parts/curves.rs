use std::collections::BTreeSet;

use sepal_track::{EvaluationRecord, StepRecord};

use crate::chart::{Chart, PERCENT, Series, Style};
use crate::curve::Point;
use crate::page::{Section, missing, side_by_side};
use crate::read::Run;
use crate::text;

pub(crate) fn section(run: &Run) -> Option<Section> {
    let charts = [
        vec![loss(run), accuracy(run)],
        metrics(run),
        vec![lr(run), grad_norm(run), speed(run), traffic(run), scale(run)],
    ];
    let html = side_by_side(charts.concat().iter().map(Chart::html));
    let part = if html.is_empty() { missing("No step was recorded, so there are no curves.") } else { html };
    Some(Section::new("curves", "Curves", [part]))
}

fn step_points(run: &Run, value: impl Fn(&StepRecord) -> f64) -> Vec<Point> {
    run.history.steps.iter().map(|step| (step.step as f64, value(step))).collect()
}

fn evaluation_points(run: &Run, value: impl Fn(&EvaluationRecord) -> f64) -> Vec<Point> {
    run.history.evaluations.iter().map(|evaluation| (evaluation.step as f64, value(evaluation))).collect()
}

fn loss(run: &Run) -> Chart {
    let mut series = Series::smoothed("training", step_points(run, |step| step.loss));
    series.push(Series::new(Style::Dots, "validation", evaluation_points(run, |evaluation| evaluation.loss)));
    Chart::new("loss", "Loss", series)
}

fn accuracy(run: &Run) -> Chart {
    let percent = |share: f64| share * 100.0;
    let known = run.history.steps.iter().any(|step| step.accuracy.is_some());
    let training = step_points(run, |step| step.accuracy.map_or(f64::NAN, percent));
    let mut series = if known { Series::smoothed("training", training) } else { Vec::new() };
    let validation =
        evaluation_points(run, |evaluation| evaluation.metrics.get("accuracy").map_or(f64::NAN, |a| percent(*a)));
    series.push(Series::new(Style::Dots, "validation", validation));
    let shown = known || run.history.evaluations.len() > 1;
    let series = if shown { series } else { Vec::new() };
    let note = if known { "% of rows" } else { "validation, % of rows" };
    Chart { unit: PERCENT, note: note.into(), from_zero: false, ..Chart::new("accuracy", "Accuracy", series) }
}

/// Charts of metrics of several evaluations: metrics between -1 and 1 share a chart, others have their own.
fn metrics(run: &Run) -> Vec<Chart> {
    if run.history.evaluations.len() < 2 {
        return Vec::new();
    }
    let names = run.history.evaluations.iter().flat_map(|one| one.metrics.keys());
    // Metrics of single labels have their own table.
    let names: BTreeSet<&String> = names.filter(|name| !name.contains('/')).collect();
    let curve = |name: &str| evaluation_points(run, |one| one.metrics.get(name).copied().unwrap_or(f64::NAN));
    let bounded = |name: &str| curve(name).iter().all(|(_, value)| value.is_nan() || value.abs() <= 1.0);
    let others = names.into_iter().filter(|name| *name != "accuracy").take(16);
    let (common, separate): (Vec<&String>, Vec<&String>) =
        others.partition(|name| bounded(name) && !text::less_is_better(name));
    let common =
        common.iter().take(8).map(|name| Series::new(Style::Dots, text::metric_name(name), curve(name))).collect();
    let mut charts = vec![Chart { from_zero: false, ..Chart::new("metrics", "Validation metrics", common) }];
    charts.extend(separate.iter().enumerate().map(|(i, name)| {
        let series = Series::new(Style::Dots, text::metric_name(name), curve(name));
        Chart { note: "validation".into(), ..Chart::new(format!("metric-{i}"), text::metric_name(name), vec![series]) }
    }));
    charts
}

fn lr(run: &Run) -> Chart {
    Chart::new("lr", "Learning rate", vec![Series::new(Style::Line, "learning rate", step_points(run, |step| step.lr))])
}

fn grad_norm(run: &Run) -> Chart {
    let limit: Option<f64> = run.options.get("train.clip_norm").and_then(|norm| norm.parse().ok());
    let mut series = Series::smoothed("norm", step_points(run, |step| step.grad_norm));
    let mut note = "before clipping".to_owned();
    if let Some(limit) = limit.filter(|limit| *limit > 0.0 && limit.is_finite()) {
        let clipped = run.history.steps.iter().filter(|step| step.grad_norm > limit).count();
        note = format!(
            "clipped in {} of {} steps",
            text::count(clipped as u64),
            text::count(run.history.steps.len() as u64)
        );
        series.push(Series::limit(format!("clipped above {}", text::trimmed(&limit.to_string())), limit));
    }
    Chart { note, ..Chart::new("norm", "Gradient norm", series) }
}

fn speed(run: &Run) -> Chart {
    let speed = |step: &StepRecord| if step.seconds > 0.0 { step.tokens as f64 / step.seconds } else { f64::NAN };
    let series = Series::smoothed("tokens/s", step_points(run, speed));
    Chart { note: "tokens/s".into(), unit: " tokens/s", ..Chart::new("speed", "Throughput", series) }
}

fn traffic(run: &Run) -> Chart {
    let most = run.history.steps.iter().map(|step| step.bytes_up.max(step.bytes_down)).max().unwrap_or(0);
    let (unit, name) = text::byte_unit(most as f64);
    let up = Series::new(Style::Line, "sent", step_points(run, |step| step.bytes_up as f64 / unit));
    let down = Series::new(Style::Line, "received", step_points(run, |step| step.bytes_down as f64 / unit));
    let series = if most > 0 { vec![up, down] } else { Vec::new() };
    let unit = match name {
        "TB" => " TB",
        "GB" => " GB",
        "MB" => " MB",
        "kB" => " kB",
        _ => " B",
    };
    let place = if run.is_in_process() { ", within this process" } else { "" };
    Chart { note: format!("{name} in each step{place}"), unit, ..Chart::new("bytes", "Traffic", series) }
}

fn scale(run: &Run) -> Chart {
    if run.history.steps.iter().all(|step| step.scale.is_none()) {
        return Chart::new("scale", "Loss scale", Vec::new());
    }
    let scale = |step: &StepRecord| step.scale.unwrap_or(f64::NAN);
    let skipped = run.history.steps.iter().filter(|step| step.skipped.is_some());
    let skipped: Vec<Point> = skipped.map(|step| (step.step as f64, scale(step))).collect();
    let note = format!("{} skipped", text::counted(skipped.len() as u64, "step", "steps"));
    let series = vec![
        Series::new(Style::Line, "scale", step_points(run, scale)),
        Series::new(Style::Crosses, "skipped steps", skipped),
    ];
    Chart { note, ..Chart::new("scale", "Loss scale", series) }
}
