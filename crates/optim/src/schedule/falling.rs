//! Warm-up, then a way down that is a formula of the step.

use std::f64::consts::PI;
use std::num::NonZeroUsize;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::warmup::rising;
use super::{Schedule, share_of};

/// Warm-up, then the full rate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConstantConfig {
    /// Steps over which the rate rises evenly from zero.
    pub warmup_steps: usize,
    /// Instead of `warmup_steps`: their share of the run's steps, rounded up.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub warmup_ratio: f64,
}

/// Transformers' `get_constant_schedule_with_warmup`.
#[derive(Debug, Clone)]
pub struct Constant {
    warmup_steps: usize,
}

impl Constant {
    /// With these options, for a run of `total_steps` optimizer steps.
    pub fn new(config: ConstantConfig, total_steps: usize) -> Self {
        Self { warmup_steps: share_of(total_steps, config.warmup_steps, config.warmup_ratio) }
    }
}

impl Schedule for Constant {
    fn factor(&self, step: usize) -> f64 {
        rising(step, self.warmup_steps).unwrap_or(1.0)
    }
}

/// Warm-up, then down evenly to zero at the end of the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LinearConfig {
    /// Steps over which the rate rises evenly from zero.
    pub warmup_steps: usize,
    /// Instead of `warmup_steps`: their share of the run's steps, rounded up.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub warmup_ratio: f64,
}

/// Transformers' `get_linear_schedule_with_warmup`.
#[derive(Debug, Clone)]
pub struct Linear {
    warmup_steps: usize,
    total_steps: usize,
}

impl Linear {
    /// With these options, for a run of `total_steps` optimizer steps.
    pub fn new(config: LinearConfig, total_steps: usize) -> Self {
        Self { warmup_steps: share_of(total_steps, config.warmup_steps, config.warmup_ratio), total_steps }
    }
}

impl Schedule for Linear {
    fn factor(&self, step: usize) -> f64 {
        let Self { warmup_steps, total_steps } = *self;
        let left = total_steps.saturating_sub(step) as f64;
        rising(step, warmup_steps).unwrap_or(left / falling_steps(warmup_steps, total_steps))
    }
}

/// Warm-up, then half a cosine down to zero at the end of the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CosineConfig {
    /// Steps over which the rate rises evenly from zero.
    pub warmup_steps: usize,
    /// Instead of `warmup_steps`: their share of the run's steps, rounded up.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub warmup_ratio: f64,
}

/// Transformers' `get_cosine_schedule_with_warmup` with its default of half a cycle. It rises again past
/// the end, as there.
#[derive(Debug, Clone)]
pub struct Cosine {
    warmup_steps: usize,
    total_steps: usize,
}

impl Cosine {
    /// With these options, for a run of `total_steps` optimizer steps.
    pub fn new(config: CosineConfig, total_steps: usize) -> Self {
        Self { warmup_steps: share_of(total_steps, config.warmup_steps, config.warmup_ratio), total_steps }
    }
}

impl Schedule for Cosine {
    fn factor(&self, step: usize) -> f64 {
        rising(step, self.warmup_steps).unwrap_or_else(|| half_cosine(done(step, self.warmup_steps, self.total_steps)))
    }
}

/// Warm-up, then several times half a cosine from the full rate down to zero.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CosineWithRestartsConfig {
    /// Steps over which the rate rises evenly from zero.
    pub warmup_steps: usize,
    /// Instead of `warmup_steps`: their share of the run's steps, rounded up.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub warmup_ratio: f64,
    /// How many times, all of the same length.
    pub cycles: NonZeroUsize,
}

impl Default for CosineWithRestartsConfig {
    /// Transformers' defaults.
    fn default() -> Self {
        Self { warmup_steps: 0, warmup_ratio: 0.0, cycles: NonZeroUsize::MIN }
    }
}

/// Transformers' `get_cosine_with_hard_restarts_schedule_with_warmup`.
#[derive(Debug, Clone)]
pub struct CosineWithRestarts {
    config: CosineWithRestartsConfig,
    warmup_steps: usize,
    total_steps: usize,
}

impl CosineWithRestarts {
    /// With these options, for a run of `total_steps` optimizer steps.
    pub fn new(config: CosineWithRestartsConfig, total_steps: usize) -> Self {
        let warmup_steps = share_of(total_steps, config.warmup_steps, config.warmup_ratio);
        Self { config, warmup_steps, total_steps }
    }
}

