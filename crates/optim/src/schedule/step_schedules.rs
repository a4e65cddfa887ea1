//! Schedules that are a formula of the step after the warm-up.

use std::f64::consts::PI;
use std::num::NonZeroUsize;

use sepal_options::{
    ConstantConfig, CosineConfig, CosineWithRestartsConfig, InverseSqrtConfig, LinearConfig, PolynomialConfig,
};

use super::warmup::warmup_factor;
use super::{Schedule, steps_or_ratio};

/// Defines a schedule with a warm-up.
macro_rules! schedule {
    ($(#[$attribute:meta])* $name:ident($config:ident)) => {
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
    /// Constant schedule, equal to transformers' `get_constant_schedule_with_warmup`.
    Constant(ConstantConfig)
}

impl Schedule for Constant {
    fn factor(&self, step: usize) -> f64 {
        self.phases().factor(step, || 1.0)
    }
}

schedule! {
    /// Linear schedule, equal to transformers' `get_linear_schedule_with_warmup`.
    Linear(LinearConfig)
}

impl Schedule for Linear {
    fn factor(&self, step: usize) -> f64 {
        let phases = self.phases();
        let remaining_steps = phases.total_steps.saturating_sub(step) as f64;
        phases.factor(step, || remaining_steps / phases.decay_steps())
    }
}

schedule! {
    /// Cosine schedule, equal to transformers' `get_cosine_schedule_with_warmup` with its default of half a cycle. As
    /// there, the factor rises again past the end of the run.
    Cosine(CosineConfig)
}

impl Schedule for Cosine {
    fn factor(&self, step: usize) -> f64 {
        let phases = self.phases();
        phases.factor(step, || half_cosine(phases.progress(step)))
    }
}

schedule! {
    /// Cosine schedule with restarts, equal to transformers' `get_cosine_with_hard_restarts_schedule_with_warmup`.
    CosineWithRestarts(CosineWithRestartsConfig)
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
    /// Polynomial schedule, equal to transformers' `get_polynomial_decay_schedule_with_warmup` with `lr_end` as a factor.
    Polynomial(PolynomialConfig)
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
    /// Inverse square root schedule, equal to transformers' `get_inverse_sqrt_schedule`.
    InverseSqrt(InverseSqrtConfig)
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
