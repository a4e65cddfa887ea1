use std::collections::BTreeMap;

use schemars::JsonSchema;
use sepal_core::NamedHostTensor;
use sepal_nn::Parameters;
use serde::{Deserialize, Serialize};
use tch::{Kind, TchError, Tensor};

use crate::state::{Saved, save, step_of};
use crate::{Optimizer, StateError, StepError, update_each};

/// Adafactor: squared gradients are kept by row and column alone (Shazeer and Stern, arXiv 1804.04235).
///
/// With `lr: 0.3`, `weight_decay: 1e-5` and a constant schedule it is what prompt tuning was introduced with (Lester et
/// al., arXiv 2104.08691). Step sizes that Adafactor finds by itself are left to schedules: `inverse-sqrt` is the nearest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdafactorConfig {
    /// Learning rate; the schedule multiplies it.
    #[schemars(range(min = 0.0))]
    pub lr: f64,
    /// Added to squared gradients, and the least that `scale_parameter` multiplies by.
    #[schemars(inner(range(min = 0.0)))]
    pub eps: [f64; 2],
    /// Largest root mean square of a parameter's step at learning rate 1; a larger one is scaled down to it.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub clip_threshold: f64,
    /// In step `t` the mean of squared gradients takes `t` to the power of this from the new ones: at 0 it keeps nothing
    /// of the past.
    #[schemars(range(max = 0.0))]
    pub decay_rate: f64,
    /// How much of the past a running mean of the steps keeps, at least 0 and below 1; without it there is none.
    #[schemars(range(min = 0.0, max = 0.999_999_999))]
    pub beta1: Option<f64>,
    /// Share of each weight that one step at learning rate 1 takes away.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// Whether a parameter's learning rate is multiplied by the root mean square of its numbers.
    pub scale_parameter: bool,
}

impl Default for AdafactorConfig {
    /// Those of transformers, with the learning rate and without the scaling that it advises for fine-tuning.
    fn default() -> Self {
        Self {
            lr: 1e-3,
            eps: [1e-30, 1e-3],
            clip_threshold: 1.0,
            decay_rate: -0.8,
            beta1: None,
            weight_decay: 0.0,
            scale_parameter: false,
        }
    }
}

/// Adafactor; each step equals that of `transformers.Adafactor` with `relative_step=False`.
///
/// That one rather than `torch.optim.Adafactor`, because there the scaling by the parameter's size cannot be turned off
/// and the learning rate is cut to one over the root of the step: it cannot do what papers on prompts did.
#[derive(Debug)]
pub struct Adafactor {
    config: AdafactorConfig,
    pasts: BTreeMap<String, Past>,
}

/// What a parameter's past steps left.
#[derive(Debug)]
struct Past {
    step: i32,
    squares: Squares,
    /// Running mean of the steps, in the parameter's shape.
    mean: Option<Tensor>,
}

/// Running means of squared gradients.
#[derive(Debug)]
enum Squares {
    /// Of a parameter `[.., rows, columns]`, over its columns `[.., rows]` and over its rows `[.., columns]`.
    Factored { row: Tensor, col: Tensor },
    /// Of a vector or a single number, in its shape.
    Whole(Tensor),
}

const STEP: &str = "step";
const ROW: &str = "exp_avg_sq_row";
const COL: &str = "exp_avg_sq_col";
const WHOLE: &str = "exp_avg_sq";
const MEAN: &str = "exp_avg";

impl Adafactor {
    /// With these options and no past.
    pub fn new(config: AdafactorConfig) -> Self {
        Self { config, pasts: BTreeMap::new() }
    }
}

impl Optimizer for Adafactor {
    fn lr(&self) -> f64 {
        self.config.lr
    }

    fn step(&mut self, params: &Parameters, lr: f64) -> Result<(), StepError> {
        let Self { config, pasts } = self;
        update_each(params, |name, param, grad| {
            if !pasts.contains_key(name) {
                pasts.insert(name.to_owned(), Past::new(param, config.beta1.is_some())?);
            }
            match pasts.get_mut(name) {
                Some(past) => past.update(config, param, grad, lr),
                None => Ok(()),
            }
        })
    }

