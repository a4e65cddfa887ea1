//! Progress of a run: a bar on a terminal, plain lines elsewhere.

use sepal_prepare::{Event, Observer};
use sepal_track::{EvaluationRecord, StepRecord};

use crate::downloads::Downloads;
use crate::probe_progress::ProbeProgress;
use crate::status_line::{StatusLine, bar};
use crate::units::{clock, grouped, scale_text};

/// Approximate number of plain lines in a run.
const PLAIN_LINES: u64 = 50;
/// Weight of the newest step in the moving averages of loss and accuracy.
const SMOOTHING: f64 = 0.1;

/// Prints the events of a run.
#[derive(Debug, Default)]
pub struct Console {
    downloads: Downloads,
    /// Line on a terminal, during the training.
    status: Option<StatusLine>,
    probe: Option<ProbeProgress>,
    total_steps: u64,
    /// Step of the checkpoint that the run resumed from.
    resumed_step: u64,
    steps: u64,
    tokens: u64,
    seconds: f64,
    loss: Option<f64>,
    accuracy: Option<f64>,
    scale: Option<f64>,
    skipped: u64,
}

impl Console {
    /// Prints a line above the bar.
    pub fn line(&self, text: &str) {
        match (&self.status, &self.probe) {
            (Some(status), _) => status.line(text),
            (None, Some(probe)) => probe.line(text),
            (None, None) => self.downloads.line(text),
        }
    }

    fn start(&mut self, total_steps: u64, done: u64, trainable: usize) {
        (self.total_steps, self.resumed_step) = (total_steps, done);
        let from = if done > 0 { format!(" from step {}", done + 1) } else { String::new() };
        self.line(&format!("training {} numbers for {total_steps} steps{from}", grouped(trainable as u64)));
        if total_steps > 0 {
            self.status = StatusLine::on_terminal();
            self.show(done, "");
        }
    }

    /// Shows a bar and a text in the line of the terminal, if there is one.
    fn show(&self, step: u64, text: &str) {
        if let Some(status) = &self.status {
            let total = self.total_steps;
            status.show(&format!("{} {step}/{total} {text}", bar(step, total)));
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
        let text = self.progress();
        if self.status.is_some() {
            return self.show(step, &text);
        }
        let every = (total / PLAIN_LINES).max(1);
        if step == 1 || step == total || step.is_multiple_of(every) {
            self.line(&format!("step {step}/{total} {text} lr {:.2e}", record.lr));
        }
    }

    fn progress(&self) -> String {
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
        let made = self.steps.saturating_sub(self.resumed_step).max(1);
        let left = self.seconds / made as f64 * (self.total_steps - self.steps.min(self.total_steps)) as f64;
        text.push_str(&format!(" {:.0} tokens/s, {} left", self.tokens as f64 / self.seconds, clock(left)));
        text
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
                self.show(self.steps.max(self.resumed_step), &format!("evaluating {done}/{total} rows"));
            }
            Event::Probing { what, number, last } => {
                self.probe.get_or_insert_with(ProbeProgress::new).show(what, number, last);
            }
            Event::Evaluated { record, headline } => {
                self.line(&evaluation_line(record, headline));
                if self.steps > self.resumed_step {
                    self.show(self.steps, &self.progress());
                }
            }
            _ => {}
        }
    }
}

const COLUMNS: usize = 80;

/// Metrics beside the headline, the most informative first.
const OTHERS: [&str; 10] =
    ["accuracy", "f1", "f1_macro", "spearman", "pearson", "exact_match", "mse", "mcc", "auroc", "r2"];

/// Formats an evaluation in one line: the headline, another metric, the loss, and the time if it fits.
pub fn evaluation_line(record: &EvaluationRecord, headline: &str) -> String {
    let metric = |name: &'static str| Some((name, *record.metrics.get(name)?));
    let text = |name: &str, value: f64| format!(" {name} {value:.4}");
    let mut line = format!("evaluated {} rows after step {}:", record.rows, record.step);
    let mut shown: Vec<(&str, f64)> =
        record.metrics.get(headline).map(|&value| (headline, value)).into_iter().collect();
    shown.iter().for_each(|&(name, value)| line.push_str(&text(name, value)));
    let loss = text("loss", record.loss);
    for (name, value) in OTHERS.into_iter().filter_map(metric) {
        // For more than two classes, `f1` and `f1_macro` are the same.
        let is_f1_again =
            |other: &str, number: f64| [name, other].iter().all(|name| name.starts_with("f1")) && number == value;
        let is_shown = shown.iter().any(|&(other, number)| other == name || is_f1_again(other, number));
        let more = text(name, value);
        if !is_shown && shown.len() < 2 && line.len() + more.len() + loss.len() <= COLUMNS {
            line.push_str(&more);
            shown.push((name, value));
        }
    }
    line.push_str(&loss);
    let seconds = format!(" ({:.1} s)", record.seconds);
    if line.len() + seconds.len() <= COLUMNS {
        line.push_str(&seconds);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(rows: usize, step: u64, metrics: &[(&str, f64)]) -> EvaluationRecord {
        let metrics = metrics.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        EvaluationRecord { rows, step, loss: 0.3512, seconds: 12.34, metrics, ..EvaluationRecord::default() }
    }

    #[test]
    fn evaluation_line_starts_with_the_headline() {
        let check = |rows, step, metrics: &[(&str, f64)], headline, expected: &str| {
            let line = evaluation_line(&record(rows, step, metrics), headline);
            assert_eq!(line, format!("evaluated {rows} rows after step {step}: {expected}"));
        };
        let f1 = [("f1", 0.913), ("f1/bad", 0.91), ("f1_macro", 0.9119), ("mcc", 0.8)];
        let binary = [&[("accuracy", 0.912), ("auroc", 0.971), ("ece", 0.05)][..], &f1].concat();
        let classes =
            [("accuracy", 0.8), ("auroc", 0.9), ("f1", 0.5), ("f1_macro", 0.5), ("mcc", 0.4), ("recall", 0.5)];
        let values = [("mae", 0.5), ("mse", 0.25), ("pearson", 0.9), ("r2", 0.8), ("spearman", 0.85)];
        check(8, 2, &binary, "accuracy", "accuracy 0.9120 f1 0.9130 loss 0.3512 (12.3 s)");
        check(872, 300, &binary, "accuracy", "accuracy 0.9120 f1 0.9130 loss 0.3512");
        check(872, 300, &classes, "f1_macro", "f1_macro 0.5000 accuracy 0.8000 loss 0.3512");
        check(9, 3, &classes, "f1_macro", "f1_macro 0.5000 accuracy 0.8000 loss 0.3512");
        check(9, 3, &classes, "loss", "accuracy 0.8000 f1 0.5000 loss 0.3512 (12.3 s)");
        check(9, 3, &values, "pearson", "pearson 0.9000 spearman 0.8500 loss 0.3512");
        check(9, 0, &[("own/score", 1.0)], "own/score", "own/score 1.0000 loss 0.3512 (12.3 s)");
        check(9, 0, &[], "loss", "loss 0.3512 (12.3 s)");
    }

    #[test]
    fn evaluation_with_large_numbers_fits_a_terminal() {
        let metrics = sepal_metrics::names().map(|name| (name, 0.5)).collect::<Vec<_>>();
        for headline in sepal_metrics::names() {
            let line = evaluation_line(&record(1_234_567, 1_000_000, &metrics), headline);
            assert!(line.len() <= COLUMNS && line.contains(headline), "{line}");
        }
    }
}
