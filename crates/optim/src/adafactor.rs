use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use sepal_core::NamedHostTensor;
use sepal_nn::Parameters;
use sepal_options::AdafactorConfig;
use tch::{Kind, TchError, Tensor};

use crate::state::{Saved, save};
use crate::{Optimizer, StateError, StepError, update_each};

/// Adafactor optimizer; each step equals that of `transformers.Adafactor` with `relative_step=False`.
///
/// The reference is not `torch.optim.Adafactor`, because there the scaling by the parameter's size is always on and the
/// learning rate is limited to one over the root of the step, unlike in papers on prompts.
#[derive(Debug)]
pub struct Adafactor {
    config: AdafactorConfig,
    states: BTreeMap<String, ParameterState>,
}

#[derive(Debug)]
struct ParameterState {
    step: i32,
    squares: Squares,
    /// Running mean of the steps, in the parameter's shape.
    mean: Option<Tensor>,
}

/// Running means of squared gradients.
#[derive(Debug)]
enum Squares {
    /// Parameter `[.., rows, columns]`: means over its columns `[.., rows]` and over its rows `[.., columns]`.
    Factored { row: Tensor, col: Tensor },
    /// Vector or scalar, in its shape.
    Full(Tensor),
}

const STEP: &str = "step";
const ROW: &str = "exp_avg_sq_row";
const COL: &str = "exp_avg_sq_col";
const FULL: &str = "exp_avg_sq";
const MEAN: &str = "exp_avg";

impl Adafactor {
    /// Creates an optimizer without state.
    pub fn new(config: AdafactorConfig) -> Self {
        Self { config, states: BTreeMap::new() }
    }
}

impl Optimizer for Adafactor {
    fn lr(&self) -> f64 {
        self.config.lr
    }

    fn step(&mut self, params: &Parameters, lr: f64) -> Result<(), StepError> {
        let Self { config, states } = self;
        update_each(params, |name, param, grad| {
            let state = match states.entry(name.to_owned()) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(ParameterState::new(param, config.beta1.is_some())?),
            };
            state.update(config, param, grad, lr)
        })
    }

    fn state(&self) -> Result<Vec<NamedHostTensor>, StateError> {
        let mut tensors = Vec::with_capacity(4 * self.states.len());
        for (name, state) in &self.states {
            tensors.push(save(STEP, name, &Tensor::from(state.step as f32))?);
            match &state.squares {
                Squares::Factored { row, col } => tensors.extend([save(ROW, name, row)?, save(COL, name, col)?]),
                Squares::Full(full) => tensors.push(save(FULL, name, full)?),
            }
            if let Some(mean) = &state.mean {
                tensors.push(save(MEAN, name, mean)?);
            }
        }
        Ok(tensors)
    }

    fn load_state(&mut self, params: &Parameters, state: &[NamedHostTensor]) -> Result<(), StateError> {
        let keeps_mean = self.config.beta1.is_some();
        self.states = Saved::new(state)?.for_each(params, STEP, |saved, name, shape| {
            let step = saved.take_count(STEP, name)?;
            let squares = match factors(shape) {
                Some([row, col]) => {
                    Squares::Factored { row: saved.take(ROW, name, &row)?, col: saved.take(COL, name, &col)? }
                }
                None => Squares::Full(saved.take(FULL, name, shape)?),
            };
            let mean = if keeps_mean { Some(saved.take(MEAN, name, shape)?) } else { None };
            Ok(ParameterState { step, squares, mean })
        })?;
        Ok(())
    }
}

impl ParameterState {
    fn new(param: &Tensor, keeps_mean: bool) -> Result<Self, TchError> {
        let zeros = |shape: Vec<i64>| Tensor::f_zeros(shape, (Kind::Float, param.device()));
        let squares = match factors(&param.size()) {
            Some([row, col]) => Squares::Factored { row: zeros(row)?, col: zeros(col)? },
            None => Squares::Full(param.f_zeros_like()?),
        };
        let mean = if keeps_mean { Some(param.f_zeros_like()?) } else { None };
        Ok(Self { step: 0, squares, mean })
    }

