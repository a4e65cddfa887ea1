use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Dynamic loss scaling (Micikevicius et al., arXiv 1710.03740, section 3.2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GradScalerConfig {
    /// Factor of the loss in the first step.
    #[schemars(range(max = 3.4e38), extend("exclusiveMinimum" = 0.0))]
    pub init_scale: f64,
    /// Factor of the scale after `growth_interval` consecutive steps with finite gradients.
    #[schemars(extend("exclusiveMinimum" = 1.0))]
    pub growth_factor: f64,
    /// Factor of the scale after a step that was skipped because of non-finite gradients.
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    pub backoff_factor: f64,
    /// Consecutive steps with finite gradients before the scale grows, at most 2^24 (fp32 counts exactly up to there).
    #[schemars(range(min = 1, max = 16_777_216))]
    pub growth_interval: u32,
}

impl Default for GradScalerConfig {
    /// PyTorch's defaults.
    fn default() -> Self {
        Self { init_scale: 65536.0, growth_factor: 2.0, backoff_factor: 0.5, growth_interval: 2000 }
    }
}
