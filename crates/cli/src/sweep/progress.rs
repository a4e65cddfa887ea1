//! Progress of a sweep: lines with the number of the run.

use std::collections::{HashMap, HashSet};

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

/// Subjects of which runs mostly say the same.
const SUBJECTS: [&str; 3] = ["model: ", "data: ", "blocks"];

/// Notices of runs on model, data and blocks. Those of the first run stand for all runs.
#[derive(Default)]
struct Notices {
    /// First run that said something of each subject.
    first: HashMap<&'static str, usize>,
    /// Known lines: of all runs, or of one of them.
    known: HashSet<(Option<usize>, String)>,
}

/// Runs that a notice is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    All,
    One,
    /// It was printed before.
    Known,
}

impl Notices {
    fn scope(&mut self, member: usize, text: &str) -> Scope {
        let Some(subject) = SUBJECTS.into_iter().find(|subject| text.starts_with(*subject)) else { return Scope::One };
        if self.known.contains(&(None, text.to_owned())) {
            return Scope::Known;
        }
        let is_first = *self.first.entry(subject).or_insert(member) == member;
        let (run, scope) = if is_first { (None, Scope::All) } else { (Some(member), Scope::One) };
        if self.known.insert((run, text.to_owned())) { scope } else { Scope::Known }
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
            Event::Notice(text) => match self.notices.scope(member, text) {
                Scope::All => self.downloads.line(text),
                Scope::One => self.run_line(member, text),
                Scope::Known => {}
            },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_of_one_run_have_its_number() {
        let mut notices = Notices::default();
        let mut scopes = |text: &str| [0, 1, 2].map(|member| notices.scope(member, text));
        assert_eq!(scopes("goes on after step 4"), [Scope::One; 3]);
        assert_eq!(scopes("goes on after step 4"), [Scope::One; 3], "a run may go on from one step twice");
        assert_eq!(scopes("warning: the learning rate still rises"), [Scope::One; 3]);
        assert_eq!(scopes("blocks 0:4 in this process"), [Scope::All, Scope::Known, Scope::Known]);
        let lines = ["data: 8 training rows", "data: 4 training rows"];
        let found = [(2, 0), (1, 1), (0, 1), (1, 1), (0, 0)].map(|(member, line)| notices.scope(member, lines[line]));
        assert_eq!(found, [Scope::All, Scope::One, Scope::One, Scope::Known, Scope::Known]);
    }
}