    /// Computes the formulas in the order of `transformers.Adafactor`.
    fn update(&mut self, config: &AdafactorConfig, param: &mut Tensor, grad: &Tensor, lr: f64) -> Result<(), TchError> {
        self.step += 1;
        let scale = if config.scale_parameter { rms(param)?.max(config.eps[1]) } else { 1.0 };
        let lr = lr * scale;
        let beta2 = 1.0 - f64::from(self.step).powf(config.decay_rate);
        let squared = grad.f_square()?.f_add_scalar(config.eps[0])?;
        let mut update = self.squares.update(&squared, beta2)?.f_mul(grad)?;
        drop(update.f_div_scalar_((rms(&update)? / config.clip_threshold).max(1.0))?);
        drop(update.f_mul_scalar_(lr)?);
        if let (Some(mean), Some(beta1)) = (&mut self.mean, config.beta1) {
            drop(mean.f_mul_scalar_(beta1)?.f_add_(&update.f_mul_scalar(1.0 - beta1)?)?);
            update = mean.shallow_clone();
        }
        drop(param.f_mul_scalar_(1.0 - config.weight_decay * lr)?);
        param.f_sub_(&update).map(drop)
    }
}

impl Squares {
    /// Updates the means with squared gradients, of which `beta2` is kept, and returns the inverse root of their
    /// estimate.
    fn update(&mut self, squared: &Tensor, beta2: f64) -> Result<Tensor, TchError> {
        let mix = |mean: &mut Tensor, new: &Tensor| -> Result<(), TchError> {
            mean.f_mul_scalar_(beta2)?.f_add_(&new.f_mul_scalar(1.0 - beta2)?).map(drop)
        };
        let mean_over = |tensor: &Tensor, dim: i64, keep: bool| tensor.f_mean_dim([dim].as_slice(), keep, Kind::Float);
        match self {
            Squares::Factored { row, col } => {
                mix(row, &mean_over(squared, -1, false)?)?;
                mix(col, &mean_over(squared, -2, false)?)?;
                let of_row = row.f_div(&mean_over(row, -1, true)?)?.f_rsqrt()?.f_unsqueeze(-1)?; // [.., rows, 1]
                of_row.f_mul(&col.f_rsqrt()?.f_unsqueeze(-2)?) // [.., rows, columns]
            }
            Squares::Full(full) => {
                mix(full, squared)?;
                full.f_rsqrt()
            }
        }
    }
}

/// Shapes of the means over columns and over rows; none for vectors and scalars.
fn factors(shape: &[i64]) -> Option<[Vec<i64>; 2]> {
    match shape {
        [above @ .., rows, columns] => Some([[above, &[*rows]].concat(), [above, &[*columns]].concat()]),
        _ => None,
    }
}

fn rms(tensor: &Tensor) -> Result<f64, TchError> {
    Ok(f64::try_from(tensor.f_norm()?)? / (tensor.numel() as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goldens::check_run;

    #[test]
    fn twelve_steps_equal_transformers() {
        let plain = AdafactorConfig { lr: 0.3, weight_decay: 1e-2, ..AdafactorConfig::default() };
        check_run("adafactor", || Box::new(Adafactor::new(plain.clone())));
        let full = AdafactorConfig {
            lr: 0.1,
            eps: [1e-10, 1e-2],
            clip_threshold: 0.7,
            decay_rate: -0.6,
            beta1: Some(0.8),
            weight_decay: 0.1,
            scale_parameter: true,
        };
        check_run("adafactor-full", || Box::new(Adafactor::new(full.clone())));
    }

    #[test]
    fn load_state_of_other_options_is_error() {
        let mut params = Parameters::new();
        let x = params.add("x", &Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0]).view([2, 2])).expect("new");
        x.sum(Kind::Float).backward();
        let mut optimizer = Adafactor::new(AdafactorConfig { beta1: Some(0.9), ..AdafactorConfig::default() });
        optimizer.step(&params, 0.1).expect("a step");
        let state = optimizer.state().expect("a state");
        let mut without = Adafactor::new(AdafactorConfig::default());
        assert!(matches!(without.load_state(&params, &state), Err(StateError::Unknown { .. })));
        let partial: Vec<NamedHostTensor> = state.iter().filter(|named| named.name != "exp_avg.x").cloned().collect();
        assert!(matches!(optimizer.load_state(&params, &partial), Err(StateError::Missing { .. })));
        without.load_state(&params, &partial).expect("all that it keeps");
    }
}
