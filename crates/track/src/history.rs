use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{EvaluationRecord, StepRecord};

/// Records of `metrics.jsonl` in the order of the steps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// Optimizer steps, each number once.
    pub steps: Vec<StepRecord>,
    /// Evaluations, at most one after each step.
    pub evaluations: Vec<EvaluationRecord>,
    /// Number of lines that are not a record, as the last line of a killed run may be.
    pub broken_lines: usize,
}

/// Unreadable `metrics.jsonl`.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("read {}", path.display())]
pub struct HistoryError {
    pub path: PathBuf,
    pub source: io::Error,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Record {
    Step(StepRecord),
    Evaluation(EvaluationRecord),
}

impl History {
    /// Reads a `metrics.jsonl`.
    ///
    /// A resumed run writes steps again: the later line of a step replaces it and all later records. Null is read as
    /// NaN, unknown fields are ignored, and unreadable lines are counted.
    ///
    /// # Errors
    /// [`HistoryError`] if the file is missing or unreadable.
    pub fn read(path: &Path) -> Result<Self, HistoryError> {
        let failed = |source| HistoryError { path: path.to_owned(), source };
        let mut history = Self::default();
        for line in BufReader::new(sepal_machine::regular::open(path).map_err(failed)?).split(b'\n') {
            let line = line.map_err(failed)?;
            if line.trim_ascii().is_empty() {
                continue;
            }
            match serde_json::from_slice(&line) {
                Ok(record) => history.push(record),
                Err(_) => history.broken_lines += 1,
            }
        }
        Ok(history)
    }

    fn push(&mut self, record: Record) {
        match record {
            Record::Step(step) => {
                self.steps.truncate(self.steps.partition_point(|earlier| earlier.step < step.step));
                self.drop_evaluations_from(step.step);
                self.steps.push(step);
            }
            Record::Evaluation(evaluation) => {
                self.drop_evaluations_from(evaluation.step);
                self.evaluations.push(evaluation);
            }
        }
    }

    fn drop_evaluations_from(&mut self, step: u64) {
        self.evaluations.truncate(self.evaluations.partition_point(|earlier| earlier.step < step));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::RunFolder;

    fn step(step: u64, loss: f64) -> StepRecord {
        StepRecord { step, loss, ..StepRecord::default() }
    }

    fn evaluation(step: u64, accuracy: f64) -> EvaluationRecord {
        let metrics = BTreeMap::from([("accuracy".to_owned(), accuracy)]);
        EvaluationRecord { step, metrics, ..EvaluationRecord::default() }
    }

    #[test]
    fn read_returns_written_records() {
        let parent = tempfile::tempdir().expect("a folder");
        let run = RunFolder::create(parent.path(), "run").expect("a run folder");
        let mut log = run.metrics().expect("opened");
        let full = StepRecord {
            accuracy: Some(0.5),
            scale: Some(1024.0),
            skipped: Some("head".to_owned()),
            skipped_steps: Some(1),
            ..step(1, 0.25)
        };
        log.step(&full).expect("written");
        log.step(&step(2, f64::NAN)).expect("written");
        log.evaluation(&evaluation(2, f64::INFINITY)).expect("written");
        let history = History::read(&run.path().join("metrics.jsonl")).expect("read");
        assert_eq!((history.steps.len(), history.broken_lines), (2, 0));
        assert_eq!(history.steps[0], full);
        assert!(history.steps[1].loss.is_nan() && history.evaluations[0].metrics["accuracy"].is_nan());
    }

    #[test]
    fn later_line_of_step_wins() {
        let mut history = History::default();
        for number in 1..=5 {
            history.push(Record::Step(step(number, 1.0)));
        }
        history.push(Record::Evaluation(evaluation(2, 0.1)));
        history.push(Record::Evaluation(evaluation(5, 0.2)));
        // The run resumes from the checkpoint after step 2 and is stopped after step 3.
        history.push(Record::Step(step(3, 0.5)));
        let losses: Vec<(u64, f64)> = history.steps.iter().map(|step| (step.step, step.loss)).collect();
        assert_eq!(losses, [(1, 1.0), (2, 1.0), (3, 0.5)]);
        assert_eq!(history.evaluations, [evaluation(2, 0.1)]);
        history.push(Record::Evaluation(evaluation(2, 0.3)));
        assert_eq!(history.evaluations, [evaluation(2, 0.3)]);
    }

    #[test]
    fn read_counts_broken_lines() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metrics.jsonl");
        let line = r#"{"kind":"evaluation","step":1,"loss":null,"metrics":{},"rows":1,"tokens":1,"seconds":1.0,"bytes_up":0,"bytes_down":0,"new":[]}"#;
        std::fs::write(&path, format!("{line}\n\n\u{fffd}{{}}\n{{\"kind\":\"st")).expect("written");
        let history = History::read(&path).expect("read");
        assert_eq!((history.evaluations.len(), history.broken_lines), (1, 2));
        assert!(History::read(&folder.path().join("nothing")).is_err());
    }
}
