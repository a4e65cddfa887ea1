//! Result of a sweep as a table and as JSON.

use sepal_pipeline::SweepSummary;
use sepal_report::{Group, Sweep};
use serde_json::{Map, Value, json};

use crate::table::Table;
use crate::units::{clock, size};

/// Maximum number of settings in the table; the page has more.
const LISTED: usize = 40;
/// Maximum number of characters of a setting in the table.
const WIDTH: usize = 60;

pub(super) fn text(summary: &SweepSummary) -> String {
    let results = &summary.results;
    let folder = summary.folder.display();
    let mut lines = Vec::new();
    if summary.interrupted {
        lines.push(format!("stopped; go on with: sepal sweep --resume {folder}"));
    }
    if let Some(metric) = results.metric() {
        let mut table = Table::default();
        table.heading(metric);
        table.rows(&rows(results));
        lines.push(table.text().to_owned());
    }
    if let (Some(best), Some(run)) = (&summary.best, results.best()) {
        let first = match results.n_best_settings() {
            0 | 1 => String::new(),
            tied => format!(" (the first of {tied} settings with the best mean)"),
        };
        lines.push(format!("best run    {}{first}", results.record.runs[run].label()));
        lines.push(format!("pipeline    {}", best.display()));
    }
    lines.push(format!("time        {}", clock(results.record.seconds)));
    lines.push(format!("page        {}", summary.folder.join("report.html").display()));
    lines.push(format!("folder      {folder}"));
    lines.join("\n")
}

/// Rows of the table: settings, finished runs, mean, deviation, best, time and bytes.
fn rows(results: &Sweep) -> Vec<Vec<String>> {
    let head = ["settings", "runs", "mean", "deviation", "best", "time", "sent", "received"];
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"));
    let row = |group: Group| {
        let found = group.statistics;
        let or_missing = |text: String| if found.is_some() { text } else { "-".to_owned() };
        let finished = found.map_or(0, |found| found.n);
        let all = group.runs.len();
        vec![
            group.settings.chars().take(WIDTH).collect(),
            if finished == all { all.to_string() } else { format!("{finished} of {all}") },
            number(found.map(|found| found.mean)),
            number(found.and_then(|found| found.deviation)),
            number(found.map(|found| found.best)),
            or_missing(clock(group.seconds)),
            or_missing(size(group.sent as u64)),
            or_missing(size(group.received as u64)),
        ]
    };
    let rows = results.groups().into_iter().take(LISTED).map(row);
    std::iter::once(head.map(str::to_owned).to_vec()).chain(rows).collect()
}

pub(super) fn json(summary: &SweepSummary) -> Value {
    let results = &summary.results;
    let runs = &results.record.runs;
    let run = |(index, run): (usize, &sepal_track::MemberRecord)| {
        let settings: Map<String, Value> =
            run.settings.iter().map(|setting| (setting.key.clone(), setting.value.clone())).collect();
        json!({
            "folder": run.folder,
            "settings": settings,
            "state": run.state,
            "error": run.error,
            "value": results.value(index),
            "measured": run.measured,
        })
    };
    let group = |group: Group| {
        let found = group.statistics;
        let folders: Vec<&str> = group.runs.iter().map(|&index| runs[index].folder.as_str()).collect();
        json!({
            "settings": group.settings,
            "runs": folders,
            "n": found.map_or(0, |found| found.n),
            "mean": found.map(|found| found.mean),
            "deviation": found.and_then(|found| found.deviation),
            "best": found.map(|found| found.best),
            "seconds": found.map(|_| group.seconds),
            "bytes_sent": found.map(|_| group.sent),
            "bytes_received": found.map(|_| group.received),
        })
    };
    let best = results
        .best()
        .map(|index| json!({ "run": runs[index].folder, "value": results.value(index), "pipeline": summary.best }));
    json!({
        "folder": summary.folder,
        "interrupted": summary.interrupted,
        "metric": results.metric(),
        "seconds": results.record.seconds,
        "best": best,
        "groups": results.groups().into_iter().map(group).collect::<Vec<_>>(),
        "runs": runs.iter().enumerate().map(run).collect::<Vec<_>>(),
    })
}
