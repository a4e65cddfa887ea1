//! Options of early stopping in a sweep.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Successive halving: runs that fall behind are stopped early. All runs train for `min_steps` steps and are evaluated. The
/// best `1 / factor` of them continue to `factor` times as many steps, and so on; the last ones run to their end. The
/// schedule of the learning rate is that of a whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HalvingSpec {
    /// Metric that decides the runs that continue: one of the task's metrics or `loss`; `evaluate.metric` if not given.
    pub metric: Option<String>,
    /// Ratio of the runs before and after each selection, and of their steps.
    #[schemars(range(min = 2, max = 100))]
    pub factor: u64,
    /// Optimizer steps of every run.
    #[schemars(range(min = 1))]
    pub min_steps: u64,
}

impl Default for HalvingSpec {
    fn default() -> Self {
        Self { metric: None, factor: 3, min_steps: 50 }
    }
}
