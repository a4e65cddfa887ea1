//! Progress of a sweep: lines with the number of the run.

use std::collections::HashSet;

use sepal_pipeline::{Event, SweepEvent, SweepObserver};
use sepal_track::{MemberRecord, MemberState, StepRecord};

use crate::console::evaluation_line;
use crate::downloads::Downloads;

/// Approximate number of lines on the steps of a run.
const STEP_LINES: u64 = 5;

pub(crate) struct SweepConsole {
    downloads: Downloads,
    runs: usize,
    /// Runs that have ended.
    ended: HashSet<usize>,
    /// Total steps of each run.
    steps: Vec<u64>,
    /// Lines that are alike for all runs, each printed once.
    common: HashSet<String>,
}

impl SweepConsole {
    pub(crate) fn new(runs: usize) -> Self {
        let (ended, common) = (HashSet::new(), HashSet::new());
        Self { downloads: Downloads::default(), runs, ended, steps: vec![0; runs], common }
    }

    fn run_line(&self, member: usize, text: &str) {
        self.downloads.line(&format!("[{:>width$}] {text}", member + 1, width = self.runs.to_string().len()));
    }

    fn run_event(&mut self, member: usize, event: Event<'_>) {
        match event {
            // A warning is about the options of its run.
            Event::Notice(text) if text.starts_with("warning") => self.run_line(member, text),
            Event::Notice(text) if self.common.insert(text.to_owned()) => self.downloads.line(text),
            Event::Fetch(event) => self.downloads.event(event),
            Event::Started { total_steps, done, .. } => {
                self.steps[member] = total_steps;
                let from = if done > 0 { format!(" from step {}", done + 1) } else { String::new() };
                self.run_line(member, &format!("training for {total_steps} steps{from}"));
            }
            Event::Step(record) => self.step(member, record),
            Event::Evaluated { record, headline } => self.run_line(member, &evaluation_line(record, headline)),
            _ => {}
        }
    }

    fn step(&self, member: usize, record: &StepRecord) {
        let (step, total) = (record.step, self.steps[member]);
        let every = (total / STEP_LINES).max(1);
        if step.is_multiple_of(every) && step < total {
            self.run_line(member, &format!("step {step}/{total} loss {:.4}", record.loss));
        }
    }

    fn changed(&mut self, member: usize, record: &MemberRecord) {
        let state = record.state;
        match state {
            MemberState::Running => self.run_line(member, &record.label()),
            MemberState::Paused => {
                let measured = record.measured.last().map(|best| format!(": {} {:.4}", best.metric, best.value));
                self.run_line(member, &format!("paused for a selection{}", measured.unwrap_or_default()));
            }
            MemberState::Finished | MemberState::Failed | MemberState::Stopped => {
                self.ended.insert(member);
                let error = record.error.as_ref().map(|error| format!(" to {error}")).unwrap_or_default();
                let count = format!("{} of {} runs have ended", self.ended.len(), self.runs);
                self.run_line(member, &format!("{}{error} ({count})", state.word()));
            }
            MemberState::Interrupted => self.run_line(member, state.word()),
            MemberState::Waiting => {}
        }
    }
}

impl SweepObserver for SweepConsole {
    fn event(&mut self, event: SweepEvent<'_>) {
        match event {
            SweepEvent::Notice(text) => self.downloads.line(text),
            SweepEvent::Run { member, event } => self.run_event(member, event),
            SweepEvent::Changed { member, record } => self.changed(member, record),
            _ => {}
        }
    }
}
