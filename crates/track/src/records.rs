use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{WriteError, nullable};

/// One optimizer step, made or skipped.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Counted from 1.
    pub step: u64,
    /// Epochs finished, with the fraction of the current one.
    pub epoch: f64,
    /// Mean loss of the step's rows; of those that it is known of, if the step was skipped, and null without any.
    #[serde(deserialize_with = "nullable::number")]
    pub loss: f64,
    /// Share of the rows that the model had right, if they have a class each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Learning rate of the step.
    pub lr: f64,
    /// L2 norm of all gradients before clipping, without the scale; null in a step that was skipped.
    #[serde(deserialize_with = "nullable::number")]
    pub grad_norm: f64,
    /// What the loss was multiplied by, if it was scaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Where gradients overflowed, so that the step was skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// Steps skipped so far, if the loss is scaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped_steps: Option<u64>,
    /// Rows of the step.
    pub rows: usize,
    /// Tokens of those rows, without prompts.
    pub tokens: usize,
    /// Wall time, in seconds.
    pub seconds: f64,
    /// Bytes sent to servers.
    pub bytes_up: u64,
    /// Bytes received from servers.
    pub bytes_down: u64,
}

/// One pass over the validation rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// Optimizer steps made before it.
    pub step: u64,
    /// Mean loss of the rows.
    #[serde(deserialize_with = "nullable::number")]
    pub loss: f64,
    /// The task's metrics by name.
    #[serde(deserialize_with = "nullable::numbers")]
    pub metrics: BTreeMap<String, f64>,
    /// Rows of the pass.
    pub rows: usize,
    /// Tokens of those rows, without prompts.
    pub tokens: usize,
    /// Wall time, in seconds.
    pub seconds: f64,
    /// Bytes sent to servers.
    pub bytes_up: u64,
    /// Bytes received from servers.
    pub bytes_down: u64,
}

/// `metrics.jsonl`: one JSON object per line, told apart by `kind`.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

#[derive(Serialize)]
struct Line<'a, T> {
    kind: &'a str,
    #[serde(flatten)]
    record: &'a T,
}

impl MetricsLog {
    pub(crate) fn open(path: PathBuf) -> Result<Self, WriteError> {
        match File::options().create(true).append(true).open(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(WriteError { path, source }),
        }
    }

    /// Appends a step.
    ///
    /// # Errors
    /// [`WriteError`] if the system refuses.
    pub fn step(&mut self, record: &StepRecord) -> Result<(), WriteError> {
        self.append("step", record)
    }

    /// Appends an evaluation.
    ///
    /// # Errors
    /// [`WriteError`] if the system refuses.
    pub fn evaluation(&mut self, record: &EvaluationRecord) -> Result<(), WriteError> {
        self.append("evaluation", record)
    }

    fn append(&mut self, kind: &str, record: &impl Serialize) -> Result<(), WriteError> {
        let mut append = || {
            let mut line = serde_json::to_vec(&Line { kind, record })?;
            line.push(b'\n');
            // One write per line: a reader never sees half of one.
            self.file.write_all(&line)
        };
        append().map_err(|source| WriteError { path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_json_and_say_their_kind() {
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
}
