mod decay;
mod falling;
mod plateau;
mod warmup;

use sepal_core::NamedHostTensor;

pub use decay::{Decay, WarmupStableDecay, WarmupStableDecayConfig};
pub use falling::{
    Constant, ConstantConfig, Cosine, CosineConfig, CosineWithRestarts, CosineWithRestartsConfig, InverseSqrt,
    InverseSqrtConfig, Linear, LinearConfig, Polynomial, PolynomialConfig,
};
pub use plateau::{PlateauMode, ReduceOnPlateau, ReduceOnPlateauConfig, ThresholdMode};
pub use warmup::share_of;

use crate::StateError;
use crate::state::Saved;

/// The learning rate over a run, as a factor of the optimizer's own.
///
/// Most are pure functions of the step, and need to implement [`factor`](Self::factor) alone. One that follows evaluations
/// says which number of them it [`watches`](Self::watches), is [told](Self::evaluated) of each, and has a state.
pub trait Schedule: Send + Sync {
    /// The factor of optimizer step `step`, counted from 0, by what is known now.
    fn factor(&self, step: usize) -> f64;

    /// What it wants to know of each evaluation: `loss`, or the name of a metric. `None` if the step is all that it needs.
    fn watches(&self) -> Option<&str> {
        None
    }

    /// The evaluation after `steps` optimizer steps gave this `value` of what it [watches](Self::watches).
    fn evaluated(&mut self, steps: usize, value: f64) {
        let _ = (steps, value);
    }

    /// All that the next factor depends on besides options and step, as named tensors to be saved, under names that no
    /// optimizer's have.
    ///
    /// # Errors
    /// [`StateError`] if libtorch cannot copy them.
    fn state(&self) -> Result<Vec<NamedHostTensor>, StateError> {
        Ok(Vec::new())
    }

    /// Goes on from what [`state`](Self::state) gave.
    ///
    /// # Errors
    /// [`StateError`], and nothing changes, if a tensor is missing, of something else, or damaged.
    fn load_state(&mut self, state: &[NamedHostTensor]) -> Result<(), StateError> {
        Saved::new(state)?.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;
    use serde_json::{Value, from_value, json};

    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        schedule: String,
        options: Value,
        steps: usize,
        factors: Vec<f64>,
    }

    fn build(name: &str, options: Value, steps: usize) -> Box<dyn Schedule> {
        let what = format!("options of {name}: {options}");
        match name {
            "constant" => Box::new(Constant::new(from_value(options).expect(&what), steps)),
            "linear" => Box::new(Linear::new(from_value(options).expect(&what), steps)),
            "cosine" => Box::new(Cosine::new(from_value(options).expect(&what), steps)),
            "cosine-with-restarts" => Box::new(CosineWithRestarts::new(from_value(options).expect(&what), steps)),
            "polynomial" => Box::new(Polynomial::new(from_value(options).expect(&what), steps)),
            "inverse-sqrt" => Box::new(InverseSqrt::new(from_value(options).expect(&what), steps)),
            "warmup-stable-decay" => Box::new(WarmupStableDecay::new(from_value(options).expect(&what), steps)),
            "reduce-on-plateau" => Box::new(ReduceOnPlateau::new(from_value(options).expect(&what), steps)),
            other => panic!("the goldens know a schedule `{other}`"),
        }
    }

    #[test]
    fn factors_are_those_of_transformers() {
        let text = include_str!("../../testkit/goldens/schedules.json");
        let goldens: Vec<Golden> = serde_json::from_str(text).expect("goldens");
        assert!(goldens.len() >= 90);
        for Golden { schedule: name, options, steps, factors } in goldens {
            let schedule = build(&name, options.clone(), steps);
            for (step, expected) in factors.iter().enumerate() {
                let found = schedule.factor(step);
                assert!(
                    (found - expected).abs() < 1e-12,
                    "{name} {options} of {steps} steps at {step}: expected {expected}, found {found}"
                );
            }
        }
    }

    #[test]
    fn a_function_of_the_step_has_no_state() {
        let mut schedule = build("linear", json!({}), 10);
        assert_eq!(schedule.watches(), None);
        assert!(schedule.state().expect("a state").is_empty());
        schedule.load_state(&[]).expect("nothing to restore");
        let other = build("reduce-on-plateau", json!({}), 10).state().expect("a state");
        assert!(matches!(schedule.load_state(&other), Err(StateError::Unknown { .. })));
    }

    proptest! {
        #[test]
        fn up_then_down(
            name in prop::sample::select(vec!["constant", "linear", "cosine", "polynomial", "inverse-sqrt"]),
            warmup in 0_usize..50,
            after in 1_usize..200,
        ) {
            let schedule = build(name, json!({ "warmup_steps": warmup }), warmup + after);
            let factors: Vec<f64> = (0..=warmup + after).map(|step| schedule.factor(step)).collect();
            prop_assert!(factors.iter().all(|factor| (0.0..=1.0).contains(factor)));
            prop_assert!(factors[..=warmup].is_sorted());
            prop_assert!(factors[warmup..].iter().rev().is_sorted());
            prop_assert_eq!(factors[warmup], 1.0);
            if ["linear", "cosine", "polynomial"].contains(&name) {
                prop_assert!(factors[warmup + after].abs() < 1e-12);
            }
        }

        #[test]
        fn restarts_begin_at_the_full_rate(warmup in 0_usize..50, cycle in 1_usize..40, cycles in 1_usize..6) {
            let options = json!({ "warmup_steps": warmup, "cycles": cycles });
            let schedule = build("cosine-with-restarts", options, warmup + cycle * cycles);
            let full = (0..warmup + cycle * cycles).filter(|&step| schedule.factor(step) > 1.0 - 1e-9).count();
            prop_assert_eq!(full, cycles);
        }
    }
}
