//! Schedule that reduces the rate when evaluations stop improving.

use sepal_core::NamedHostTensor;
use sepal_options::{PlateauMode, ReduceOnPlateauConfig, ThresholdMode};

use super::warmup::warmup_factor;
use super::{Schedule, steps_or_ratio};
use crate::StateError;
use crate::state::{Saved, save_bits};

/// Schedule equal to `torch.optim.lr_scheduler.ReduceLROnPlateau` with `eps=0`, which there suppresses reductions of
/// less than 1e-8.
#[derive(Debug, Clone)]
pub struct ReduceOnPlateau {
    config: ReduceOnPlateauConfig,
    mode: PlateauMode,
    warmup_steps: usize,
    state: State,
}

#[derive(Debug, Clone, Copy)]
struct State {
    factor: f64,
    best: f64,
    /// Number of consecutive evaluations without improvement.
    bad: u64,
    /// Number of evaluations that are still not counted.
    cooldown: u64,
}

const SCHEDULE: &str = "schedule";
const FACTOR: &str = "factor";
const BEST: &str = "best";
const BAD: &str = "bad";
const COOLDOWN: &str = "cooldown";

impl ReduceOnPlateau {
    /// Creates a schedule for a run of `total_steps` optimizer steps.
    pub fn new(config: ReduceOnPlateauConfig, total_steps: usize) -> Self {
        let mode = config.direction().unwrap_or(PlateauMode::Max);
        let worst = match mode {
            PlateauMode::Min => f64::INFINITY,
            PlateauMode::Max => f64::NEG_INFINITY,
        };
        let warmup_steps = steps_or_ratio(total_steps, config.warmup_steps, config.warmup_ratio);
        Self { config, mode, warmup_steps, state: State { factor: 1.0, best: worst, bad: 0, cooldown: 0 } }
    }

    /// Returns true if `value` improves on the best one; false for NaN.
    fn is_better(&self, value: f64) -> bool {
        let (best, threshold) = (self.state.best, self.config.threshold);
        match (self.mode, self.config.threshold_mode) {
            (PlateauMode::Min, ThresholdMode::Rel) => value < best * (1.0 - threshold),
            (PlateauMode::Min, ThresholdMode::Abs) => value < best - threshold,
            (PlateauMode::Max, ThresholdMode::Rel) => value > best * (threshold + 1.0),
            (PlateauMode::Max, ThresholdMode::Abs) => value > best + threshold,
        }
    }
}

impl Schedule for ReduceOnPlateau {
    fn factor(&self, step: usize) -> f64 {
        warmup_factor(step, self.warmup_steps).unwrap_or(1.0) * self.state.factor
    }

    fn watches(&self) -> Option<&str> {
        Some(&self.config.metric)
    }

    fn evaluated(&mut self, steps: usize, value: f64) {
        let is_better = self.is_better(value);
        let State { factor, best, bad, cooldown } = &mut self.state;
        if is_better {
            *best = value;
            *bad = 0;
        } else if steps >= self.warmup_steps {
            *bad += 1;
        }
        if *cooldown > 0 {
            *cooldown -= 1;
            *bad = 0;
        }
        if *bad > u64::from(self.config.patience) {
            *factor = (*factor * self.config.factor).max(self.config.min_factor);
            *cooldown = self.config.cooldown.into();
            *bad = 0;
        }
    }

    fn state(&self) -> Result<Vec<NamedHostTensor>, StateError> {
        let State { factor, best, bad, cooldown } = self.state;
        let bits = [(FACTOR, factor.to_bits()), (BEST, best.to_bits()), (BAD, bad), (COOLDOWN, cooldown)];
        bits.into_iter().map(|(name, bits)| save_bits(SCHEDULE, name, bits)).collect()
    }

    fn load_state(&mut self, state: &[NamedHostTensor]) -> Result<(), StateError> {
        let mut saved = Saved::new(state)?;
        let restored = State {
            factor: f64::from_bits(saved.take_bits(SCHEDULE, FACTOR)?),
            best: f64::from_bits(saved.take_bits(SCHEDULE, BEST)?),
            bad: saved.take_bits(SCHEDULE, BAD)?,
            cooldown: saved.take_bits(SCHEDULE, COOLDOWN)?,
        };
        saved.check_empty()?;
        self.state = restored;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        options: ReduceOnPlateauConfig,
        values: Vec<Option<f64>>,
        factors: Vec<f64>,
    }

    #[test]
    fn factors_equal_pytorch() {
        let text = include_str!("../../../testkit/goldens/plateau.json");
        let goldens: Vec<Golden> = serde_json::from_str(text).expect("goldens");
        assert_eq!(goldens.len(), 6);
        for Golden { options, values, factors } in goldens {
            let mut schedule = ReduceOnPlateau::new(options.clone(), 0);
            for (i, (value, expected)) in values.iter().zip(&factors).enumerate() {
                let state = schedule.state().expect("a state");
                schedule = ReduceOnPlateau::new(options.clone(), 0);
                schedule.load_state(&state).expect("its own");
                assert_eq!(schedule.state().expect("a state"), state, "to the last bit");
                schedule.evaluated(i, value.unwrap_or(f64::NAN));
                assert_eq!(schedule.factor(i), *expected, "{options:?} after {i}");
            }
        }
    }

    #[test]
    fn default_mode_maximizes_metrics() {
        let reductions = |metric: &str, mode: Option<PlateauMode>, values: [f64; 3]| {
            let config = ReduceOnPlateauConfig { metric: metric.to_owned(), mode, patience: 0, ..Default::default() };
            let mut schedule = ReduceOnPlateau::new(config, 10);
            assert_eq!(schedule.watches(), Some(metric));
            values.into_iter().for_each(|value| schedule.evaluated(1, value));
            -schedule.factor(1).log10().round()
        };
        assert_eq!(reductions("accuracy", None, [0.1, 0.2, 0.3]), 0.0);
        assert_eq!(reductions("accuracy", Some(PlateauMode::Min), [0.1, 0.2, 0.3]), 2.0);
        assert_eq!(reductions("loss", None, [0.1, 0.2, 0.3]), 2.0);
        assert_eq!(reductions("loss", None, [0.3, 0.2, 0.1]), 0.0);
    }

    #[test]
    fn warmup_has_no_reduction() {
        let config = ReduceOnPlateauConfig { warmup_ratio: 0.1, patience: 1, factor: 0.5, ..Default::default() };
        let mut schedule = ReduceOnPlateau::new(config, 100);
        (1..10).for_each(|steps| schedule.evaluated(steps, 1.0));
        assert_eq!((schedule.factor(5), schedule.factor(10)), (0.5, 1.0));
        schedule.evaluated(10, 1.0);
        assert_eq!(schedule.factor(10), 1.0);
        schedule.evaluated(11, 1.0);
        assert_eq!(schedule.factor(11), 0.5);
    }

    #[test]
    fn load_state_of_other_object_is_error() {
        let mut schedule = ReduceOnPlateau::new(ReduceOnPlateauConfig::default(), 10);
        schedule.evaluated(1, 0.1 + 0.2);
        let state = schedule.state().expect("a state");
        assert!(matches!(schedule.load_state(&state[1..]), Err(StateError::Missing { .. })));
        let other = NamedHostTensor { name: "scaler.scale".to_owned(), tensor: state[0].tensor.clone() };
        let more = [state.clone(), vec![other]].concat();
        assert!(matches!(schedule.load_state(&more), Err(StateError::Unknown { .. })));
        assert_eq!(schedule.state().expect("a state"), state);
    }
}
