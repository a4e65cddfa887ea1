//! Problems of the runs of a sweep, each reported once.

use super::settings::{Setting, below};
use crate::diagnose::Finding;
use crate::layers::{Layer, Merged};
use crate::path::{KeyPath, Segment};
use crate::problem::Problem;

#[derive(Default)]
pub(super) struct MemberProblems(Vec<MemberProblem>);

struct MemberProblem {
    finding: Finding,
    /// Place in the sweep of the value with the problem; `None` if the sweep does not set the key.
    place: Option<KeyPath>,
    /// First run with the problem, and its settings.
    run: usize,
    settings: String,
    /// Number of runs with the problem.
    runs: usize,
}

impl MemberProblems {
    /// Adds a problem of the run with this index.
    pub(super) fn add(&mut self, run: usize, settings: &[Setting], finding: Finding) {
        let key = dotted(&finding.key);
        let is_about =
            |setting: &&Setting| key == setting.key || below(&key, &setting.key) || below(&setting.key, &key);
        let place = settings.iter().find(is_about).map(|setting| setting.place.clone());
        match self.0.iter_mut().find(|known| known.finding == finding && known.place == place) {
            Some(known) => known.runs += 1,
            None => {
                let settings = settings.iter().map(Setting::describe).collect::<Vec<_>>().join(", ");
                self.0.push(MemberProblem { finding, place, run, settings, runs: 1 });
            }
        }
    }

    /// The problems, with the run unless all `count` runs have them for a key outside of the sweep.
    pub(super) fn into_problems(self, count: usize, merged: &Merged, layers: &[Layer]) -> Vec<Problem> {
        let problem = |problem: MemberProblem| {
            let MemberProblem { finding: Finding { key, message, suggestion }, place, run, settings, runs } = problem;
            let origin = merged.origin_of(place.as_ref().unwrap_or(&key), layers);
            let others = match runs - 1 {
                0 => String::new(),
                1 => " and one more".to_owned(),
                others => format!(" and {others} more"),
            };
            let settings = if settings.is_empty() { String::new() } else { format!(": {settings}") };
            let message = match place.is_none() && runs == count {
                true => message,
                false => format!("{message} (run {}{others}{settings})", run + 1),
            };
            Problem { origin, key, message, suggestion }
        };
        self.0.into_iter().map(problem).collect()
    }
}

/// Path as a setting writes it: `tuning.0.with`.
fn dotted(path: &KeyPath) -> String {
    let text = |segment: &Segment| match segment {
        Segment::Key(key) => key.clone(),
        Segment::Index(index) => index.to_string(),
    };
    path.segments().iter().map(text).collect::<Vec<_>>().join(".")
}
