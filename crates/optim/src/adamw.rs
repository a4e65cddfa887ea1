use std::collections::BTreeMap;

use schemars::JsonSchema;
use sepal_core::NamedHostTensor;
use sepal_nn::Parameters;
use serde::{Deserialize, Serialize};
use tch::{TchError, Tensor};

use crate::state::{Saved, save};
use crate::{Optimizer, StateError, StepError, update_each};

/// Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Learning rate; the schedule multiplies it.
    #[schemars(range(min = 0.0))]
    pub lr: f64,
    /// How much of the past the running means of gradient and squared gradient keep, each at least 0 and below 1.
    #[schemars(inner(range(min = 0.0, max = 0.999_999_999)))]
    pub betas: [f64; 2],
    /// Added to the denominator.
    #[schemars(range(min = 0.0))]
    pub eps: f64,
    /// Share of each weight that one step at learning rate 1 takes away.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    /// PyTorch's defaults.
    fn default() -> Self {
        Self { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 1e-2 }
    }
}

/// AdamW; each step equals `torch.optim.AdamW`'s.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    moments: BTreeMap<String, Moments>,
}

/// What a parameter's past steps left: both means in the parameter's shape.
#[derive(Debug)]
struct Moments {
    step: i32,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

const STEP: &str = "step";
const EXP_AVG: &str = "exp_avg";
const EXP_AVG_SQ: &str = "exp_avg_sq";

impl AdamW {
    /// With these options and no past.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, moments: BTreeMap::new() }
    }
}

impl Optimizer for AdamW {
    fn lr(&self) -> f64 {
        self.config.lr
    }

    fn step(&mut self, params: &Parameters, lr: f64) -> Result<(), StepError> {
        let Self { config, moments } = self;
        update_each(params, |name, param, grad| {
            if !moments.contains_key(name) {
                moments.insert(name.to_owned(), Moments::new(param)?);
            }
            match moments.get_mut(name) {
                Some(moments) => moments.update(config, param, grad, lr),
                None => Ok(()),
            }
        })
    }

    fn state(&self) -> Result<Vec<NamedHostTensor>, StateError> {
        let mut state = Vec::with_capacity(3 * self.moments.len());
        for (name, moments) in &self.moments {
            state.push(save(STEP, name, &Tensor::from(moments.step as f32))?);
            state.push(save(EXP_AVG, name, &moments.exp_avg)?);
            state.push(save(EXP_AVG_SQ, name, &moments.exp_avg_sq)?);
        }
        Ok(state)
    }

    fn load_state(&mut self, params: &Parameters, state: &[NamedHostTensor]) -> Result<(), StateError> {
        self.moments = Saved::new(state)?.for_each(params, STEP, |saved, name, shape| {
            let step = f64::try_from(saved.take(STEP, name, &[])?)
                .map_err(|source| StateError::Torch { name: name.to_owned(), source })?;
            Ok(Moments {
                step: step as i32,
                exp_avg: saved.take(EXP_AVG, name, shape)?,
                exp_avg_sq: saved.take(EXP_AVG_SQ, name, shape)?,
            })
        })?;
        Ok(())
    }
}

impl Moments {
    fn new(param: &Tensor) -> Result<Self, TchError> {
        Ok(Self { step: 0, exp_avg: param.f_zeros_like()?, exp_avg_sq: param.f_zeros_like()? })
    }

    /// The formulas in the order in which `torch.optim.AdamW` computes them.
    fn update(&mut self, config: &AdamWConfig, param: &mut Tensor, grad: &Tensor, lr: f64) -> Result<(), TchError> {
        let [beta1, beta2] = config.betas;
        self.step += 1;
        let correction1 = 1.0 - beta1.powi(self.step);
        let correction2 = 1.0 - beta2.powi(self.step);
        drop(param.f_mul_scalar_(1.0 - lr * config.weight_decay)?);
        drop(self.exp_avg.f_lerp_(grad, 1.0 - beta1)?);
        let squared = grad.f_square()?.f_mul_scalar(1.0 - beta2)?;
        drop(self.exp_avg_sq.f_mul_scalar_(beta2)?.f_add_(&squared)?);
        let denominator = self.exp_avg_sq.f_sqrt()?.f_div_scalar(correction2.sqrt())?.f_add_scalar(config.eps)?;
        let change = self.exp_avg.f_div(&denominator)?.f_mul_scalar(lr / correction1)?;
        drop(param.f_sub_(&change)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tch::{Kind, no_grad};

    use super::*;
    use crate::goldens::goldens;
    use crate::{Linear, LinearConfig, Schedule, clip_grad_norm};

    const NAMES: [&str; 3] = ["prompts", "deep_prompts", "score.weight"];

    fn set_grad(param: &Tensor, grad: &Tensor) {
        (param * grad).sum(Kind::Float).backward();
    }

    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        no_grad(|| (a - b).abs().max().double_value(&[]))
    }

    #[test]
    fn ten_steps_equal_pytorch() {
        let goldens = goldens(include_bytes!("../../testkit/goldens/adamw.safetensors"));
        let mut params = Parameters::new();
        for name in NAMES {
            drop(params.add(name, &goldens[&format!("init.{name}")]).expect("new"));
        }
        let mut optimizer = AdamW::new(AdamWConfig { lr: 1e-2, weight_decay: 0.01, ..AdamWConfig::default() });
        let schedule = Linear::new(LinearConfig { warmup_steps: 3 }, 10);
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
                let far = distance(param, &goldens[&format!("step{step}.param.{name}")]);
                assert!(far < 1e-6, "{name} is {far} away after step {step}");
            }
        }
    }

    #[test]
    fn without_a_gradient_nothing_moves() {
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
    fn a_state_of_other_parameters_is_refused() {
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
