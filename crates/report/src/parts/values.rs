use askama::Template;

use crate::axis::Axis;
use crate::chart::short;
use crate::page::{heading, missing, render, side_by_side};
use crate::table::{Cell, Table};
use crate::text;

/// Maximum number of points of the scatter plot.
const DRAWN: usize = 1500;

/// Measures of predicted numbers, and a scatter plot against the true ones: `[rows]`.
pub(crate) fn html(actual: &[f32], predicted: &[f32]) -> Vec<String> {
    let pairs: Vec<(f64, f64)> = actual.iter().zip(predicted).map(|(a, p)| (f64::from(*a), f64::from(*p))).collect();
    let finite: Vec<(f64, f64)> = pairs.into_iter().filter(|(a, p)| a.is_finite() && p.is_finite()).collect();
    if finite.is_empty() {
        return vec![missing("No predicted number is finite.")];
    }
    let (actual, predicted): (Vec<f64>, Vec<f64>) = finite.iter().copied().unzip();
    let bias = finite.iter().map(|(a, p)| p - a).sum::<f64>() / finite.len() as f64;
    let varies = actual.iter().any(|value| *value != actual[0]);
    let mut table = Table::new("Predicted numbers against the true ones", &["Measure", "Value"]);
    let rows = [
        ("Pearson's correlation", sepal_metrics::pearson(&predicted, &actual).ok()),
        ("Spearman's correlation", sepal_metrics::spearman(&predicted, &actual).ok()),
        ("R²", sepal_metrics::r2(&predicted, &actual).ok().filter(|_| varies)),
        ("Root mean squared error", sepal_metrics::root_mean_squared_error(&predicted, &actual).ok()),
        ("Mean absolute error", sepal_metrics::mean_absolute_error(&predicted, &actual).ok()),
        ("Mean error", Some(bias)),
    ];
    table.rows = rows
        .map(|(name, value)| {
            vec![Cell::words(name), Cell::number(text::or_missing(value, |value| text::digits(value, 4)))]
        })
        .to_vec();
    table.rows.push(vec![Cell::words("Rows"), Cell::number(text::count(finite.len() as u64))]);
    vec![heading("Values"), side_by_side([scatter(&finite), table.html()])]
}

#[derive(Template)]
#[template(path = "scatter.html")]
struct Scatter {
    note: String,
    desc: String,
    x: Axis,
    y: Axis,
    dots: Vec<(String, String)>,
}

fn scatter(pairs: &[(f64, f64)]) -> String {
    let low = pairs.iter().map(|(a, p)| a.min(*p)).fold(f64::INFINITY, f64::min);
    let high = pairs.iter().map(|(a, p)| a.max(*p)).fold(f64::NEG_INFINITY, f64::max);
    let axis = Axis::enclosing(low, high);
    let position =
        |(a, p): &(f64, f64)| (short(axis.position(*a) * 100.0, 1), short(100.0 - axis.position(*p) * 100.0, 1));
    let dots: Vec<_> = sampled(pairs).iter().map(position).collect();
    let all = text::counted(pairs.len() as u64, "row", "rows");
    let note = if dots.len() < pairs.len() { format!("{} of {all}", text::count(dots.len() as u64)) } else { all };
    let desc = format!(
        "Each row a dot, the true number across and the predicted one up, both from {} to {}; the line is where they are \
         equal.",
        text::digits(axis.from, 3),
        text::digits(axis.to, 3)
    );
    render(&Scatter { note, desc, x: axis.clone(), y: axis, dots })
}

/// Sample of the rows at regular intervals, with the largest error of each interval.
fn sampled(pairs: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let error = |pair: &&(f64, f64)| (pair.0 - pair.1).abs();
    if pairs.len() <= DRAWN {
        return pairs.to_vec();
    }
    let stretches = pairs.chunks(pairs.len().div_ceil(DRAWN / 2));
    let two = |part: &[(f64, f64)]| {
        let worst = part.iter().max_by(|a, b| error(a).total_cmp(&error(b))).copied();
        part.first().copied().into_iter().chain(worst).collect::<Vec<_>>()
    };
    stretches.flat_map(two).collect()
}
