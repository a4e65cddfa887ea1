//! A run as people see it: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use sepal_pipeline::{Event, Observer, Summary};
use sepal_track::{EvaluationRecord, StepRecord};

use crate::downloads::Downloads;

/// Steps between plain lines: about fifty in a run.
const PLAIN_LINES: u64 = 50;
/// Weight of the newest step in what is shown of loss and accuracy.
const SMOOTHING: f64 = 0.1;

/// Watches a run and tells a person.
#[derive(Debug)]
pub(crate) struct Console {
    downloads: Downloads,
    bar: Option<ProgressBar>,
    plain: bool,
    total_steps: u64,
    /// Steps made before the run went on from a checkpoint.
    done_before: u64,
    steps: u64,
    tokens: u64,
    seconds: f64,
    loss: Option<f64>,
    accuracy: Option<f64>,
    /// What the loss is multiplied by, and the steps that were skipped because it was too much.
    scale: Option<f64>,
    skipped: u64,
}

impl Console {
    pub(crate) fn new() -> Self {
        Self {
            downloads: Downloads::new(),
            bar: None,
            plain: !std::io::stderr().is_terminal(),
            total_steps: 0,
            done_before: 0,
            steps: 0,
            tokens: 0,
            seconds: 0.0,
            loss: None,
            accuracy: None,
            scale: None,
            skipped: 0,
        }
    }

    /// A line that stays, above the bar if there is one.
    pub(crate) fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => self.downloads.line(text),
        }
    }

    fn start(&mut self, total_steps: u64, done: u64, trainable: usize) {
        (self.total_steps, self.done_before) = (total_steps, done);
        let from = if done > 0 { format!(" from step {}", done + 1) } else { String::new() };
        self.line(&format!("training {} numbers for {total_steps} steps{from}", grouped(trainable as u64)));
        if !self.plain && total_steps > 0 {
            let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            self.bar = Some(ProgressBar::new(total_steps).with_position(done).with_style(style));
        }
    }

    fn step(&mut self, record: &StepRecord) {
        let (step, total) = (record.step, self.total_steps);
        self.steps = step;
        self.tokens += record.tokens as u64;
        self.seconds += record.seconds;
        self.scale = record.scale;
        self.skipped = record.skipped_steps.unwrap_or(0);
        if let Some(reason) = &record.skipped {
            let scale = scale_text(record.scale.unwrap_or(1.0));
            return self.line(&format!("step {step}/{total} skipped, loss scale {scale}: {reason}"));
        }
        let smooth = |old: Option<f64>, new: f64| Some(old.map_or(new, |old| old + SMOOTHING * (new - old)));
        self.loss = smooth(self.loss, record.loss);
        self.accuracy = record.accuracy.and_then(|new| smooth(self.accuracy, new));
        let text = self.status();
        match &self.bar {
            Some(bar) => {
                bar.set_position(record.step);
                bar.set_message(text);
            }
            None if self.is_line_due() => {
                self.line(&format!("step {step}/{total} {text} lr {:.2e}", record.lr));
            }
            None => {}
        }
    }

    fn is_line_due(&self) -> bool {
        let every = (self.total_steps / PLAIN_LINES).max(1);
        self.steps == 1 || self.steps == self.total_steps || self.steps.is_multiple_of(every)
    }

    /// Loss, accuracy, speed and time left.
    fn status(&self) -> String {
        let mut text = format!("loss {:.4}", self.loss.unwrap_or(f64::NAN));
        if let Some(accuracy) = self.accuracy {
            text.push_str(&format!(" acc {:.1}%", accuracy * 100.0));
        }
        if let Some(scale) = self.scale {
            text.push_str(&format!(" scale {}", scale_text(scale)));
        }
        if self.skipped > 0 {
            text.push_str(&format!(" ({} skipped)", self.skipped));
        }
        let made = self.steps.saturating_sub(self.done_before).max(1);
        let left = self.seconds / made as f64 * (self.total_steps - self.steps.min(self.total_steps)) as f64;
        text.push_str(&format!(" {:.0} tokens/s, {} left", self.tokens as f64 / self.seconds, clock(left)));
        text
    }

    fn evaluated(&self, record: &EvaluationRecord) {
        // Those of single labels are in the records and in the report.
        let whole = record.metrics.iter().filter(|(name, _)| !name.contains('/'));
        let metrics: Vec<String> = whole.map(|(name, value)| format!("{name} {value:.4}")).collect();
        let (step, rows, loss) = (record.step, record.rows, record.loss);
        let seconds = record.seconds;
        self.line(&format!(
            "evaluated {rows} rows after step {step}: {} loss {loss:.4} ({seconds:.1} s)",
            metrics.join(" ")
        ));
    }
}

impl Observer for Console {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Notice(text) => self.line(text),
            Event::Fetch(event) => self.downloads.event(event),
            Event::Started { total_steps, done, trainable } => self.start(total_steps, done, trainable),
            Event::Step(record) => self.step(record),
            Event::Evaluating { done, total } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("evaluating {done}/{total} rows"));
                }
            }
            Event::Evaluated(record) => {
                self.evaluated(record);
                if let Some(bar) = self.bar.as_ref().filter(|_| self.steps > self.done_before) {
                    bar.set_message(self.status());
                }
            }
            _ => {}
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The last words of a run, for standard output.
pub(crate) fn summary(summary: &Summary) -> String {
    let mut lines = Vec::new();
    if summary.interrupted {
        let folder = summary.folder.display();
        lines.push(format!("stopped after {} steps; go on with: sepal run --resume {folder}", summary.steps));
    }
    if let Some(reason) = &summary.ended_early {
        lines.push(format!("ended after {} steps: {reason}", summary.steps));
    }
    if let Some((name, value)) = &summary.headline {
        let shown = if name == "accuracy" { format!("{:.2} %", value * 100.0) } else { format!("{value:.4}") };
        let at = summary.best_step.filter(|&step| step != summary.steps);
        let at = at.map(|step| format!(" (the best evaluation, after step {step}, is kept)")).unwrap_or_default();
        lines.push(format!("{name:<11} {shown}{at}"));
    }
    let skipped = match summary.skipped_steps {
        0 => String::new(),
        n => format!(", {n} of them skipped"),
    };
    lines.push(format!(
        "throughput  {:.1} rows/s, {:.0} tokens/s over {} steps{skipped}",
        summary.rows_per_second, summary.tokens_per_second, summary.steps
    ));
    lines.push(format!("bytes       {} sent, {} received", size(summary.bytes_sent), size(summary.bytes_received)));
    lines.push(format!("time        {}", clock(summary.seconds)));
    lines.push(format!("folder      {}", summary.folder.display()));
    lines.join("\n")
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest unit that keeps a digit before the point.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// `65536`, but `2.50e11` and `1.22e-4`.
fn scale_text(scale: f64) -> String {
    if (1.0..1e7).contains(&scale) { format!("{scale:.0}") } else { format!("{scale:.2e}") }
}

/// Seconds as `1:02:03` or `2:03`.
pub(crate) fn clock(seconds: f64) -> String {
    let seconds = if seconds.is_finite() { seconds.round() as u64 } else { 0 };
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(size(999), "999 B");
        assert_eq!(size(1_500_000), "1.5 MB");
        assert_eq!((scale_text(65536.0), scale_text(2.5e11)), ("65536".to_owned(), "2.50e11".to_owned()));
        assert_eq!(clock(59.6), "1:00");
        assert_eq!(clock(3723.0), "1:02:03");
    }
}
