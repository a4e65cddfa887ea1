//! Warm-up, a long phase at the full rate, and a decay at the end.

use sepal_options::{Decay, WarmupStableDecayConfig};

use super::step_schedules::half_cosine;
use super::warmup::warmup_factor;
use super::{Schedule, steps_or_ratio};

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
            _ => {
                scaled(decay_factor(self.config.decay, (self.decay_steps - remaining) as f64 / self.decay_steps as f64))
            }
        }
    }
}

/// Returns the factor after the share `progress` of a decay.
fn decay_factor(decay: Decay, progress: f64) -> f64 {
    match decay {
        Decay::Cosine => half_cosine(progress),
        Decay::Linear => 1.0 - progress,
        Decay::OneMinusSqrt => 1.0 - progress.sqrt(),
    }
}
