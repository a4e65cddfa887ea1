use std::collections::BTreeMap;

use sepal_core::NamedHostTensor;
use sepal_nn::Parameters;
use sepal_options::SgdConfig;
use tch::Tensor;

use crate::state::{Saved, save};
use crate::{Optimizer, StateError, StepError, update_each};

/// SGD optimizer; each step equals `torch.optim.SGD`'s.
#[derive(Debug)]
pub struct Sgd {
    config: SgdConfig,
    directions: BTreeMap<String, Tensor>,
}

const DIRECTION: &str = "momentum_buffer";

impl Sgd {
    /// Creates an optimizer without state.
    pub fn new(config: SgdConfig) -> Self {
        Self { config, directions: BTreeMap::new() }
    }
}

impl Optimizer for Sgd {
    fn lr(&self) -> f64 {
        self.config.lr
    }

    fn step(&mut self, params: &Parameters, lr: f64) -> Result<(), StepError> {
        let Self { config, directions } = self;
        update_each(params, |name, param, grad| {
            let mut direction = grad.f_add(&param.f_mul_scalar(config.weight_decay)?)?;
            if config.momentum != 0.0 {
                let momentum = match directions.get(name) {
                    Some(last) => {
                        let new = direction.f_mul_scalar(1.0 - config.dampening)?;
                        last.f_mul_scalar(config.momentum)?.f_add(&new)?
                    }
                    None => direction.shallow_clone(),
                };
                directions.insert(name.to_owned(), momentum.shallow_clone());
                direction =
                    if config.nesterov { direction.f_add(&momentum.f_mul_scalar(config.momentum)?)? } else { momentum };
            }
            param.f_sub_(&direction.f_mul_scalar(lr)?).map(drop)
        })
    }

    fn state(&self) -> Result<Vec<NamedHostTensor>, StateError> {
        self.directions.iter().map(|(name, direction)| save(DIRECTION, name, direction)).collect()
    }

    fn load_state(&mut self, params: &Parameters, state: &[NamedHostTensor]) -> Result<(), StateError> {
        self.directions =
            Saved::new(state)?.for_each(params, DIRECTION, |saved, name, shape| saved.take(DIRECTION, name, shape))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::check_run;

    #[test]
    fn twelve_steps_equal_pytorch() {
        let plain = SgdConfig { lr: 0.3, weight_decay: 0.1, ..SgdConfig::default() };
        let momentum = SgdConfig { momentum: 0.9, ..plain.clone() };
        let dampened = SgdConfig { dampening: 0.4, ..momentum.clone() };
        let nesterov = SgdConfig { nesterov: true, ..momentum.clone() };
        let runs = [("sgd", plain), ("sgd-momentum", momentum), ("sgd-dampened", dampened), ("sgd-nesterov", nesterov)];
        for (run, config) in runs {
            check_run(run, || Box::new(Sgd::new(config.clone())));
        }
    }

    #[test]
    fn two_steps_equal_manual_values() {
        let mut params = Parameters::new();
        let x = params.add("x", &Tensor::from(1.0_f32)).expect("new");
        let mut optimizer = Sgd::new(SgdConfig { lr: 0.1, momentum: 0.5, weight_decay: 0.1, ..SgdConfig::default() });
        // Direction 2 + 0.1 * 1 = 2.1, then 0.5 * 2.1 + 2 + 0.1 * 0.79 = 3.129.
        for expected in [1.0 - 0.21, 0.79 - 0.3129] {
            params.zero_grad();
            (&x * 2.0).backward();
            optimizer.step(&params, optimizer.lr()).expect("a step");
            assert!((x.double_value(&[]) - expected).abs() < 1e-6);
            let state = optimizer.state().expect("a state");
            optimizer = Sgd::new(optimizer.config);
            optimizer.load_state(&params, &state).expect("the same parameters");
        }
    }

    #[test]
    fn sgd_without_momentum_has_no_state() {
        let mut params = Parameters::new();
        let x = params.add("x", &Tensor::from(1.0_f32)).expect("new");
        (&x * 2.0).backward();
        let mut optimizer = Sgd::new(SgdConfig::default());
        optimizer.step(&params, 0.5).expect("a step");
        assert_eq!(x.double_value(&[]), 0.0);
        assert!(optimizer.state().expect("a state").is_empty());
    }
}
