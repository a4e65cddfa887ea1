//! The numbers of a run by the names under which all trackers show them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{EvaluationRecord, StepRecord};

/// A step's numbers; those that are not finite (of a step that was skipped) are left out.
pub(crate) fn of_step(record: &StepRecord) -> Vec<(String, f64)> {
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
    numbers
        .into_iter()
        .filter_map(|(name, value)| Some((format!("train/{name}"), value.filter(|value| value.is_finite())?)))
        .collect()
}

/// An evaluation's numbers; those that are not finite are left out.
pub(crate) fn of_evaluation(record: &EvaluationRecord) -> Vec<(String, f64)> {
    let own = [("loss", record.loss), ("seconds", record.seconds)];
    let metrics = record.metrics.iter().map(|(name, &value)| (&**name, value));
    own.into_iter()
        .chain(metrics)
        .filter(|(_, value)| value.is_finite())
        .map(|(name, value)| (format!("eval/{name}"), value))
        .collect()
}

/// Time since 1970.
pub(crate) fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::{evaluation, step};

    #[test]
    fn numbers_have_names_and_are_finite() {
        let of_made = of_step(&step(2));
        assert!(of_made.contains(&("train/loss".to_owned(), 0.5)));
        assert!(of_made.contains(&("train/tokens_per_second".to_owned(), 200.0)));
        let skipped = StepRecord { grad_norm: f64::NAN, seconds: 0.0, accuracy: None, ..step(2) };
        let left: Vec<String> = of_step(&skipped).into_iter().map(|(name, _)| name).collect();
        let without: Vec<String> =
            ["loss", "lr", "epoch", "seconds", "bytes_up", "bytes_down"].map(|n| format!("train/{n}")).into();
        assert_eq!(left, without);
        assert!(of_evaluation(&evaluation(2)).contains(&("eval/accuracy".to_owned(), 0.75)));
    }
}
