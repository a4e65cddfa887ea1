use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use sepal_machine::durable;
use serde::{Deserialize, Serialize};

use crate::{WriteError, nullable};

/// Record of one optimizer step, made or skipped.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Number of the step, counted from 1.
    pub step: u64,
    /// Finished epochs, with the fraction of the current one.
    pub epoch: f64,
    /// Mean loss of the step's rows. In a skipped step it covers the rows with a known loss, and is null without any.
    #[serde(deserialize_with = "nullable::number")]
    pub loss: f64,
    /// Share of correctly predicted rows, if each row has one class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Learning rate of the step.
    pub lr: f64,
    /// L2 norm of all gradients before clipping, without the loss scale; null in a skipped step.
    #[serde(deserialize_with = "nullable::number")]
    pub grad_norm: f64,
    /// Loss scale, if the loss was scaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Place of the gradient overflow that caused a skipped step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// Number of skipped steps so far, if the loss is scaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped_steps: Option<u64>,
    /// Number of rows.
    pub rows: usize,
    /// Number of tokens of those rows, without prompts.
    pub tokens: usize,
    /// Wall time in seconds.
    pub seconds: f64,
    /// Bytes sent to servers.
    pub bytes_up: u64,
    /// Bytes received from servers.
    pub bytes_down: u64,
}

/// Record of one pass over the validation rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// Number of optimizer steps before it.
    pub step: u64,
    /// Mean loss of the rows; null if it is not finite.
    #[serde(deserialize_with = "nullable::number")]
    pub loss: f64,
    /// Metrics of the task by name.
    #[serde(deserialize_with = "nullable::numbers")]
    pub metrics: BTreeMap<String, f64>,
    /// Number of rows.
    pub rows: usize,
    /// Number of tokens of those rows, without prompts.
    pub tokens: usize,
    /// Wall time in seconds.
    pub seconds: f64,
    /// Bytes sent to servers.
    pub bytes_up: u64,
    /// Bytes received from servers.
    pub bytes_down: u64,
}

/// Append-only `metrics.jsonl`: one JSON object per line, with its `kind`.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

#[derive(Deserialize)]
struct LineHead {
    kind: String,
    step: u64,
}

#[derive(Serialize)]
struct Line<'a, T> {
    kind: &'a str,
    #[serde(flatten)]
    record: &'a T,
}

impl MetricsLog {
    pub(crate) fn open(path: PathBuf) -> Result<Self, WriteError> {
        let open = || {
            let file = File::options().create(true).read(true).append(true).open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(io::Error::other("another process uses this run")),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            durable::sync_folder(durable::folder_of(&path))?;
            Ok(file)
        };
        match open() {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(WriteError { path, source }),
        }
    }

    /// Removes the lines after step `steps`, and its own evaluation unless `is_evaluated`, because a resumed run writes
    /// them again; also half a line that a crash left.
    ///
    /// # Errors
    /// [`WriteError`] if the write fails.
    pub fn truncate_after(&mut self, steps: u64, is_evaluated: bool) -> Result<(), WriteError> {
        let last_evaluation = if is_evaluated { Some(steps) } else { steps.checked_sub(1) };
        let is_kept = |line: &str| {
            let head = line.ends_with('\n').then(|| serde_json::from_str::<LineHead>(line).ok()).flatten();
            head.is_some_and(|head| match head.kind.as_str() {
                "evaluation" => Some(head.step) <= last_evaluation,
                _ => head.step <= steps,
            })
        };
        let mut truncate = || {
            let mut text = Vec::new();
            self.file.seek(SeekFrom::Start(0))?;
            self.file.read_to_end(&mut text)?;
            let text = String::from_utf8_lossy(&text);
            let length: usize = text.split_inclusive('\n').take_while(|line| is_kept(line)).map(str::len).sum();
            self.file.set_len(length as u64)
        };
        truncate().map_err(|source| WriteError { path: self.path.clone(), source })
    }

    /// Syncs the appended lines to disk.
    ///
    /// # Errors
    /// [`WriteError`] if the write fails.
    pub fn sync(&self) -> Result<(), WriteError> {
        self.file.sync_data().map_err(|source| WriteError { path: self.path.clone(), source })
    }

    /// Appends a step.
    ///
    /// # Errors
    /// [`WriteError`] if the write fails.
    pub fn step(&mut self, record: &StepRecord) -> Result<(), WriteError> {
        self.append("step", record)
    }

    /// Appends an evaluation.
    ///
    /// # Errors
    /// [`WriteError`] if the write fails.
    pub fn evaluation(&mut self, record: &EvaluationRecord) -> Result<(), WriteError> {
        self.append("evaluation", record)
    }

    fn append(&mut self, kind: &str, record: &impl Serialize) -> Result<(), WriteError> {
        let mut append = || {
            let mut line = serde_json::to_vec(&Line { kind, record })?;
            line.push(b'\n');
            // One write per line, so that readers never see half a line.
            self.file.write_all(&line)
        };
        append().map_err(|source| WriteError { path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_json_with_kind() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(path.clone()).expect("opened");
        log.step(&StepRecord { step: 3, loss: 0.5, ..StepRecord::default() }).expect("written");
        let metrics = BTreeMap::from([("accuracy".to_owned(), 0.9)]);
        log.evaluation(&EvaluationRecord { step: 3, metrics, ..EvaluationRecord::default() }).expect("written");
        let text = std::fs::read_to_string(path).expect("read");
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!((lines[0]["kind"].as_str(), lines[0]["loss"].as_f64()), (Some("step"), Some(0.5)));
        assert_eq!(lines[1]["metrics"]["accuracy"].as_f64(), Some(0.9));
    }

    /// Writes steps 1 to 4 with evaluations after the even ones, truncates after `steps`, and compares the lines as
    /// `s1` and `e2`.
    fn check_truncate(steps: u64, is_evaluated: bool, expected: &str) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(path.clone()).expect("opened");
        for step in 1..=4 {
            log.step(&StepRecord { step, loss: f64::NAN, ..StepRecord::default() }).expect("written");
            if step % 2 == 0 {
                log.evaluation(&EvaluationRecord { step, ..EvaluationRecord::default() }).expect("written");
            }
        }
        log.file.write_all(b"{\"kind\":\"step\",\"st").expect("half a line");
        log.truncate_after(steps, is_evaluated).expect("cut");
        log.step(&StepRecord { step: 9, ..StepRecord::default() }).expect("written");
        let text = std::fs::read_to_string(path).expect("read");
        let heads = text.lines().map(|line| serde_json::from_str::<LineHead>(line).expect("a line"));
        let found: Vec<String> = heads.map(|head| format!("{}{}", &head.kind[..1], head.step)).collect();
        assert_eq!(found.join(" "), expected);
    }

    #[test]
    fn truncate_after_removes_later_lines() {
        check_truncate(4, true, "s1 s2 e2 s3 s4 e4 s9");
        check_truncate(4, false, "s1 s2 e2 s3 s4 s9");
        check_truncate(3, false, "s1 s2 e2 s3 s9");
        check_truncate(2, false, "s1 s2 s9");
        check_truncate(0, false, "s9");
    }

    #[test]
    fn metrics_log_is_locked() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metrics.jsonl");
        let first = MetricsLog::open(path.clone()).expect("opened");
        let error = MetricsLog::open(path.clone()).expect_err("taken");
        assert_eq!(error.source.to_string(), "another process uses this run");
        drop(first);
        MetricsLog::open(path).expect("free again");
    }
}
