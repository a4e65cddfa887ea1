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
    notices: Notices,
}

/// Notices of runs, of which many are the same for all runs until their training begins.
#[derive(Default)]
struct Notices {
    /// Runs whose training has begun.
    training: HashSet<usize>,
    /// Notices before the training.
    printed: HashSet<String>,
}

impl Notices {
    /// Adds a notice of a run. False if it comes before the training and equals an earlier one of any run.
    fn insert(&mut self, member: usize, text: &str) -> bool {
        self.training.contains(&member) || self.printed.insert(text.to_owned())
    }
}

impl SweepConsole {
    pub(crate) fn new(runs: usize) -> Self {
        let (ended, notices) = (HashSet::new(), Notices::default());
        Self { downloads: Downloads::default(), runs, ended, steps: vec![0; runs], notices }
    }

    fn run_line(&self, member: usize, text: &str) {
        self.downloads.line(&format!("[{:>width$}] {text}", member + 1, width = self.runs.to_string().len()));
    }

    fn run_event(&mut self, member: usize, event: Event<'_>) {
        match event {
            Event::Notice(text) => self.notice(member, text),
            Event::Fetch(event) => self.downloads.event(event),
            Event::Started { total_steps, done, .. } => {
                self.steps[member] = total_steps;
                self.notices.training.insert(member);
                let from = if done > 0 { format!(" from step {}", done + 1) } else { String::new() };
                self.run_line(member, &format!("training for {total_steps} steps{from}"));
            }
            Event::Step(record) => self.step(member, record),
            Event::Evaluated { record, headline } => self.run_line(member, &evaluation_line(record, headline)),
            _ => {}
        }
    }

    fn notice(&mut self, member: usize, text: &str) {
        if self.notices.insert(member, text) {
            self.run_line(member, text);
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
            MemberState::Running => {
                // A run that continues is prepared again.
                self.notices.training.remove(&member);
                self.run_line(member, &record.label());
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notice_before_training_that_was_printed_is_left_out() {
        let mut notices = Notices::default();
        let mut printed = |text: &str| [0, 1, 2, 0].map(|member| notices.insert(member, text));
        assert_eq!(printed("blocks 0:4 in this process"), [true, false, false, false]);
        assert_eq!(printed("data: 8 training rows"), [true, false, false, false]);
        assert_eq!(printed("data: 4 training rows"), [true, false, false, false]);
    }

    #[test]
    fn notice_in_training_is_printed_for_each_run() {
        let mut console = SweepConsole::new(2);
        let text = "no checkpoint: the disk is full";
        for member in [0, 1] {
            console.run_event(member, Event::Started { total_steps: 8, done: 0, trainable: 1 });
            assert_eq!([0; 2].map(|_| console.notices.insert(member, text)), [true; 2]);
        }
        let mut record = MemberRecord {
            folder: "001".to_owned(),
            settings: Vec::new(),
            digest: String::new(),
            state: MemberState::Running,
            error: None,
            measured: Vec::new(),
        };
        console.changed(0, &record);
        assert_eq!([0; 2].map(|_| console.notices.insert(0, text)), [true, false], "it is prepared again");
        record.state = MemberState::Finished;
        console.changed(1, &record);
        assert!(console.notices.insert(1, text), "the other run is still past its preparation");
    }
}
