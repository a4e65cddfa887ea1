//! Running means of Adam and AdamW.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use sepal_core::NamedHostTensor;
use sepal_nn::Parameters;
use tch::{TchError, Tensor};

use crate::StateError;
use crate::state::{Saved, save};

#[derive(Debug, Default)]
pub(crate) struct Moments(BTreeMap<String, Moment>);

/// Moments of one parameter, both means in its shape.
#[derive(Debug)]
struct Moment {
    step: i32,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

const STEP: &str = "step";
const EXP_AVG: &str = "exp_avg";
const EXP_AVG_SQ: &str = "exp_avg_sq";

impl Moments {
    /// Updates the means of the parameter `name` with `grad`, and updates the parameter. Computes the formulas in the
    /// order of `torch.optim.Adam`.
    pub(crate) fn update(
        &mut self,
        name: &str,
        param: &mut Tensor,
        grad: &Tensor,
        [beta1, beta2]: [f64; 2],
        eps: f64,
        lr: f64,
    ) -> Result<(), TchError> {
        let Moment { step, exp_avg, exp_avg_sq } = match self.0.entry(name.to_owned()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let (exp_avg, exp_avg_sq) = (param.f_zeros_like()?, param.f_zeros_like()?);
                entry.insert(Moment { step: 0, exp_avg, exp_avg_sq })
            }
        };
        *step += 1;
        let correction1 = 1.0 - beta1.powi(*step);
        let correction2 = 1.0 - beta2.powi(*step);
        drop(exp_avg.f_lerp_(grad, 1.0 - beta1)?);
        let squared = grad.f_square()?.f_mul_scalar(1.0 - beta2)?;
        drop(exp_avg_sq.f_mul_scalar_(beta2)?.f_add_(&squared)?);
        let denominator = exp_avg_sq.f_sqrt()?.f_div_scalar(correction2.sqrt())?.f_add_scalar(eps)?;
        let change = exp_avg.f_div(&denominator)?.f_mul_scalar(lr / correction1)?;
        param.f_sub_(&change).map(drop)
    }

    pub(crate) fn state(&self) -> Result<Vec<NamedHostTensor>, StateError> {
        let mut state = Vec::with_capacity(3 * self.0.len());
        for (name, moment) in &self.0 {
            state.push(save(STEP, name, &Tensor::from(moment.step as f32))?);
            state.push(save(EXP_AVG, name, &moment.exp_avg)?);
            state.push(save(EXP_AVG_SQ, name, &moment.exp_avg_sq)?);
        }
        Ok(state)
    }

    pub(crate) fn load(params: &Parameters, state: &[NamedHostTensor]) -> Result<Self, StateError> {
        let moments = Saved::new(state)?.for_each(params, STEP, |saved, name, shape| {
            Ok(Moment {
                step: saved.take_count(STEP, name)?,
                exp_avg: saved.take(EXP_AVG, name, shape)?,
                exp_avg_sq: saved.take(EXP_AVG_SQ, name, shape)?,
            })
        })?;
        Ok(Self(moments))
    }
}
