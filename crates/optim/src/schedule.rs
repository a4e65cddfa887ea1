mod plateau;
mod step_schedules;
mod warmup;
mod warmup_stable_decay;

use sepal_core::NamedHostTensor;

pub use plateau::ReduceOnPlateau;
pub use step_schedules::{Constant, Cosine, CosineWithRestarts, InverseSqrt, Linear, Polynomial};
pub use warmup::steps_or_ratio;
pub use warmup_stable_decay::WarmupStableDecay;

use crate::StateError;
use crate::state::Saved;

/// Learning rate over a run, as a factor of the optimizer's own rate.
///
/// Most schedules are pure functions of the step and implement only [`factor`](Self::factor). A schedule that follows
/// evaluations [`watches`](Self::watches) a metric, receives it through [`evaluated`](Self::evaluated), and has a
/// state.
pub trait Schedule: Send + Sync {
    /// Returns the factor of optimizer step `step`, counted from 0, given the evaluations so far.
    fn factor(&self, step: usize) -> f64;

    /// Returns the metric that the schedule follows, or `loss`; none if it depends on the step only.
    fn watches(&self) -> Option<&str> {
        None
    }

    /// Records the `value` of the [watched](Self::watches) metric after `steps` optimizer steps.
    fn evaluated(&mut self, steps: usize, value: f64) {
        let _ = (steps, value);
    }

    /// Returns the state of the schedule as named tensors, under names that no optimizer uses.
    ///
    /// # Errors
    /// [`StateError`] if libtorch cannot copy them.
    fn state(&self) -> Result<Vec<NamedHostTensor>, StateError> {
        Ok(Vec::new())
    }

    /// Restores the state returned by [`state`](Self::state).
    ///
    /// # Errors
    /// [`StateError`] if a tensor is missing, unknown or damaged; nothing changes then.
    fn load_state(&mut self, state: &[NamedHostTensor]) -> Result<(), StateError> {
        Saved::new(state)?.check_empty()
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
    fn factors_equal_transformers() {
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
    fn step_schedule_has_no_state() {
        let mut schedule = build("linear", json!({}), 10);
        assert_eq!(schedule.watches(), None);
        assert!(schedule.state().expect("a state").is_empty());
        schedule.load_state(&[]).expect("nothing to restore");
        let other = build("reduce-on-plateau", json!({}), 10).state().expect("a state");
        assert!(matches!(schedule.load_state(&other), Err(StateError::Unknown { .. })));
    }

    proptest! {
        #[test]
        fn factor_rises_then_falls(
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
        fn restarts_begin_at_full_rate(warmup in 0_usize..50, cycle in 1_usize..40, cycles in 1_usize..6) {
            let options = json!({ "warmup_steps": warmup, "cycles": cycles });
            let schedule = build("cosine-with-restarts", options, warmup + cycle * cycles);
            let full = (0..warmup + cycle * cycles).filter(|&step| schedule.factor(step) > 1.0 - 1e-9).count();
            prop_assert_eq!(full, cycles);
        }
    }
}
