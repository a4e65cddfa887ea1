//! Warm-up, a long plateau at the full rate, and a decay at the end.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::falling::half_cosine;
use super::warmup::rising;
use super::{Schedule, share_of};

/// Warm-up, then the full rate, then a decay up to the end of the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WarmupStableDecayConfig {
    /// Steps over which the rate rises evenly, from `end_factor`.
    pub warmup_steps: usize,
    /// Instead of `warmup_steps`: their share of the run's steps, rounded up.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub warmup_ratio: f64,
    /// Last steps of the run, over which the rate goes down.
    pub decay_steps: usize,
    /// Instead of `decay_steps`: their share of the run's steps, rounded up.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub decay_ratio: f64,
    /// How it goes down.
    pub decay: Decay,
    /// What is left of the rate at the end of the run.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub end_factor: f64,
}

/// The form of a decay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Half a cosine.
    #[default]
    Cosine,
    /// Evenly.
    Linear,
    /// One minus the root of the share that is done: fast at first.
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

/// Transformers' `get_wsd_schedule` with a linear warm-up.
#[derive(Debug, Clone)]
pub struct WarmupStableDecay {
    config: WarmupStableDecayConfig,
    warmup_steps: usize,
    decay_steps: usize,
    total_steps: usize,
}

impl WarmupStableDecay {
    /// With these options, for a run of `total_steps` optimizer steps.
    pub fn new(config: WarmupStableDecayConfig, total_steps: usize) -> Self {
        let warmup_steps = share_of(total_steps, config.warmup_steps, config.warmup_ratio);
        let decay_steps = share_of(total_steps, config.decay_steps, config.decay_ratio);
        Self { config, warmup_steps, decay_steps, total_steps }
    }
}

impl Schedule for WarmupStableDecay {
    fn factor(&self, step: usize) -> f64 {
        let end = self.config.end_factor;
        let above = |factor: f64| (factor * (1.0 - end) + end).max(0.0);
        if let Some(factor) = rising(step, self.warmup_steps) {
            return above(factor);
        }
        // Where warm-up and decay are longer than the run, the decay is on its way when the warm-up ends.
        let left = self.total_steps.saturating_sub(step);
        match left {
            0 => end,
            left if left > self.decay_steps => 1.0,
            left => above(self.config.decay.at((self.decay_steps - left) as f64 / self.decay_steps as f64)),
        }
    }
}

impl Decay {
    /// The factor when the share `done` is done.
    fn at(self, done: f64) -> f64 {
        match self {
            Decay::Cosine => half_cosine(done),
            Decay::Linear => 1.0 - done,
            Decay::OneMinusSqrt => 1.0 - done.sqrt(),
        }
    }
}
