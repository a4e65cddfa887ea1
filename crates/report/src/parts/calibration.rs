use askama::Template;

use super::labelled::Classes;
use crate::chart::short;
use crate::measures::{Bin, bins, calibration_error};
use crate::page::{heading, missing, render, side_by_side};
use crate::table::{Cell, Table};
use crate::text;

/// Bins of equal width.
const BINS: usize = 10;

/// Whether the probability of the predicted class is the share of rows that are of it.
pub(crate) fn of_classes(classes: &Classes) -> String {
    let rows = 0..classes.actual.len();
    html(
        bins(rows.map(|row| (classes.confidence(row), classes.hit(row))), BINS),
        "Probability of the prediction",
        "right",
    )
}

/// Whether the probability of a label is the share of rows that have it. Both are `[rows][n_labels]`.
pub(crate) fn of_labels(actual: &[Vec<f32>], probabilities: &[Vec<f32>]) -> String {
    let pairs = actual.iter().zip(probabilities).flat_map(|(actual, row)| actual.iter().zip(row));
    let pairs = pairs.map(|(actual, probability)| (f64::from(*probability), *actual >= 0.5));
    html(bins(pairs, BINS), "Probability of a label", "there")
}

#[derive(Template)]
#[template(path = "calibration.html")]
struct Diagram {
    error: String,
    desc: String,
    x_name: &'static str,
    hits: &'static str,
    bars: Vec<Bar>,
}

/// A bin as it is drawn, in percent of the diagram.
struct Bar {
    x: String,
    width: String,
    y: String,
    height: String,
    gap_y: String,
    gap_height: String,
    /// Height of the bar that shows how many predictions there are.
    crowd: String,
    crowd_y: String,
    dot_x: String,
    dot_y: String,
    title: String,
}

fn html(bins: Vec<Bin>, x_name: &'static str, hits: &'static str) -> String {
    let Some(error) = calibration_error(&bins) else {
        return heading("Calibration") + &missing("No probability is a number, so calibration is not known.");
    };
    let most = bins.iter().map(|bin| bin.count).max().unwrap_or(1).max(1);
    let error = format!("{error:.4}");
    let desc = format!(
        "Share of predictions that came true in {BINS} bins of probability. Expected calibration error {error}; the \
         table beside it has the numbers."
    );
    let bars = bins.iter().filter(|bin| bin.count > 0).map(|bin| bar(bin, most)).collect();
    let diagram = render(&Diagram { error, desc, x_name, hits, bars });
    let table = table(&bins, hits);
    heading("Calibration") + &side_by_side([diagram, table])
}

fn bar(bin: &Bin, most: usize) -> Bar {
    let (low, high) = (bin.hits.min(bin.confidence), bin.hits.max(bin.confidence));
    let crowd = 100.0 * bin.count as f64 / most as f64;
    Bar {
        x: short(bin.from * 100.0 + 0.5, 2),
        width: short((bin.to - bin.from) * 100.0 - 1.0, 2),
        y: short((1.0 - low) * 100.0, 2),
        height: short(low * 100.0, 2),
        gap_y: short((1.0 - high) * 100.0, 2),
        gap_height: short((high - low) * 100.0, 2),
        crowd: short(crowd, 2),
        crowd_y: short(100.0 - crowd, 2),
        dot_x: short(bin.confidence * 100.0, 2),
        dot_y: short((1.0 - bin.hits) * 100.0, 2),
        title: format!(
            "{}: mean probability {}, came true {}",
            text::counted(bin.count as u64, "prediction", "predictions"),
            text::percent(bin.confidence, 1),
            text::percent(bin.hits, 1)
        ),
    }
}

fn table(bins: &[Bin], hits: &str) -> String {
    let mut table = Table::new("Bins of probability", &["From", "Predictions", "Probability", hits]);
    table.rows = bins
        .iter()
        .map(|bin| {
            let shown = |share: f64| if bin.count > 0 { text::percent(share, 1) } else { text::MISSING.to_owned() };
            let numbers = [text::count(bin.count as u64), shown(bin.confidence), shown(bin.hits)].map(Cell::number);
            let range = format!("{:.0}–{:.0}\u{a0}%", bin.from * 100.0, bin.to * 100.0);
            std::iter::once(Cell::words(range)).chain(numbers).collect()
        })
        .collect();
    table.html()
}