    fn state(&self) -> Result<Vec<NamedHostTensor>, StateError> {
        let mut state = Vec::with_capacity(4 * self.pasts.len());
        for (name, past) in &self.pasts {
            state.push(save(STEP, name, &Tensor::from(past.step as f32))?);
            match &past.squares {
                Squares::Factored { row, col } => state.extend([save(ROW, name, row)?, save(COL, name, col)?]),
                Squares::Whole(whole) => state.push(save(WHOLE, name, whole)?),
            }
            if let Some(mean) = &past.mean {
                state.push(save(MEAN, name, mean)?);
            }
        }
        Ok(state)
    }

    fn load_state(&mut self, params: &Parameters, state: &[NamedHostTensor]) -> Result<(), StateError> {
        let keeps_mean = self.config.beta1.is_some();
        self.pasts = Saved::new(state)?.for_each(params, STEP, |saved, name, shape| {
            let step = step_of(saved, STEP, name)?;
            let squares = match factors(shape) {
                Some([row, col]) => {
                    Squares::Factored { row: saved.take(ROW, name, &row)?, col: saved.take(COL, name, &col)? }
                }
                None => Squares::Whole(saved.take(WHOLE, name, shape)?),
            };
            let mean = if keeps_mean { Some(saved.take(MEAN, name, shape)?) } else { None };
            Ok(Past { step, squares, mean })
        })?;
        Ok(())
    }
}

impl Past {
    fn new(param: &Tensor, keeps_mean: bool) -> Result<Self, TchError> {
        let zeros = |shape: Vec<i64>| Tensor::f_zeros(shape, (Kind::Float, param.device()));
        let squares = match factors(&param.size()) {
            Some([row, col]) => Squares::Factored { row: zeros(row)?, col: zeros(col)? },
            None => Squares::Whole(param.f_zeros_like()?),
        };
        let mean = if keeps_mean { Some(param.f_zeros_like()?) } else { None };
        Ok(Self { step: 0, squares, mean })
    }

    /// The formulas in the order in which `transformers.Adafactor` computes them.
    fn update(&mut self, config: &AdafactorConfig, param: &mut Tensor, grad: &Tensor, lr: f64) -> Result<(), TchError> {
        self.step += 1;
        let scale = if config.scale_parameter { rms(param)?.max(config.eps[1]) } else { 1.0 };
        let lr = lr * scale;
        let beta2 = 1.0 - f64::from(self.step).powf(config.decay_rate);
        let squared = grad.f_square()?.f_add_scalar(config.eps[0])?;
        let mut update = self.squares.take_in(&squared, beta2)?.f_mul(grad)?;
        drop(update.f_div_scalar_((rms(&update)? / config.clip_threshold).max(1.0))?);
        drop(update.f_mul_scalar_(lr)?);
        if let (Some(mean), Some(beta1)) = (&mut self.mean, config.beta1) {
            drop(mean.f_mul_scalar_(beta1)?.f_add_(&update.f_mul_scalar(1.0 - beta1)?)?);
            update = mean.shallow_clone();
        }
        drop(param.f_mul_scalar_(1.0 - config.weight_decay * lr)?);
        drop(param.f_sub_(&update)?);
        Ok(())
    }
}

impl Squares {
    /// Takes squared gradients into the means, of which `beta2` is kept, and returns one over the root of what they say
    /// each of them is.
    fn take_in(&mut self, squared: &Tensor, beta2: f64) -> Result<Tensor, TchError> {
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
            Squares::Whole(whole) => {
                mix(whole, squared)?;
                whole.f_rsqrt()
            }
        }
    }
}

/// The shapes of the means over columns and over rows; `None` for what has no rows and columns.
fn factors(shape: &[i64]) -> Option<[Vec<i64>; 2]> {
    match shape {
        [above @ .., rows, columns] => Some([[above, &[*rows]].concat(), [above, &[*columns]].concat()]),
        _ => None,
    }
}

/// Root mean square.
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
    fn a_state_of_other_options_is_refused() {
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
