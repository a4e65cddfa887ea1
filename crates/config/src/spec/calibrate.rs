use schemars::JsonSchema;
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
}
