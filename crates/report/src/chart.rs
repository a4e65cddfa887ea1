//! Charts of curves over steps, drawn as SVG with letters of constant size at every width.

use askama::Template;

use crate::axis::Axis;
use crate::curve::{Point, SMOOTHED_FROM, half_life, smooth, thin};
use crate::text;

/// Unit of shares.
pub(crate) const PERCENT: &str = " %";

#[derive(Debug, Clone)]
pub(crate) struct Series {
    /// Name for the legend and the readout.
    pub(crate) name: String,
    points: Vec<Point>,
    style: Style,
    /// Fixed colour shared with other charts; otherwise the next one.
    colour: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Faint, below its smoothed curve.
    Raw,
    Line,
    Dots,
    Crosses,
    /// Horizontal line that is not a measurement.
    Limit,
}

impl Series {
    pub(crate) fn new(style: Style, name: impl Into<String>, points: Vec<Point>) -> Self {
        Self { name: name.into(), points, style, colour: None }
    }

    /// Horizontal line at `y`.
    pub(crate) fn limit(name: impl Into<String>, y: f64) -> Self {
        Self::new(Style::Limit, name, vec![(0.0, y)])
    }

    /// Returns a curve and its smoothed one; short curves are not smoothed.
    pub(crate) fn smoothed(name: &str, points: Vec<Point>) -> Vec<Self> {
        if points.len() < SMOOTHED_FROM {
            return vec![Self::new(Style::Line, name, points)];
        }
        let mean = smooth(&points, half_life(points.len()));
        vec![Self::new(Style::Raw, name, points), Self::new(Style::Line, "smoothed", mean)]
    }

    pub(crate) fn coloured(mut self, colour: usize) -> Self {
        self.colour = Some(colour);
        self
    }

