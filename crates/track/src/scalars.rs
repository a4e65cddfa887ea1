//! Scalars of a run under the names that all trackers use.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{EvaluationRecord, StepRecord};

/// Scalars of a step; non-finite values (of a skipped step) are left out.
pub(crate) fn step_scalars(record: &StepRecord) -> Vec<(String, f64)> {
    let speed = record.tokens as f64 / record.seconds;
    let numbers = [
        ("loss", Some(record.loss)),
        ("accuracy", record.accuracy),
        ("lr", Some(record.lr)),
        ("grad_norm", Some(record.grad_norm)),
        ("epoch", Some(record.epoch)),
        ("tokens_per_second", Some(speed)),
        ("seconds", Some(record.seconds)),
        ("bytes_up", Some(record.bytes_up as f64)),
        ("bytes_down", Some(record.bytes_down as f64)),
        ("scale", record.scale),
        ("skipped_steps", record.skipped_steps.map(|steps| steps as f64)),
    ];
    let known = numbers.into_iter().filter_map(|(name, value)| Some((name, value.filter(|value| value.is_finite())?)));
    known.map(|(name, value)| (format!("train/{name}"), value)).collect()
}

/// Scalars of an evaluation; non-finite values are left out.
pub(crate) fn evaluation_scalars(record: &EvaluationRecord) -> Vec<(String, f64)> {
    let common = [("loss", record.loss), ("seconds", record.seconds)];
    let metrics = record.metrics.iter().map(|(name, &value)| (&**name, value));
    let finite = common.into_iter().chain(metrics).filter(|(_, value)| value.is_finite());
    finite.map(|(name, value)| (format!("eval/{name}"), value)).collect()
}

pub(crate) fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::{evaluation, step};

    #[test]
    fn scalars_are_named_and_finite() {
        let scalars = step_scalars(&step(2));
        assert!(scalars.contains(&("train/loss".to_owned(), 0.5)));
        assert!(scalars.contains(&("train/tokens_per_second".to_owned(), 200.0)));
        let skipped = StepRecord { grad_norm: f64::NAN, seconds: 0.0, accuracy: None, ..step(2) };
        let names: Vec<String> = step_scalars(&skipped).into_iter().map(|(name, _)| name).collect();
        let expected: Vec<String> =
            ["loss", "lr", "epoch", "seconds", "bytes_up", "bytes_down"].map(|n| format!("train/{n}")).into();
        assert_eq!(names, expected);
        assert!(evaluation_scalars(&evaluation(2)).contains(&("eval/accuracy".to_owned(), 0.75)));
    }
}
