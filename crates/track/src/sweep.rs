//! State of a sweep: the runs in its folder and what became of them.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::manifest::ReadError;
use crate::{BestEvaluation, WriteError, write_atomic};

/// Most runs of a sweep that is read, several times those of any.
const MAX_RUNS: usize = 4096;

/// Contents of `sweep.json`: runs of one pipeline with different values of some keys. Their folders are beside the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SweepRecord {
    /// Name of the pipeline.
    pub name: String,
    /// Start time in RFC 3339.
    pub started: String,
    /// Wall time of all processes of the sweep, in seconds.
    pub seconds: f64,
    /// Runs, in the order of the sweep.
    pub runs: Vec<MemberRecord>,
    /// Indices of the runs that continued after each selection so far.
    pub selections: Vec<Vec<usize>>,
}

/// One run of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// Name of the run's folder.
    pub folder: String,
    /// Values in which the runs differ.
    pub settings: Vec<SettingRecord>,
    /// Digest of the options that affect the result.
    pub digest: String,
    /// State.
    pub state: MemberState,
    /// Error of a failed run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Measurements at the selections.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measured: Vec<BestEvaluation>,
}

/// Failed runs of a sweep that have the same error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedRuns<'a> {
    /// The error, which continues "failed to ..".
    pub error: &'a str,
    /// Names of the folders of the runs.
    pub folders: Vec<&'a str>,
}

impl FailedRuns<'_> {
    /// Names of the first five runs, and the number of the others.
    pub fn names(&self) -> String {
        const NAMED: usize = 5;
        match self.folders.len().saturating_sub(NAMED) {
            0 => self.folders.join(", "),
            more => format!("{} and {more} more", self.folders[..NAMED].join(", ")),
        }
    }
}

/// Value of a key in one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SettingRecord {
    /// Path of the key.
    pub key: String,
    /// Value.
    pub value: Value,
    /// Value as short text.
    pub text: String,
    /// True for seeds. Runs that differ in seeds only are repetitions.
    pub is_seed: bool,
}

/// State of a run in a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// Not yet started.
    Waiting,
    /// Started by a process that still works on it, or was killed.
    Running,
    /// Measured, and waits for a selection or for its next steps.
    Paused,
    /// Ended by a selection.
    Stopped,
    /// Interrupted by the user.
    Interrupted,
    /// Complete.
    Finished,
    /// Ended by an error.
    Failed,
}

impl MemberState {
    /// State as a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped early",
            Self::Interrupted => "interrupted",
            Self::Finished => "finished",
            Self::Failed => "failed",
        }
    }
}

impl MemberRecord {
    /// Settings in which repetitions are alike, as text.
    pub fn group(&self) -> String {
        self.describe(|setting| !setting.is_seed)
    }

    /// All settings as text.
    pub fn label(&self) -> String {
        self.describe(|_| true)
    }

    fn describe(&self, is_shown: impl Fn(&SettingRecord) -> bool) -> String {
        let shown = self.settings.iter().filter(|setting| is_shown(setting));
        let texts: Vec<String> = shown.map(|setting| format!("{} {}", setting.key, setting.text)).collect();
        if texts.is_empty() { "the pipeline".to_owned() } else { texts.join(", ") }
    }
}

impl SweepRecord {
    const FILE: &str = "sweep.json";

