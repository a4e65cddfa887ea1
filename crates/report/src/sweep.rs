//! Sweeps: runs of one pipeline with different values, grouped by everything but seeds.

use std::path::{Path, PathBuf};

use sepal_track::{FailedRuns, MemberRecord, MemberState, Status, SweepRecord};

use crate::compare::{curves, head, options, results};
use crate::page::{Section, missing, page, paragraph};
use crate::parts::headline::{State, state};
use crate::read::{ReadError, Run};
use crate::statistics::Statistics;
use crate::table::{Cell, Table};
use crate::text;

/// Maximum number of groups or runs in a table.
const LISTED: usize = 200;

/// A sweep with the runs that have ended, also before their last step.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// Folder of the sweep.
    pub folder: PathBuf,
    /// State.
    pub record: SweepRecord,
    /// Contents of each run's folder, in the order of the record; none for a run that has not ended.
    pub runs: Vec<Option<Run>>,
}

/// Runs that differ in seeds only.
#[derive(Debug, Clone)]
pub struct Group {
    /// Their common settings as text.
    pub settings: String,
    /// Indices of all runs.
    pub runs: Vec<usize>,
    /// Statistics of the metric of the finished runs; none without one.
    pub statistics: Option<Statistics>,
    /// Mean wall time of the finished runs, in seconds.
    pub seconds: f64,
    /// Mean bytes to servers of the finished runs.
    pub sent: f64,
    /// Mean bytes from servers of the finished runs.
    pub received: f64,
}

impl Sweep {
    /// Reads the sweep in `folder`. Runs without a manifest are left out.
    ///
    /// # Errors
    /// [`ReadError::Sweep`] if the state is missing or invalid.
    pub fn read(folder: &Path) -> Result<Self, ReadError> {
        let record = SweepRecord::read(folder).map_err(ReadError::Sweep)?;
        let read = |run: &MemberRecord| {
            let mut run = Run::read(&folder.join(&run.folder)).ok()?;
            // Pages of several runs show no rows.
            run.predictions = None;
            Some(run)
        };
        let runs = record.runs.iter().map(read).collect();
        Ok(Self { folder: folder.to_owned(), record, runs })
    }

    /// Metric by which runs are compared: the one that selected the evaluation of the first finished run.
    pub fn metric(&self) -> Option<&str> {
        self.finished().find_map(|(_, run)| Some(run.manifest.best.as_ref()?.metric.as_str()))
    }

    /// True if larger values of the metric are better.
    pub fn larger_is_better(&self) -> bool {
        let goal = self.finished().find_map(|(_, run)| run.options.get("evaluate.goal"));
        match goal {
            Some("max") => true,
            Some("min") => false,
            _ => !text::less_is_better(self.metric().unwrap_or_default()),
        }
    }

    /// Value of the metric of a finished run.
    pub fn value(&self, index: usize) -> Option<f64> {
        let metric = self.metric()?;
        let (_, run) = self.finished().find(|&(number, _)| number == index)?;
        let best = run.manifest.best.as_ref().filter(|best| best.metric == metric).map(|best| best.value);
        best.or_else(|| run.manifest.metrics.get(metric).copied()).filter(|value| value.is_finite())
    }

    /// Groups of runs that differ in seeds only: the best mean first, then those without a finished run, each in the order
    /// of the sweep.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
        for (index, run) in self.record.runs.iter().enumerate() {
            let settings = run.group();
            match groups.iter_mut().find(|(known, _)| *known == settings) {
                Some((_, runs)) => runs.push(index),
                None => groups.push((settings, vec![index])),
            }
        }
        let mut groups: Vec<Group> = groups.into_iter().map(|(settings, runs)| self.group(settings, runs)).collect();
        let sign = if self.larger_is_better() { -1.0 } else { 1.0 };
        let rank = |group: &Group| group.statistics.map_or(f64::INFINITY, |statistics| sign * statistics.mean);
        groups.sort_by(|a, b| rank(a).total_cmp(&rank(b)));
        groups
    }

    /// Number of settings whose mean is the best one.
    pub fn n_best_settings(&self) -> usize {
        let means: Vec<f64> = self.groups().iter().filter_map(|group| Some(group.statistics?.mean)).collect();
        means.iter().take_while(|&mean| Some(mean) == means.first()).count()
    }

    /// Best run of the first of the settings with the best mean.
    pub fn best(&self) -> Option<usize> {
        let group = self.groups().into_iter().next()?;
        let best = group.statistics?.best;
        group.runs.into_iter().find(|&index| self.value(index) == Some(best))
    }

    fn group(&self, settings: String, runs: Vec<usize>) -> Group {
        let statistics = Statistics::new(runs.iter().filter_map(|&index| self.value(index)), self.larger_is_better());
        let finished: Vec<&Run> =
            self.finished().filter(|(index, _)| runs.contains(index)).map(|(_, run)| run).collect();
        let mean = |number: fn(&Run) -> f64| {
            finished.iter().map(|run| number(run)).sum::<f64>() / finished.len().max(1) as f64
        };
        let (seconds, sent) = (mean(|run| run.manifest.seconds), mean(|run| run.manifest.bytes.sent as f64));
        let received = mean(|run| run.manifest.bytes.received as f64);
        Group { settings, runs, statistics, seconds, sent, received }
    }

    fn finished(&self) -> impl Iterator<Item = (usize, &Run)> {
        let is_finished = move |index: &usize| self.record.runs[*index].state == MemberState::Finished;
        let run = move |index: usize| Some((index, self.runs[index].as_ref()?));
        (0..self.record.runs.len()).filter(is_finished).filter_map(run)
    }
}

