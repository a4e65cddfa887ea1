use std::f64::consts::PI;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The learning rate over a run, as a factor of the optimizer's own: a pure function of the step.
pub trait Schedule: Send + Sync {
    /// The factor of optimizer step `step`, counted from 0.
    fn factor(&self, step: usize) -> f64;
}

/// Warm-up, then the full rate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConstantConfig {
    /// Steps over which the rate rises evenly from zero.
    pub warmup_steps: usize,
}

/// Transformers' `get_constant_schedule_with_warmup`.
#[derive(Debug, Clone)]
pub struct Constant {
    config: ConstantConfig,
}

impl Constant {
    /// With these options.
    pub fn new(config: ConstantConfig) -> Self {
        Self { config }
    }
}

impl Schedule for Constant {
    fn factor(&self, step: usize) -> f64 {
        rising(step, self.config.warmup_steps).unwrap_or(1.0)
    }
}

/// Warm-up, then down evenly to zero at the end of the run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LinearConfig {
    /// Steps over which the rate rises evenly from zero.
    pub warmup_steps: usize,
}

/// Transformers' `get_linear_schedule_with_warmup`.
#[derive(Debug, Clone)]
pub struct Linear {
    config: LinearConfig,
    total_steps: usize,
}

impl Linear {
    /// With these options, for a run of `total_steps` optimizer steps.
    pub fn new(config: LinearConfig, total_steps: usize) -> Self {
        Self { config, total_steps }
    }
}

impl Schedule for Linear {
    fn factor(&self, step: usize) -> f64 {
        let warmup_steps = self.config.warmup_steps;
        let left = self.total_steps.saturating_sub(step) as f64;
        rising(step, warmup_steps).unwrap_or(left / falling_steps(warmup_steps, self.total_steps))
    }
}

/// Warm-up, then half a cosine down to zero at the end of the run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CosineConfig {
    /// Steps over which the rate rises evenly from zero.
    pub warmup_steps: usize,
}

/// Transformers' `get_cosine_schedule_with_warmup` with its default of half a cycle. It rises again past
/// the end, as there.
#[derive(Debug, Clone)]
pub struct Cosine {
    config: CosineConfig,
    total_steps: usize,
}

impl Cosine {
    /// With these options, for a run of `total_steps` optimizer steps.
    pub fn new(config: CosineConfig, total_steps: usize) -> Self {
        Self { config, total_steps }
    }
}

impl Schedule for Cosine {
    fn factor(&self, step: usize) -> f64 {
        let warmup_steps = self.config.warmup_steps;
        rising(step, warmup_steps).unwrap_or_else(|| {
            let done = (step - warmup_steps) as f64 / falling_steps(warmup_steps, self.total_steps);
            (0.5 * (1.0 + (PI * done).cos())).max(0.0)
        })
    }
}

/// The factor during the warm-up; `None` afterwards.
fn rising(step: usize, warmup_steps: usize) -> Option<f64> {
    (step < warmup_steps).then(|| step as f64 / warmup_steps as f64)
}

/// The steps after the warm-up, at least one.
fn falling_steps(warmup_steps: usize, total_steps: usize) -> f64 {
    total_steps.saturating_sub(warmup_steps).max(1) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        schedule: String,
        warmup_steps: usize,
        steps: usize,
        factors: Vec<f64>,
    }

    fn build(name: &str, warmup_steps: usize, steps: usize) -> Box<dyn Schedule> {
        match name {
            "constant" => Box::new(Constant::new(ConstantConfig { warmup_steps })),
            "linear" => Box::new(Linear::new(LinearConfig { warmup_steps }, steps)),
            "cosine" => Box::new(Cosine::new(CosineConfig { warmup_steps }, steps)),
            other => panic!("the goldens know a schedule `{other}`"),
        }
    }

    #[test]
    fn factors_are_those_of_transformers() {
        let text = include_str!("../../testkit/goldens/schedules.json");
        let goldens: Vec<Golden> = serde_json::from_str(text).expect("goldens");
        assert!(goldens.len() >= 15);
        for golden in goldens {
            let schedule = build(&golden.schedule, golden.warmup_steps, golden.steps);
            for (step, expected) in golden.factors.iter().enumerate() {
                let found = schedule.factor(step);
                let Golden { schedule, warmup_steps, steps, .. } = &golden;
                assert!(
                    (found - expected).abs() < 1e-12,
                    "{schedule} {warmup_steps}/{steps} at {step}: expected {expected}, found {found}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn up_then_down(
            name in prop::sample::select(vec!["constant", "linear", "cosine"]),
            warmup in 0_usize..50,
            after in 1_usize..200,
        ) {
            let schedule = build(name, warmup, warmup + after);
            let factors: Vec<f64> = (0..=warmup + after).map(|step| schedule.factor(step)).collect();
            prop_assert!(factors.iter().all(|factor| (0.0..=1.0).contains(factor)));
            prop_assert!(factors[..=warmup].is_sorted());
            prop_assert!(factors[warmup..].iter().rev().is_sorted());
            prop_assert_eq!(factors[warmup], 1.0);
            if name != "constant" {
                prop_assert!(factors[warmup + after].abs() < 1e-12);
            }
        }
    }
}
