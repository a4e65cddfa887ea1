use schemars::JsonSchema;
use sepal_core::{LabelKind, Task};
use serde::{Deserialize, Serialize};

/// Fit of the trained classifier's probabilities and decisions on the validation rows.
///
/// The results are kept with the run, and predictions use them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CalibrateSpec {
    /// Fits a temperature: probabilities are those of the logits divided by it.
    pub temperature: bool,
    /// Fits the least probability of a predicted label: of each label where rows have any number of them, and of the second
    /// label where there are two.
    pub thresholds: Option<ThresholdGoal>,
}

/// Measure that thresholds make largest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ThresholdGoal {
    /// F1 of the label.
    F1,
}

impl CalibrateSpec {
    /// True if nothing is fitted.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Checks that a task has such a fit.
    ///
    /// # Errors
    /// [`UnfittableTask`].
    pub fn check(self, task: &Task) -> Result<(), UnfittableTask> {
        let (kind, n_labels) = (task.kind(), task.labels().len());
        let has_probabilities = matches!(kind, LabelKind::Class | LabelKind::Multi);
        if self.temperature && !has_probabilities {
            return Err(UnfittableTask::Temperature { kind });
        }
        let has_thresholds = kind == LabelKind::Multi || kind == LabelKind::Class && n_labels == 2;
        if self.thresholds.is_some() && !has_thresholds {
            return Err(UnfittableTask::Thresholds { kind, n_labels });
        }
        Ok(())
    }
}

/// A task that has no such fit.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum UnfittableTask {
    /// Task without probabilities of labels.
    #[error("fit a temperature (`calibrate.temperature`): expected one or several labels per row, the task has {kind}")]
    Temperature { kind: LabelKind },
    /// Task whose decisions have no threshold.
    #[error(
        "fit thresholds (`calibrate.thresholds`): expected any number of labels per row, or one of two; the task has {kind}, of \
         {n_labels}"
    )]
    Thresholds { kind: LabelKind, n_labels: usize },
}