/// Returns the page of a sweep as HTML.
pub fn sweep_page(sweep: &Sweep) -> String {
    let runs: Vec<Run> = sweep.runs.iter().flatten().cloned().collect();
    let ended = sweep.record.runs.iter().zip(&sweep.runs);
    let outcomes: Vec<State> = ended.filter_map(|(member, run)| Some(outcome(member, run.as_ref()?))).collect();
    let title = text::counted(sweep.record.runs.len() as u64, "run", "runs");
    let lead = format!("Sweep of {}, begun {}", text::cut(&sweep.record.name, 60), text::moment(&sweep.record.started));
    let sections = [
        Section::new("groups", "Settings", groups(sweep)),
        Section::new("members", "Runs", members(sweep)),
        Section::new("runs", "Results", results(&runs, &outcomes)),
        Section::new("curves", "Curves", curves(&runs)),
        Section::new("options", "Differences", options(&runs)),
    ];
    let foot = format!("Made by Sepal {} from {}.", env!("CARGO_PKG_VERSION"), sweep.folder.display());
    page(&format!("{} – Sepal sweep", sweep.record.name), &head(title, lead), &sections, &foot)
}

/// Outcome of a run that has ended. The record of the sweep tells a run that a selection stopped from one that the user
/// interrupted; the manifest of the run has `interrupted` for both.
fn outcome(member: &MemberRecord, run: &Run) -> State {
    match run.manifest.status {
        Status::Interrupted => State { word: member.state.word(), ..state(run) },
        _ => state(run),
    }
}

fn groups(sweep: &Sweep) -> Vec<String> {
    let Some(metric) = sweep.metric() else { return vec![missing("No run has finished with an evaluation.")] };
    let name = text::metric_name(metric);
    let head = ["Settings", "Runs", "Mean", "Deviation", "Best", "Time", "Sent", "Received"];
    let caption = format!("{name} of the finished runs of each setting, over its seeds; time and bytes are means");
    let mut table = Table::new(caption, &head);
    let groups = sweep.groups();
    let shown = |value: f64| text::metric(metric, value);
    let n_best = sweep.n_best_settings();
    let row = |(i, group): (usize, &Group)| {
        let statistics = group.statistics;
        let value = |value: Option<f64>| Cell::number(text::or_missing(value, shown));
        let mean = value(statistics.map(|found| found.mean));
        let is_best = i < n_best;
        let mean = if is_best { Cell { class: "n best", ..Cell::number(format!("★ {}", mean.text)) } } else { mean };
        let finished = statistics.map_or(0, |found| found.n);
        let runs = match group.runs.len() {
            all if all == finished => all.to_string(),
            all => format!("{finished} of {all}"),
        };
        vec![
            Cell::cut(&group.settings, 80),
            Cell::number(runs),
            mean,
            value(statistics.and_then(|found| found.deviation)),
            value(statistics.map(|found| found.best)),
            Cell::number(text::or_missing(statistics.map(|_| group.seconds), text::seconds)),
            Cell::number(text::or_missing(statistics.map(|_| group.sent), |sent| text::bytes(sent as u64))),
            Cell::number(text::or_missing(statistics.map(|_| group.received), |received| text::bytes(received as u64))),
        ]
    };
    table.rows = groups.iter().take(LISTED).enumerate().map(row).collect();
    let mut parts = vec![table.html()];
    if groups.len() > LISTED {
        parts.push(paragraph(&format!("The first {LISTED} of {} settings are listed.", groups.len())));
    }
    parts
}

fn members(sweep: &Sweep) -> Vec<String> {
    let head = ["Run", "Settings", "Outcome", "Value", "Steps", "Time"];
    let mut table = Table::new("All runs, in the order of the sweep", &head);
    table.head.iter_mut().take(3).for_each(|cell| cell.class = "");
    let row = |(index, member): (usize, &MemberRecord)| {
        let run = sweep.runs[index].as_ref();
        // Runs that were stopped early have the value of their last selection.
        let measured = member.measured.last().map(|best| text::metric(&best.metric, best.value));
        let value = sweep.value(index).zip(sweep.metric()).map(|(value, metric)| text::metric(metric, value));
        let steps = run.map(|run| text::count(run.manifest.steps));
        let time = run.map(|run| text::seconds(run.manifest.seconds));
        let or_missing = |text: Option<String>| Cell::number(text.unwrap_or_else(|| text::MISSING.to_owned()));
        vec![
            Cell::cut(&member.folder, 60),
            Cell::cut(&member.label(), 80),
            Cell::words(member.state.word()),
            or_missing(value.or(measured)),
            or_missing(steps),
            or_missing(time),
        ]
    };
    table.rows = sweep.record.runs.iter().enumerate().take(LISTED).map(row).collect();
    let failures = sweep.record.failures();
    let line = |failed: &FailedRuns<'_>| {
        missing(&format!("{} failed to {}", text::cut(&failed.names(), 400), text::cut(failed.error, 400)))
    };
    std::iter::once(table.html()).chain(failures.iter().take(20).map(line)).collect()
}
