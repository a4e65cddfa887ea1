use schemars::JsonSchema;
use sepal_core::NamedHostTensor;
use sepal_nn::Parameters;
use serde::{Deserialize, Serialize};

use crate::moments::Moments;
use crate::{Optimizer, StateError, StepError, update_each};

/// Adam (Kingma and Ba, arXiv 1412.6980), with weight decay as a part of the gradient.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdamConfig {
    /// Learning rate; the schedule multiplies it.
    #[schemars(range(min = 0.0))]
    pub lr: f64,
    /// Decays of the running means of gradient and squared gradient, each at least 0 and below 1.
    #[schemars(inner(range(min = 0.0, max = 0.999_999_999)))]
    pub betas: [f64; 2],
    /// Term added to the denominator.
    #[schemars(range(min = 0.0))]
    pub eps: f64,
    /// Factor of the weight in its gradient. (`adamw` subtracts from the weight itself.)
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
}

impl Default for AdamConfig {
    /// Returns PyTorch's defaults.
    fn default() -> Self {
        Self { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 }
    }
}

/// Adam optimizer; each step equals `torch.optim.Adam`'s.
#[derive(Debug)]
pub struct Adam {
    config: AdamConfig,
    moments: Moments,
}

impl Adam {
    /// Creates an optimizer without state.
    pub fn new(config: AdamConfig) -> Self {
        Self { config, moments: Moments::default() }
    }
}

impl Optimizer for Adam {
    fn lr(&self) -> f64 {
        self.config.lr
    }

    fn step(&mut self, params: &Parameters, lr: f64) -> Result<(), StepError> {
        let Self { config: AdamConfig { betas, eps, weight_decay, .. }, moments } = self;
        update_each(params, |name, param, grad| {
            let grad = grad.f_add(&param.f_mul_scalar(*weight_decay)?)?;
            moments.update(name, param, &grad, *betas, *eps, lr)
        })
    }

    fn state(&self) -> Result<Vec<NamedHostTensor>, StateError> {
        self.moments.state()
    }

    fn load_state(&mut self, params: &Parameters, state: &[NamedHostTensor]) -> Result<(), StateError> {
        self.moments = Moments::load(params, state)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::check_run;

    #[test]
    fn twelve_steps_equal_pytorch() {
        let config = AdamConfig { lr: 3e-2, betas: [0.8, 0.95], eps: 1e-6, weight_decay: 0.1 };
        check_run("adam", || Box::new(Adam::new(config.clone())));
    }
}
