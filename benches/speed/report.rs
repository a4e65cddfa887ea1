//! Results of a section: a table, figures with targets, and fitted lines, printed and as JSON.

use serde_json::{Map, Value, json};

#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }

    fn json(self) -> Value {
        match self {
            Self::AtMost(limit) => json!({ "at_most": limit }),
            Self::AtLeast(limit) => json!({ "at_least": limit }),
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(limit) => format!("at most {limit}"),
            Self::AtLeast(limit) => format!("at least {limit}"),
        }
    }
}

#[derive(Debug)]
struct Figure {
    name: String,
    value: f64,
    target: Option<Target>,
}

#[derive(Debug)]
pub(crate) enum Cell {
    Text(String),
    /// Number with its decimal places.
    Number(f64, usize),
    /// No measurement.
    Nothing,
}

impl Cell {
    pub(crate) fn count(n: usize) -> Self {
        Self::Number(n as f64, 0)
    }

    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(value, digits) => format!("{value:.digits$}"),
            Self::Nothing => "-".to_owned(),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Number(value, 0) => json!(value.round() as u64),
            Self::Number(value, _) => json!(value),
            Self::Nothing => Value::Null,
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// Measured seconds over a growing quantity, and the fitted line.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) axis: &'static str,
    points: Vec<(f64, f64)>,
    slope: f64,
    intercept: f64,
    pub(crate) r2: f64,
}

impl Line {
    /// Fits a line by least squares.
    pub(crate) fn fit(axis: &'static str, points: Vec<(f64, f64)>) -> Self {
        let n = points.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
        let (mean_x, mean_y) = (mean(|point| point.0), mean(|point| point.1));
        let sum = |of: &dyn Fn(f64, f64) -> f64| points.iter().map(|&(x, y)| of(x - mean_x, y - mean_y)).sum::<f64>();
        let slope = sum(&|x, y| x * y) / sum(&|x, _| x * x);
        let residual = sum(&|x, y| (y - slope * x).powi(2));
        let r2 = 1.0 - residual / sum(&|_, y| y * y);
        Self { axis, intercept: mean_y - slope * mean_x, points, slope, r2 }
    }

    fn json(&self) -> Value {
        let Self { axis, points, slope, intercept, r2 } = self;
        json!({ "axis": axis, "points": points, "slope": slope, "intercept": intercept, "r2": r2 })
    }
}

#[derive(Debug)]
pub(crate) struct Section {
    title: String,
    columns: &'static [&'static str],
    rows: Vec<Vec<Cell>>,
    figures: Vec<Figure>,
    lines: Vec<Line>,
}

impl Section {
    /// Creates an empty section. The first column adapts its width; the others contain numbers.
    pub(crate) fn new(title: impl Into<String>, columns: &'static [&'static str]) -> Self {
        Self { title: title.into(), columns, rows: Vec::new(), figures: Vec::new(), lines: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        let cells = cells.into();
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells);
    }

    pub(crate) fn figure(&mut self, name: impl Into<String>, value: f64, target: impl Into<Option<Target>>) {
        self.figures.push(Figure { name: name.into(), value, target: target.into() });
    }

    pub(crate) fn line(&mut self, line: Line) {
        self.lines.push(line);
    }

    pub(crate) fn print(&self) {
        println!("\n{}\n", self.title);
        let texts: Vec<Vec<String>> = self.rows.iter().map(|row| row.iter().map(Cell::text).collect()).collect();
        let width = |column: usize| {
            let cells = texts.iter().map(|row| row[column].chars().count());
            cells.chain([self.columns[column].len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let print = |cells: Vec<&str>| {
            let first = format!("{:<width$}", cells[0], width = widths[0]);
            let rest = cells.iter().zip(&widths).skip(1).map(|(cell, width)| format!("  {cell:>width$}"));
            println!("  {first}{}", rest.collect::<String>());
        };
        print(self.columns.to_vec());
        texts.iter().for_each(|row| print(row.iter().map(String::as_str).collect()));
        println!();
        self.figures.iter().for_each(print_figure);
    }

    pub(crate) fn json(&self, rounds: usize) -> Value {
        let row = |cells: &Vec<Cell>| {
            let named = self.columns.iter().zip(cells).map(|(name, cell)| ((*name).to_owned(), cell.json()));
            Value::Object(named.collect::<Map<String, Value>>())
        };
        let figure = |figure: &Figure| {
            let target = figure.target.map(|target| (target.json(), target.is_met(figure.value)));
            let (target, is_met) = target.unzip();
            json!({ "name": figure.name, "value": figure.value, "target": target, "met": is_met })
        };
        json!({
            "title": self.title,
            "rounds": rounds,
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "figures": self.figures.iter().map(figure).collect::<Vec<_>>(),
            "lines": self.lines.iter().map(Line::json).collect::<Vec<_>>(),
        })
    }
}

fn print_figure(Figure { name, value, target }: &Figure) {
    let number = if *value < 10.0 { format!("{value:.3}") } else { format!("{value:.1}") };
    let target = target.map_or(String::new(), |target| {
        let word = if target.is_met(*value) { "ok" } else { "MISSED" };
        format!("  {word} ({})", target.text())
    });
    println!("  {name:<58}{number:>9}{target}");
}