impl Schedule for CosineWithRestarts {
    fn factor(&self, step: usize) -> f64 {
        rising(step, self.warmup_steps).unwrap_or_else(|| {
            let done = done(step, self.warmup_steps, self.total_steps);
            if done >= 1.0 { 0.0 } else { half_cosine((self.config.cycles.get() as f64 * done) % 1.0) }
        })
    }
}

/// Warm-up, then down as a power of what is left of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PolynomialConfig {
    /// Steps over which the rate rises evenly from zero.
    pub warmup_steps: usize,
    /// Instead of `warmup_steps`: their share of the run's steps, rounded up.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub warmup_ratio: f64,
    /// The power: 1 goes down evenly, more goes down faster at first.
    #[schemars(range(min = 0.0))]
    pub power: f64,
    /// What is left of the rate at the end of the run.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub end_factor: f64,
}

impl Default for PolynomialConfig {
    /// Down evenly to zero.
    fn default() -> Self {
        Self { warmup_steps: 0, warmup_ratio: 0.0, power: 1.0, end_factor: 0.0 }
    }
}

/// Transformers' `get_polynomial_decay_schedule_with_warmup`, with `lr_end` as a factor.
#[derive(Debug, Clone)]
pub struct Polynomial {
    config: PolynomialConfig,
    warmup_steps: usize,
    total_steps: usize,
}

impl Polynomial {
    /// With these options, for a run of `total_steps` optimizer steps.
    pub fn new(config: PolynomialConfig, total_steps: usize) -> Self {
        let warmup_steps = share_of(total_steps, config.warmup_steps, config.warmup_ratio);
        Self { config, warmup_steps, total_steps }
    }
}

impl Schedule for Polynomial {
    fn factor(&self, step: usize) -> f64 {
        let Self { config: PolynomialConfig { power, end_factor, .. }, warmup_steps, total_steps } = self;
        rising(step, *warmup_steps).unwrap_or_else(|| {
            if step > *total_steps {
                return *end_factor;
            }
            let left = 1.0 - done(step, *warmup_steps, *total_steps);
            (1.0 - end_factor) * left.powf(*power) + end_factor
        })
    }
}

/// Warm-up, then down as one over the root of the steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InverseSqrtConfig {
    /// Steps over which the rate rises evenly from zero.
    pub warmup_steps: usize,
    /// Instead of `warmup_steps`: their share of the run's steps, rounded up.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub warmup_ratio: f64,
    /// After this many steps more the squared rate is half; as many as the warm-up has if not given, or 10,000 without one.
    pub timescale: Option<NonZeroUsize>,
}

/// Transformers' `get_inverse_sqrt_schedule`.
#[derive(Debug, Clone)]
pub struct InverseSqrt {
    config: InverseSqrtConfig,
    warmup_steps: usize,
}

impl InverseSqrt {
    /// With these options, for a run of `total_steps` optimizer steps.
    pub fn new(config: InverseSqrtConfig, total_steps: usize) -> Self {
        let warmup_steps = share_of(total_steps, config.warmup_steps, config.warmup_ratio);
        Self { config, warmup_steps }
    }
}

impl Schedule for InverseSqrt {
    fn factor(&self, step: usize) -> f64 {
        rising(step, self.warmup_steps).unwrap_or_else(|| {
            let unless_given = if self.warmup_steps > 0 { self.warmup_steps } else { 10_000 };
            let timescale = self.config.timescale.map_or(unless_given, NonZeroUsize::get) as f64;
            1.0 / (((step - self.warmup_steps) as f64 + timescale) / timescale).sqrt()
        })
    }
}

/// Half a cosine, from one at 0 to zero at 1.
pub(super) fn half_cosine(done: f64) -> f64 {
    (0.5 * (1.0 + (PI * done).cos())).max(0.0)
}

/// The share of the steps after the warm-up that is done.
fn done(step: usize, warmup_steps: usize, total_steps: usize) -> f64 {
    (step - warmup_steps) as f64 / falling_steps(warmup_steps, total_steps)
}

/// The steps after the warm-up, at least one.
fn falling_steps(warmup_steps: usize, total_steps: usize) -> f64 {
    total_steps.saturating_sub(warmup_steps).max(1) as f64
}
