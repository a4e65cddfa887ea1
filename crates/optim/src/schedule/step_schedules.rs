//! Schedules that are a formula of the step after the warm-up.

use std::f64::consts::PI;
use std::num::NonZeroUsize;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::warmup::warmup_factor;
use super::{Schedule, steps_or_ratio};

/// Defines a schedule and its options: the warm-up, and further fields.
macro_rules! schedule {
    (
        $(#[$config_attribute:meta])* $config:ident { $($(#[$field_attribute:meta])* $field:ident: $type:ty,)* }
        $(#[$attribute:meta])* $name:ident
    ) => {
        $(#[$config_attribute])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct $config {
            /// Number of steps over which the rate rises linearly from zero.
            pub warmup_steps: usize,
            /// Share of the run's steps for the warm-up, rounded up, instead of `warmup_steps`.
            #[schemars(range(min = 0.0, max = 1.0))]
            pub warmup_ratio: f64,
            $($(#[$field_attribute])* pub $field: $type,)*
        }

        $(#[$attribute])*
        #[derive(Debug, Clone)]
        pub struct $name {
            config: $config,
            total_steps: usize,
        }

        impl $name {
            /// Creates a schedule for a run of `total_steps` optimizer steps.
            pub fn new(config: $config, total_steps: usize) -> Self {
                Self { config, total_steps }
            }

            fn phases(&self) -> Phases {
                let $config { warmup_steps, warmup_ratio, .. } = self.config;
                let warmup_steps = steps_or_ratio(self.total_steps, warmup_steps, warmup_ratio);
                Phases { warmup_steps, total_steps: self.total_steps }
            }
        }
    };
}

/// Steps of the warm-up and of the whole run.
#[derive(Debug, Clone, Copy)]
struct Phases {
    warmup_steps: usize,
    total_steps: usize,
}

impl Phases {
    /// Returns the factor of a step: that of the warm-up, or `factor` afterwards.
    fn factor(self, step: usize, factor: impl FnOnce() -> f64) -> f64 {
        warmup_factor(step, self.warmup_steps).unwrap_or_else(factor)
    }

    /// Share of the steps after the warm-up that are done.
    fn progress(self, step: usize) -> f64 {
        (step - self.warmup_steps) as f64 / self.decay_steps()
    }

    /// Number of steps after the warm-up, at least one.
    fn decay_steps(self) -> f64 {
        self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64
    }
}

schedule! {
    /// Warm-up, then the full rate.
    #[derive(Default)]
    ConstantConfig {}
    /// Constant schedule, equal to transformers' `get_constant_schedule_with_warmup`.
    Constant
}

impl Schedule for Constant {
    fn factor(&self, step: usize) -> f64 {
        self.phases().factor(step, || 1.0)
    }
}

schedule! {
    /// Warm-up, then a linear decay to zero at the end of the run.
    #[derive(Default)]
    LinearConfig {}
    /// Linear schedule, equal to transformers' `get_linear_schedule_with_warmup`.
    Linear
}

impl Schedule for Linear {
    fn factor(&self, step: usize) -> f64 {
        let phases = self.phases();
        let remaining_steps = phases.total_steps.saturating_sub(step) as f64;
        phases.factor(step, || remaining_steps / phases.decay_steps())
    }
}

schedule! {
    /// Warm-up, then half a cosine down to zero at the end of the run.
    #[derive(Default)]
    CosineConfig {}
    /// Cosine schedule, equal to transformers' `get_cosine_schedule_with_warmup` with its default of half a cycle. As
    /// there, the factor rises again past the end of the run.
    Cosine
}

impl Schedule for Cosine {
    fn factor(&self, step: usize) -> f64 {
        let phases = self.phases();
        phases.factor(step, || half_cosine(phases.progress(step)))
    }
}

schedule! {
    /// Warm-up, then several times half a cosine from the full rate down to zero.
    CosineWithRestartsConfig {
        /// Number of cycles, all of the same length.
        cycles: NonZeroUsize,
    }
    /// Cosine schedule with restarts, equal to transformers' `get_cosine_with_hard_restarts_schedule_with_warmup`.
    CosineWithRestarts
}

impl Default for CosineWithRestartsConfig {
    /// Returns the defaults of transformers.
    fn default() -> Self {
        Self { warmup_steps: 0, warmup_ratio: 0.0, cycles: NonZeroUsize::MIN }
    }
}

impl Schedule for CosineWithRestarts {
    fn factor(&self, step: usize) -> f64 {
        let phases = self.phases();
        phases.factor(step, || {
            let progress = phases.progress(step);
            if progress >= 1.0 { 0.0 } else { half_cosine((self.config.cycles.get() as f64 * progress) % 1.0) }
        })
    }
}

schedule! {
    /// Warm-up, then a decay as a power of the remaining share of the run.
    PolynomialConfig {
        /// Power of the decay: 1 is linear, a larger one is faster at first.
        #[schemars(range(min = 0.0))]
        power: f64,
        /// Remaining factor of the rate at the end of the run.
        #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
        end_factor: f64,
    }
    /// Polynomial schedule, equal to transformers' `get_polynomial_decay_schedule_with_warmup` with `lr_end` as a factor.
    Polynomial
}

impl Default for PolynomialConfig {
    /// Returns a linear decay to zero.
    fn default() -> Self {
        Self { warmup_steps: 0, warmup_ratio: 0.0, power: 1.0, end_factor: 0.0 }
    }
}

impl Schedule for Polynomial {
    fn factor(&self, step: usize) -> f64 {
        let PolynomialConfig { power, end_factor, .. } = self.config;
        let phases = self.phases();
        phases.factor(step, || {
            if step > phases.total_steps {
                return end_factor;
            }
            let remaining = 1.0 - phases.progress(step);
            (1.0 - end_factor) * remaining.powf(power) + end_factor
        })
    }
}

schedule! {
    /// Warm-up, then a decay as one over the root of the steps.
    #[derive(Default)]
    InverseSqrtConfig {
        /// Number of further steps after which the squared rate is halved; as many as the warm-up has if not given, or
        /// 10,000 without a warm-up.
        timescale: Option<NonZeroUsize>,
    }
    /// Inverse square root schedule, equal to transformers' `get_inverse_sqrt_schedule`.
    InverseSqrt
}

impl Schedule for InverseSqrt {
    fn factor(&self, step: usize) -> f64 {
        let phases = self.phases();
        let warmup_steps = phases.warmup_steps;
        phases.factor(step, || {
            let default_timescale = if warmup_steps > 0 { warmup_steps } else { 10_000 };
            let timescale = self.config.timescale.map_or(default_timescale, NonZeroUsize::get) as f64;
            1.0 / (((step - warmup_steps) as f64 + timescale) / timescale).sqrt()
        })
    }
}

/// Half a cosine, from 1 at a progress of 0 to 0 at 1.
pub(super) fn half_cosine(progress: f64) -> f64 {
    (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
}
