use sepal_core::NamedHostTensor;
use sepal_nn::Parameters;
use sepal_options::{AdamConfig, AdamWConfig};

use crate::moments::Moments;
use crate::{Optimizer, StateError, StepError, update_each};

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

/// AdamW optimizer; each step equals `torch.optim.AdamW`'s.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    moments: Moments,
}

impl AdamW {
    /// Creates an optimizer without state.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, moments: Moments::default() }
    }
}

impl Optimizer for AdamW {
    fn lr(&self) -> f64 {
        self.config.lr
    }

    fn step(&mut self, params: &Parameters, lr: f64) -> Result<(), StepError> {
        let Self { config: AdamWConfig { betas, eps, weight_decay, .. }, moments } = self;
        update_each(params, |name, param, grad| {
            drop(param.f_mul_scalar_(1.0 - lr * *weight_decay)?);
            moments.update(name, param, grad, *betas, *eps, lr)
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
    use tch::{Kind, Tensor, no_grad};

    use super::*;
    use crate::goldens::{check_run, goldens, parameters};
    use crate::{Linear, LinearConfig, Schedule, clip_grad_norm};

    fn set_grad(param: &Tensor, grad: &Tensor) {
        (param * grad).sum(Kind::Float).backward();
    }

    #[test]
    fn twelve_steps_of_adam_equal_pytorch() {
        let config = AdamConfig { lr: 3e-2, betas: [0.8, 0.95], eps: 1e-6, weight_decay: 0.1 };
        check_run("adam", || Box::new(Adam::new(config.clone())));
    }

    #[test]
    fn ten_steps_of_adamw_equal_pytorch() {
        let goldens = goldens("adamw");
        let mut params = parameters(&goldens, &["prompts", "deep_prompts", "score.weight"]);
        let mut optimizer = AdamW::new(AdamWConfig { lr: 1e-2, weight_decay: 0.01, ..AdamWConfig::default() });
        let schedule = Linear::new(LinearConfig { warmup_steps: 3, ..LinearConfig::default() }, 10);
        for step in 0..10 {
            if step == 5 {
                let state = optimizer.state().expect("a state");
                optimizer = AdamW::new(optimizer.config);
                optimizer.load_state(&params, &state).expect("the same parameters");
            }
            params.zero_grad();
            for (name, param) in params.iter() {
                set_grad(param, &goldens[&format!("step{step}.grad.{name}")]);
            }
            let lr = optimizer.lr() * schedule.factor(step);
            assert!((lr - goldens[&format!("step{step}.lr")].double_value(&[])).abs() < 1e-8);
            let norm = clip_grad_norm(&params, 1.0).expect("a norm");
            assert!((norm - goldens[&format!("step{step}.norm")].double_value(&[])).abs() < 1e-5);
            optimizer.step(&params, lr).expect("a step");
            for (name, param) in params.iter() {
                let expected = &goldens[&format!("step{step}.param.{name}")];
                let far = no_grad(|| (param - expected).abs().max().double_value(&[]));
                assert!(far < 1e-6, "{name} is {far} away after step {step}");
            }
        }
    }

    #[test]
    fn parameter_without_gradient_is_unchanged() {
        let mut params = Parameters::new();
        let moved = params.add("moved", &Tensor::from(1.0_f32)).expect("new");
        drop(params.add("still", &Tensor::from(1.0_f32)).expect("new"));
        set_grad(&moved, &Tensor::from(1.0_f32));
        let mut optimizer = AdamW::new(AdamWConfig::default());
        optimizer.step(&params, 0.1).expect("a step");
        assert_eq!(params.get("still").expect("there").double_value(&[]), 1.0);
        assert!((moved.double_value(&[]) - (1.0 - 0.1 * 0.01 - 0.1)).abs() < 1e-6);
        let names: Vec<String> = optimizer.state().expect("a state").into_iter().map(|named| named.name).collect();
        assert_eq!(names, ["step.moved", "exp_avg.moved", "exp_avg_sq.moved"]);
    }

    #[test]
    fn load_state_of_other_parameters_is_error() {
        let mut params = Parameters::new();
        let x = params.add("x", &Tensor::from_slice(&[1.0_f32, 2.0])).expect("new");
        set_grad(&x, &Tensor::from_slice(&[1.0_f32, 1.0]));
        let mut optimizer = AdamW::new(AdamWConfig::default());
        optimizer.step(&params, 0.1).expect("a step");
        let state = optimizer.state().expect("a state");

        let mut other = Parameters::new();
        drop(other.add("y", &Tensor::from_slice(&[1.0_f32, 2.0])).expect("new"));
        assert!(matches!(optimizer.load_state(&other, &state), Err(StateError::Unknown { .. })));
        let mut wider = Parameters::new();
        drop(wider.add("x", &Tensor::from_slice(&[1.0_f32, 2.0, 3.0])).expect("new"));
        assert!(matches!(optimizer.load_state(&wider, &state), Err(StateError::Shape { .. })));
        assert!(matches!(optimizer.load_state(&params, &state[..2]), Err(StateError::Missing { .. })));
        assert_eq!(optimizer.state().expect("a state"), state);
    }
}
