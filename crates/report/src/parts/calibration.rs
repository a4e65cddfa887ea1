use askama::Template;
use sepal_metrics::{Bin, CALIBRATION_BINS, Calibration, reliability};

use super::class_predictions::Classes;
use crate::chart::short;
use crate::page::{heading, missing, render, side_by_side};
use crate::table::{Cell, Table};
use crate::text;

/// Calibration of the probability of the predicted class.
pub(crate) fn class_html(classes: &Classes) -> String {
    let rows = 0..classes.actual.len();
    let rows = rows.map(|row| (classes.confidence(row), classes.hit(row)));
    html(rows, "Probability of the prediction", "right")
}

/// Calibration of the probabilities of labels. Both are `[rows][n_labels]`.
pub(crate) fn label_html(actual: &[Vec<f32>], probabilities: &[Vec<f32>]) -> String {
    let pairs = actual.iter().zip(probabilities).flat_map(|(actual, row)| actual.iter().zip(row));
    let pairs = pairs.map(|(actual, probability)| (f64::from(*probability), *actual >= 0.5));
    html(pairs, "Probability of a label", "there")
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

/// Drawn bin, in percent of the diagram.
struct Bar {
    x: String,
    width: String,
    y: String,
    height: String,
    gap_y: String,
    gap_height: String,
    /// Height of the bar for the number of predictions.
    crowd: String,
    crowd_y: String,
    dot_x: String,
    dot_y: String,
    title: String,
}

/// Calibration of probabilities and their outcomes; NaN is left out.
fn html(predictions: impl Iterator<Item = (f64, bool)>, x_name: &'static str, hits: &'static str) -> String {
    let known = predictions.filter(|(probability, _)| probability.is_finite());
    let Ok(Calibration { error, bins }) = reliability(known, CALIBRATION_BINS) else {
        return heading("Calibration") + &missing("No probability is a number, so calibration is not known.");
    };
    let most = bins.iter().map(|bin| bin.count).max().unwrap_or(1).max(1);
    let error = format!("{error:.4}");
    let desc = format!(
        "Share of predictions that came true in {CALIBRATION_BINS} bins of probability. Expected calibration error {error}; the \
         table beside it has the numbers."
    );
    let bars = bins.iter().enumerate().filter(|(_, bin)| bin.count > 0).map(|(i, bin)| bar(i, bin, most)).collect();
    let diagram = render(&Diagram { error, desc, x_name, hits, bars });
    let table = table(&bins, hits);
    heading("Calibration") + &side_by_side([diagram, table])
}

/// Lower edge of bin `i`, from 0 to 1.
fn edge(i: usize) -> f64 {
    i as f64 / CALIBRATION_BINS as f64
}

fn bar(i: usize, bin: &Bin, most: usize) -> Bar {
    let (low, high) = (bin.accuracy.min(bin.confidence), bin.accuracy.max(bin.confidence));
    let crowd = 100.0 * bin.count as f64 / most as f64;
    Bar {
        x: short(edge(i) * 100.0 + 0.5, 2),
        width: short(edge(1) * 100.0 - 1.0, 2),
        y: short((1.0 - low) * 100.0, 2),
        height: short(low * 100.0, 2),
        gap_y: short((1.0 - high) * 100.0, 2),
        gap_height: short((high - low) * 100.0, 2),
        crowd: short(crowd, 2),
        crowd_y: short(100.0 - crowd, 2),
        dot_x: short(bin.confidence * 100.0, 2),
        dot_y: short((1.0 - bin.accuracy) * 100.0, 2),
        title: format!(
            "{}: mean probability {}, came true {}",
            text::counted(bin.count as u64, "prediction", "predictions"),
            text::percent(bin.confidence, 1),
            text::percent(bin.accuracy, 1)
        ),
    }
}

fn table(bins: &[Bin], hits: &str) -> String {
    let mut table =
        Table::new("Bins of probability", &["From", "Predictions", "Probability", text::capital(hits).as_str()]);
    // With two classes the prediction has at least one half, so lower bins are always empty.
    let some = |bin: &Bin| bin.count > 0;
    let (first, last) = (bins.iter().position(some).unwrap_or(0), bins.iter().rposition(some).unwrap_or(0));
    let row = |(i, bin): (usize, &Bin)| {
        let shown = |share: f64| if bin.count > 0 { text::percent(share, 1) } else { text::MISSING.to_owned() };
        let numbers = [text::count(bin.count as u64), shown(bin.confidence), shown(bin.accuracy)].map(Cell::number);
        let range = format!("{:.0}–{:.0}\u{a0}%", edge(i) * 100.0, edge(i + 1) * 100.0);
        std::iter::once(Cell::words(range)).chain(numbers).collect()
    };
    table.rows = bins.iter().enumerate().take(last + 1).skip(first).map(row).collect();
    table.html()
}
