//! Warm-up, a long phase at the full rate, and a decay at the end.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::step_schedules::half_cosine;
use super::warmup::warmup_factor;
use super::{Schedule, steps_or_ratio};

/// Warm-up, then the full rate, then a decay up to the end of the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WarmupStableDecayConfig {
    /// Number of steps over which the rate rises linearly, from `end_factor`.
    pub warmup_steps: usize,
    /// Share of the run's steps for the warm-up, rounded up, instead of `warmup_steps`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub warmup_ratio: f64,
    /// Number of last steps of the run, over which the rate decays.
    pub decay_steps: usize,
    /// Share of the run's steps for the decay, rounded up, instead of `decay_steps`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub decay_ratio: f64,
    /// Shape of the decay.
    pub decay: Decay,
    /// Remaining factor of the rate at the end of the run.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub end_factor: f64,
}

/// Shape of a decay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Half a cosine.
    #[default]
    Cosine,
    /// Linear.
    Linear,
    /// One minus the root of the completed share: fast at first.
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

/// Schedule equal to transformers' `get_wsd_schedule` with a linear warm-up.
#[derive(Debug, Clone)]
pub struct WarmupStableDecay {
    config: WarmupStableDecayConfig,
    warmup_steps: usize,
    decay_steps: usize,
    total_steps: usize,
}

impl WarmupStableDecay {
    /// Creates a schedule for a run of `total_steps` optimizer steps.
    pub fn new(config: WarmupStableDecayConfig, total_steps: usize) -> Self {
        let warmup_steps = steps_or_ratio(total_steps, config.warmup_steps, config.warmup_ratio);
        let decay_steps = steps_or_ratio(total_steps, config.decay_steps, config.decay_ratio);
        Self { config, warmup_steps, decay_steps, total_steps }
    }
}

impl Schedule for WarmupStableDecay {
    fn factor(&self, step: usize) -> f64 {
        let end = self.config.end_factor;
        let scaled = |factor: f64| (factor * (1.0 - end) + end).max(0.0);
        if let Some(factor) = warmup_factor(step, self.warmup_steps) {
            return scaled(factor);
        }
        // If warm-up and decay are longer than the run, the decay is already in progress after the warm-up.
        let remaining = self.total_steps.saturating_sub(step);
        match remaining {
            0 => end,
            _ if remaining > self.decay_steps => 1.0,
            _ => scaled(self.config.decay.factor((self.decay_steps - remaining) as f64 / self.decay_steps as f64)),
        }
    }
}

impl Decay {
    /// Returns the factor after the share `progress` of the decay.
    fn factor(self, progress: f64) -> f64 {
        match self {
            Decay::Cosine => half_cosine(progress),
            Decay::Linear => 1.0 - progress,
            Decay::OneMinusSqrt => 1.0 - progress.sqrt(),
        }
    }
}
