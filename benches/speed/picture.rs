//! Results as a self-contained SVG picture for light and dark pages.

use std::fmt::Write;

use serde_json::{Map, Value};

const WIDTH: f64 = 860.0;
/// Left edge of the bars, and the length of the longest one.
const BARS: (f64, f64) = (360.0, 330.0);
const LINE: f64 = 22.0;
const STYLE: &str = "\
text { fill: #1f2328; } .dim { fill: #656d76; } .head { font-weight: bold; }
.back { fill: #ffffff; } .axis { stroke: #8c959f; fill: none; } .target { stroke: #1f2328; stroke-dasharray: 4 3; }
.bar { fill: #2f7d32; } .missed { fill: #c4501b; } .fit { stroke: #1b4f9c; stroke-width: 1.6; } .point { fill: #1b4f9c; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .dim { fill: #9198a1; } .back { fill: #0d1117; } .axis { stroke: #656d76; }
.target { stroke: #e6edf3; } .bar { fill: #57a65a; } .missed { fill: #e8813f; } .fit { stroke: #79aef2; }
.point { fill: #79aef2; }
}";

pub(crate) fn draw(sections: &Map<String, Value>) -> String {
    let mut sheet = Sheet { y: 14.0, marks: String::new() };
    sheet.speedups(sections);
    sheet.targets(sections);
    sheet.growth(sections);
    let height = sheet.y + 10.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12.5\">\n<title>Sepal's speed, by `just bench`</title>\n<style>\n{STYLE}\n</style>\n\
         <rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>\n{}</svg>\n",
        sheet.marks
    )
}

struct Sheet {
    y: f64,
    marks: String,
}

impl Sheet {
    /// Draws the speedup over padded rows for each kind of step.
    fn speedups(&mut self, sections: &Map<String, Value>) {
        let ratio = |row: &Value| Some((row["step"].as_str()?.to_owned(), row["padded/embedded"].as_f64()?));
        let ratios: Vec<(String, f64)> = list(sections, "steps", "rows").iter().filter_map(ratio).collect();
        let longest = ratios.iter().map(|(_, ratio)| *ratio).fold(1.0, f64::max);
        if ratios.is_empty() {
            return;
        }
        self.head("Times as fast as padded rows with a prefix for each: steps through the embedded server");
        for (name, ratio) in &ratios {
            self.bar(name, ratio / longest, "bar", &format!("{ratio:.2}"));
        }
        self.rule(ratios.len(), 1.0 / longest);
        self.y += LINE;
    }

    /// Draws every figure with a target, relative to the target.
    fn targets(&mut self, sections: &Map<String, Value>) {
        let names = sections.keys().flat_map(|name| list(sections, name, "figures"));
        let figures: Vec<&Value> = names.filter(|figure| !figure["target"].is_null()).collect();
        if figures.is_empty() {
            return;
        }
        /// Maximum length; longer bars are cut.
        const LONGEST: f64 = 2.0;
        self.head("Figures against their targets (dashed), which bars should reach (\u{2265}) or not pass (\u{2264})");
        for figure in &figures {
            let (name, value) = (figure["name"].as_str().unwrap_or_default(), figure["value"].as_f64().unwrap_or(0.0));
            let (target, sign) = target(&figure["target"]);
            let is_met = figure["met"].as_bool().unwrap_or(false);
            let (class, word) = if is_met { ("bar", "ok") } else { ("bar missed", "MISSED") };
            let share = (value / target / LONGEST).clamp(0.0, 1.0);
            self.bar(name, share, class, &format!("{} {word} ({sign} {target})", short(value)));
        }
        self.rule(figures.len(), 1.0 / LONGEST);
        self.y += LINE;
    }

    fn growth(&mut self, sections: &Map<String, Value>) {
        const SIZE: (f64, f64) = (230.0, 150.0);
        let lines = list(sections, "growth", "lines");
        if lines.is_empty() {
            return;
        }
        self.head("Seconds of a step as it grows, and the straight line that fits best");
        for (line, i) in lines.iter().zip(0..) {
            self.plot(line, 50.0 + f64::from(i) * (SIZE.0 + 45.0), SIZE);
        }
        self.y += SIZE.1 + 2.5 * LINE;
    }

    fn plot(&mut self, line: &Value, left: f64, (width, height): (f64, f64)) {
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        let points: Vec<(f64, f64)> = line["points"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|point| (number(&point[0]), number(&point[1])))
            .collect();
        let most = points.iter().fold((1e-9, 1e-9), |most: (f64, f64), p| (most.0.max(p.0), most.1.max(p.1)));
        let (top, bottom) = (self.y, self.y + height);
        let place = |(x, y): (f64, f64)| (left + x / most.0 * width, bottom - y / most.1 * height * 0.92);
        let fitted = |x: f64| number(&line["intercept"]) + number(&line["slope"]) * x;
        let ((x1, y1), (x2, y2)) = (place((0.0, fitted(0.0))), place((most.0, fitted(most.0))));
        self.mark(format_args!("<path class=\"axis\" d=\"M{left:.1} {top:.1} V{bottom:.1} H{:.1}\"/>", left + width));
        self.mark(format_args!("<line class=\"fit\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"));
        for point in points {
            let (x, y) = place(point);
            self.mark(format_args!("<circle class=\"point\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>"));
        }
        let axis = line["axis"].as_str().unwrap_or_default();
        let below = format!("{axis}, to {}; R\u{b2} {:.4}", short(most.0), number(&line["r2"]));
        self.text(left, bottom + 17.0, "", &below);
        self.text(left + 5.0, top + 9.0, "dim", &format!("to {} s", short(most.1)));
    }

    fn head(&mut self, text: &str) {
        self.y += 8.0;
        self.text(14.0, self.y, "head", text);
        self.y += 12.0;
    }

    /// Draws a line with a bar, relative to the longest.
    fn bar(&mut self, name: &str, share: f64, class: &str, value: &str) {
        let ((left, longest), y) = (BARS, self.y);
        let width = share * longest;
        self.text(14.0, y + 14.5, "", name);
        self.mark(format_args!(
            "<rect class=\"{class}\" x=\"{left}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"14\" rx=\"2\"/>",
            y + 3.0
        ));
        self.text(left + width + 6.0, y + 14.5, "dim", value);
        self.y += LINE;
    }

    /// Draws a dashed line over the last bars, relative to the longest.
    fn rule(&mut self, n_bars: usize, share: f64) {
        let (x, bottom) = (BARS.0 + share * BARS.1, self.y);
        let top = bottom - n_bars as f64 * LINE;
        self.mark(format_args!(
            "<line class=\"target\" x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>"
        ));
    }

    fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        self.mark(format_args!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>"));
    }

    fn mark(&mut self, mark: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.marks, "{mark}");
    }
}

/// Returns a list of a section, empty if it was not measured.
fn list<'a>(sections: &'a Map<String, Value>, section: &str, key: &str) -> &'a [Value] {
    sections.get(section).and_then(|section| section[key].as_array()).map_or(&[], Vec::as_slice)
}

fn target(target: &Value) -> (f64, &'static str) {
    let limit = |key: &str| target[key].as_f64();
    let at_most = limit("at_most").map(|limit| (limit, "\u{2264}"));
    at_most.or_else(|| limit("at_least").map(|limit| (limit, "\u{2265}"))).unwrap_or((1.0, ""))
}

fn short(value: f64) -> String {
    if value < 10.0 { format!("{value:.3}") } else { format!("{value:.0}") }
}