    /// True if `folder` is that of a sweep.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(Self::FILE).is_file()
    }

    /// True if nothing is left to do for a run: it is finished, or a selection ended it. A failed run is tried again unless a
    /// selection has left it out.
    pub fn is_over(&self, run: usize) -> bool {
        match self.runs[run].state {
            MemberState::Finished | MemberState::Stopped => true,
            MemberState::Failed => self.selections.last().is_some_and(|selected| !selected.contains(&run)),
            MemberState::Waiting | MemberState::Running | MemberState::Paused | MemberState::Interrupted => false,
        }
    }

    /// Different errors of the failed runs, in the order of the sweep.
    pub fn failures(&self) -> Vec<FailedRuns<'_>> {
        let mut failures: Vec<FailedRuns<'_>> = Vec::new();
        for run in self.runs.iter().filter(|run| run.state == MemberState::Failed) {
            let (error, folder) = (run.error.as_deref().unwrap_or("run"), run.folder.as_str());
            match failures.iter_mut().find(|failed| failed.error == error) {
                Some(failed) => failed.folders.push(folder),
                None => failures.push(FailedRuns { error, folders: vec![folder] }),
            }
        }
        failures
    }

    /// Reads the state of the sweep in `folder`.
    ///
    /// # Errors
    /// [`ReadError`] if the file is missing or invalid.
    pub fn read(folder: &Path) -> Result<Self, ReadError> {
        let path = folder.join(Self::FILE);
        let read = || -> io::Result<Self> {
            let record: Self = serde_json::from_slice(&sepal_machine::regular::read(&path)?)?;
            record.check().map_err(|problem| io::Error::new(io::ErrorKind::InvalidData, problem))?;
            Ok(record)
        };
        read().map_err(|source| ReadError { path: path.clone(), source })
    }

    /// Checks the names of folders, since runs are written there, and the numbers of runs.
    fn check(&self) -> Result<(), String> {
        let is_name = |folder: &str| Path::new(folder).file_name().is_some_and(|name| name == folder);
        let n_runs = self.runs.len();
        if n_runs > MAX_RUNS {
            return Err(format!("it has {n_runs} runs, expected at most {MAX_RUNS}"));
        }
        if let Some(MemberRecord { folder, .. }) = self.runs.iter().find(|run| !is_name(&run.folder)) {
            return Err(format!("the folder of a run is `{folder}`, expected the name of a folder beside it"));
        }
        match self.selections.iter().flatten().find(|run| **run >= n_runs) {
            Some(run) => Err(format!("a selection has the run {run}, but there are {n_runs}")),
            None => Ok(()),
        }
    }

    /// Writes the file atomically.
    ///
    /// # Errors
    /// [`WriteError`] if the write fails; the previous file stays.
    pub fn save(&self, folder: &Path) -> Result<(), WriteError> {
        let path = folder.join(Self::FILE);
        let text = serde_json::to_vec_pretty(self);
        let mut text = text.map_err(|error| WriteError { path: path.clone(), source: error.into() })?;
        text.push(b'\n');
        write_atomic(&path, &text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn setting(key: &str, value: Value) -> SettingRecord {
        let (text, is_seed) = (value.to_string(), key.ends_with("seed"));
        SettingRecord { key: key.to_owned(), value, text, is_seed }
    }

    #[test]
    fn failed_runs_with_the_same_error_are_named_together() {
        let run = |(number, error): (usize, Option<&str>)| MemberRecord {
            folder: format!("00{number}"),
            settings: Vec::new(),
            digest: String::new(),
            state: if error.is_some() { MemberState::Failed } else { MemberState::Finished },
            error: error.map(str::to_owned),
            measured: Vec::new(),
        };
        let failed = |errors: &[Option<&str>]| {
            let runs = errors.iter().copied().enumerate().map(run).collect();
            let (name, started) = ("demo".to_owned(), String::new());
            let record = SweepRecord { name, started, seconds: 0.0, runs, selections: Vec::new() };
            let line = |failed: &FailedRuns<'_>| format!("{}: {}", failed.names(), failed.error);
            record.failures().iter().map(line).collect::<Vec<_>>()
        };
        let (first, second) = (Some("read x"), Some("write y"));
        assert_eq!(failed(&[first, None, second, first]), ["000, 003: read x", "002: write y"]);
        assert_eq!(failed(&[first; 8]), ["000, 001, 002, 003, 004 and 3 more: read x"]);
        assert!(failed(&[None]).is_empty());
    }

    #[test]
    fn saved_sweep_reads_as_itself() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(!SweepRecord::is_in(folder.path()) && SweepRecord::read(folder.path()).is_err());
        let run = MemberRecord {
            folder: "001-lr=0.1-seed=0".to_owned(),
            settings: vec![setting("optimizer.with.lr", json!(0.1)), setting("train.seed", json!(0))],
            digest: "d".to_owned(),
            state: MemberState::Paused,
            error: None,
            measured: vec![BestEvaluation { step: 50, metric: "accuracy".to_owned(), value: 0.5 }],
        };
        assert_eq!(run.group(), "optimizer.with.lr 0.1");
        assert_eq!(run.label(), "optimizer.with.lr 0.1, train.seed 0");
        let record = SweepRecord {
            name: "demo".to_owned(),
            started: "2026-11-30T10:00:00+00:00".to_owned(),
            seconds: 1.5,
            runs: vec![run],
            selections: vec![vec![0]],
        };
        record.save(folder.path()).expect("written");
        assert_eq!(SweepRecord::read(folder.path()).expect("read"), record);
        let refused = |change: fn(&mut SweepRecord), expected: &str| {
            let mut changed = record.clone();
            change(&mut changed);
            changed.save(folder.path()).expect("written");
            let error = SweepRecord::read(folder.path()).expect_err(expected).source.to_string();
            assert!(error.contains(expected), "{error}");
        };
        let no_name = "expected the name of a folder";
        refused(|record| record.runs[0].folder = "../outside".to_owned(), no_name);
        refused(|record| record.runs[0].folder = "/outside".to_owned(), no_name);
        refused(|record| record.runs[0].folder = String::new(), no_name);
        refused(|record| record.selections.push(vec![0, 1]), "a selection has the run 1, but there are 1");
        refused(|record| record.runs = vec![record.runs[0].clone(); MAX_RUNS + 1], "it has 4097 runs");
    }
}