    fn is_empty(&self) -> bool {
        !self.points.iter().any(|(x, y)| x.is_finite() && y.is_finite())
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Chart {
    /// Element id, unique on the page.
    pub(crate) id: String,
    pub(crate) title: String,
    /// Text behind the title: the unit, or counts.
    pub(crate) note: String,
    /// Unit behind each number in the readout.
    pub(crate) unit: &'static str,
    pub(crate) x_name: &'static str,
    /// Curves; each raw one before its smoothed one.
    pub(crate) series: Vec<Series>,
    /// True if the vertical axis begins at 0.
    pub(crate) from_zero: bool,
    /// Maximum number of drawn points of each curve.
    pub(crate) limit: usize,
    /// True if the curves are named below; several charts of the same curves share a [`legend`].
    pub(crate) legend: bool,
}

impl Chart {
    /// Chart over steps with the vertical axis from 0.
    pub(crate) fn new(id: impl Into<String>, title: impl Into<String>, series: Vec<Series>) -> Self {
        Self {
            id: id.into(),
            title: title.into(),
            note: String::new(),
            unit: "",
            x_name: "step",
            series,
            from_zero: true,
            limit: 1000,
            legend: true,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.series.iter().filter(|series| series.style != Style::Limit).all(Series::is_empty)
    }

    /// Returns the chart as HTML; empty without points.
    pub(crate) fn html(&self) -> String {
        if self.is_empty() {
            return String::new();
        }
        let (x, y) = (self.x_axis(), self.y_axis());
        let mut colour = 0;
        let draw = |series: &Series| {
            let curve = Curve::new(series, &x, &y, series.colour.unwrap_or(colour), self.limit);
            // A raw curve has the colour of the smoothed one after it.
            colour += usize::from(series.style != Style::Raw && series.style != Style::Limit);
            curve
        };
        let curves: Vec<Curve> = self.series.iter().filter(|series| !series.is_empty()).map(draw).collect();
        let is_ambiguous = curves.len() > 1 || self.series.iter().any(|series| series.colour.is_some());
        crate::page::render(&Figure {
            chart: self,
            desc: self.description(),
            x,
            y,
            curves,
            legend: is_ambiguous && self.legend,
        })
    }

    fn points(&self) -> impl Iterator<Item = Point> {
        let points = self.series.iter().filter(|series| series.style != Style::Limit).flat_map(|series| &series.points);
        points.copied().filter(|(x, y)| x.is_finite() && y.is_finite())
    }

    fn x_axis(&self) -> Axis {
        let last = self.points().map(|point| point.0).fold(0.0, f64::max);
        Axis::exact(0.0, if last > 0.0 { last } else { 1.0 })
    }

    fn y_axis(&self) -> Axis {
        let mut values: Vec<f64> = self.points().map(|point| point.1).collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (values[0], values[values.len() - 1]);
        // A logarithmic axis resolves numbers of very different sizes.
        if low > 0.0 && (high / values[values.len() / 2] > 25.0 || values[values.len() / 2] / low > 1e4) {
            return Axis::powers(low, high);
        }
        let limits = self.series.iter().filter(|series| series.style == Style::Limit).map(|series| series.points[0].1);
        let high = limits.filter(|limit| *limit < high * 3.0).fold(high, f64::max);
        let low = if self.from_zero { low.min(0.0) } else { low };
        if self.unit == PERCENT { Axis::of_percent(low, high) } else { Axis::enclosing(low, high) }
    }

    /// Text description for screen readers.
    fn description(&self) -> String {
        let curves = self.series.iter().filter(|series| !series.is_empty() && series.style != Style::Raw);
        let describe = |series: &Series| {
            let points: Vec<Point> =
                series.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
            let show = |value: f64| format!("{}{}", text::digits(value, 3), self.unit);
            let describe_point = |point: &Point, places: usize| {
                format!("{} at {} {}", show(point.1), self.x_name, text::digits(point.0, places))
            };
            match (series.style, points.first(), points.last()) {
                (Style::Limit, Some(point), _) => format!("{} at {}", series.name, show(point.1)),
                (Style::Crosses, ..) => format!("{}: {}", series.name, points.len()),
                (_, Some(first), Some(last)) => {
                    let low = points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
                    let high = points.iter().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
                    let (from, to) = (describe_point(first, 3), describe_point(last, 6));
                    format!("{}: from {from} to {to}, lowest {}, highest {}", series.name, show(low), show(high))
                }
                _ => series.name.clone(),
            }
        };
        curves.map(describe).collect::<Vec<_>>().join(". ")
    }
}

#[derive(Template)]
#[template(path = "chart.html")]
struct Figure<'a> {
    chart: &'a Chart,
    desc: String,
    x: Axis,
    y: Axis,
    curves: Vec<Curve>,
    legend: bool,
}

/// Legend for several charts of the same curves.
pub(crate) fn legend(series: &[Series]) -> String {
    let unit = Axis::exact(0.0, 1.0);
    let curve = |(i, series): (usize, &Series)| Curve::new(series, &unit, &unit, series.colour.unwrap_or(i), 0);
    crate::page::render(&Legend { curves: series.iter().enumerate().map(curve).collect() })
}

#[derive(Template)]
#[template(path = "legend.html")]
struct Legend {
    curves: Vec<Curve>,
}

/// Drawn curve, in thousandths of the chart.
struct Curve {
    name: String,
    class: String,
    path: String,
    dots: Vec<Dot>,
    cross: bool,
    limit: Option<String>,
}

/// Position of a mark, in percent of the chart.
struct Dot {
    x: String,
    y: String,
}

/// Maximum number of drawn dots of a curve, since denser ones would form a band.
const DOTS: usize = 60;

impl Curve {
    fn new(series: &Series, x: &Axis, y: &Axis, colour: usize, limit: usize) -> Self {
        let points = thin(&series.points, limit);
        let kind = match series.style {
            Style::Raw => "raw",
            Style::Limit => "limit",
            _ => "line",
        };
        // Everyone can tell four colours apart; the next four are dashed.
        let dash = colour / 4 % 3;
        let class = format!("{kind} c{} d{dash}", colour % PALETTE);
        let position = |point: &Point| (x.position(point.0), 1.0 - y.position(point.1));
        let dots = match series.style {
            Style::Crosses => thin(&points, 200),
            Style::Dots if points.len() <= DOTS.min(limit / 16) => points.clone(),
            _ if points.len() == 1 && series.style != Style::Limit => points.clone(),
            _ => Vec::new(),
        };
        let dots = dots.iter().map(position).map(|(x, y)| Dot { x: short(x * 100.0, 2), y: short(y * 100.0, 2) });
        let drawn = !matches!(series.style, Style::Limit | Style::Crosses);
        Self {
            name: series.name.clone(),
            class,
            path: if drawn { path(points.iter().map(position)) } else { String::new() },
            dots: dots.collect(),
            cross: series.style == Style::Crosses,
            limit: (series.style == Style::Limit).then(|| short(position(&points[0]).1 * 100.0, 2)),
        }
    }
}

/// Number of colours in the style sheet.
const PALETTE: usize = 8;

/// SVG path in thousandths, `M0 500L3.4 498...`.
fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (i, (x, y)) in points.enumerate() {
        path.push(if i == 0 { 'M' } else { 'L' });
        path.push_str(&short(x * 1000.0, 1));
        path.push(' ');
        path.push_str(&short(y * 1000.0, 1));
    }
    path
}

/// Number for an attribute, with at most `places` decimal places.
pub(crate) fn short(number: f64, places: usize) -> String {
    let text = format!("{number:.places$}");
    let text = text::trimmed(&text);
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}
