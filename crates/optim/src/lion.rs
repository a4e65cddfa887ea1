use std::collections::BTreeMap;

use sepal_core::NamedHostTensor;
use sepal_nn::Parameters;
use sepal_options::LionConfig;
use tch::Tensor;

use crate::state::{Saved, save};
use crate::{Optimizer, StateError, StepError, update_each};

/// Lion optimizer; each step equals algorithm 2 of the paper and the package `lion-pytorch`.
#[derive(Debug)]
pub struct Lion {
    config: LionConfig,
    /// Running means of the gradients, in their parameters' shapes.
    means: BTreeMap<String, Tensor>,
}

const MEAN: &str = "exp_avg";

impl Lion {
    /// Creates an optimizer without state.
    pub fn new(config: LionConfig) -> Self {
        Self { config, means: BTreeMap::new() }
    }
}

impl Optimizer for Lion {
    fn lr(&self) -> f64 {
        self.config.lr
    }

    fn step(&mut self, params: &Parameters, lr: f64) -> Result<(), StepError> {
        let Self { config: LionConfig { betas: [beta1, beta2], weight_decay, .. }, means } = self;
        update_each(params, |name, param, grad| {
            let mean = match means.get(name) {
                Some(mean) => mean.shallow_clone(),
                None => param.f_zeros_like()?,
            };
            let mix = |beta: f64| mean.f_mul_scalar(beta)?.f_add(&grad.f_mul_scalar(1.0 - beta)?);
            let direction = mix(*beta1)?.f_sign()?;
            drop(param.f_mul_scalar_(1.0 - lr * *weight_decay)?);
            drop(param.f_sub_(&direction.f_mul_scalar(lr)?)?);
            means.insert(name.to_owned(), mix(*beta2)?);
            Ok(())
        })
    }

    fn state(&self) -> Result<Vec<NamedHostTensor>, StateError> {
        self.means.iter().map(|(name, mean)| save(MEAN, name, mean)).collect()
    }

    fn load_state(&mut self, params: &Parameters, state: &[NamedHostTensor]) -> Result<(), StateError> {
        self.means = Saved::new(state)?.for_each(params, MEAN, |saved, name, shape| saved.take(MEAN, name, shape))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::check_run;

    #[test]
    fn twelve_steps_equal_lion_pytorch() {
        let config = LionConfig { lr: 1e-2, betas: [0.9, 0.99], weight_decay: 0.3 };
        check_run("lion", || Box::new(Lion::new(config.clone())));
    }
}
