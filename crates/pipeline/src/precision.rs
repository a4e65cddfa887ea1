//! Rounding to 16 bits, and the scale of the loss.

use sepal_core::NamedHostTensor;
use sepal_nn::Parameters;
use sepal_optim::{GradScaler, GradScalerConfig, Optimizer, StateError, StepError};
use tch::{Kind, TchError, Tensor};

use crate::error::RunError;
use crate::spec::Precision;

/// Steps in a row that may be skipped.
const MOST_SKIPS: u64 = 50;
/// The scale under which a skipped step is no matter of scale.
const LEAST_SCALE: f64 = 1e-4;

/// The numbers of `tensor` rounded to `precision`, in fp32: products are not computed in 16 bits, for which processors
/// without such arithmetic take 30 to 130 times as long. Differentiable; gradients are rounded in the same way.
pub(crate) fn rounded(tensor: Tensor, precision: Precision) -> Result<Tensor, TchError> {
    let kind = match precision {
        Precision::F32 => return Ok(tensor),
        Precision::Bf16 => Kind::BFloat16,
        Precision::F16 => Kind::Half,
    };
    tensor.f_to_kind(kind)?.f_to_kind(Kind::Float)
}

/// As [`rounded`], with gradients that are not: those of parameters are summed in fp32.
pub(crate) fn rounded_forward(tensor: &Tensor, precision: Precision) -> Result<Tensor, TchError> {
    // The difference is exact, and so is the sum.
    let change = tch::no_grad(|| rounded(tensor.detach(), precision)?.f_sub(tensor))?;
    tensor.f_add(&change)
}

/// Scales the loss, if that is asked for, and counts the steps that are skipped for it.
#[derive(Debug)]
pub(crate) struct Scaling {
    scaler: Option<GradScaler>,
    /// Steps skipped so far, and since the last that was not.
    skipped: u64,
    in_a_row: u64,
    /// What the loss was multiplied by in the last that was skipped.
    overflowed_at: f64,
}

impl Scaling {
    pub(crate) fn new(config: Option<GradScalerConfig>) -> Self {
        Self { scaler: config.map(GradScaler::new), skipped: 0, in_a_row: 0, overflowed_at: 1.0 }
    }

    /// What the loss is multiplied by in this step; nothing if it is not scaled.
    pub(crate) fn scale(&self) -> Option<f64> {
        self.scaler.as_ref().map(GradScaler::scale)
    }

    /// Steps skipped so far.
    pub(crate) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The loss to go backward from.
    pub(crate) fn scaled(&self, loss: Tensor) -> Result<Tensor, TchError> {
        match &self.scaler {
            Some(scaler) => scaler.scaled(&loss),
            None => Ok(loss),
        }
    }

    /// Makes gradients those of the plain loss, and says whether they are finite; they may be anything if the loss is
    /// not scaled.
    pub(crate) fn unscale(&mut self, params: &Parameters) -> Result<bool, TchError> {
        match &mut self.scaler {
            Some(scaler) => scaler.unscale(params),
            None => Ok(true),
        }
    }

    /// The optimizer's step, and the scale of the next one.
    pub(crate) fn step(
        &mut self,
        optimizer: &mut dyn Optimizer,
        params: &Parameters,
        lr: f64,
    ) -> Result<(), StepError> {
        match &mut self.scaler {
            Some(scaler) => {
                scaler.step(optimizer, params, lr)?;
                scaler.update();
            }
            None => optimizer.step(params, lr)?,
        }
        self.in_a_row = 0;
        Ok(())
    }

    /// Counts a step whose gradients were not finite, and lowers the scale of the next one, if there is a scale; says
    /// whether there is.
    pub(crate) fn skip(&mut self) -> bool {
        let Some(scaler) = &mut self.scaler else { return false };
        self.overflowed_at = scaler.scale();
        scaler.overflowed();
        scaler.update();
        self.skipped += 1;
        self.in_a_row += 1;
        true
    }

    /// Steps skipped in a row, and what the loss was multiplied by in the last of them.
    pub(crate) fn skips(&self) -> (u64, f64) {
        (self.in_a_row, self.overflowed_at)
    }

    /// All that the next step depends on besides [`skipped`](Self::skipped) and [`skips`](Self::skips).
    pub(crate) fn state(&self) -> Result<Vec<NamedHostTensor>, StateError> {
        self.scaler.as_ref().map_or(Ok(Vec::new()), GradScaler::state)
    }

    /// Goes on from what was saved.
    pub(crate) fn load_state(
        &mut self,
        state: &[NamedHostTensor],
        skipped: u64,
        skips: (u64, f64),
    ) -> Result<(), StateError> {
        if let Some(scaler) = &mut self.scaler {
            scaler.load_state(state)?;
        }
        (self.skipped, (self.in_a_row, self.overflowed_at)) = (skipped, skips);
        Ok(())
    }

    /// The error that ends the run, if so many steps in a row were skipped that a lower scale is no help.
    pub(crate) fn hopeless(&self, step: u64, reason: String) -> Option<RunError> {
        let may_help = self.in_a_row < MOST_SKIPS && self.scale().is_none_or(|scale| scale >= LEAST_SCALE);
        let (skips, scale) = (self.in_a_row, self.overflowed_at);
        (!may_help).then_some(RunError::Overflow { step, skips, scale, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.contiguous()).expect("numbers")
    }

    fn check(precision: Precision, expected: [f32; 5]) {
        let x = Tensor::from_slice(&[1.0_f32, 1.001, -3.3e-8, 65_519.0, 7.0e4]).set_requires_grad(true);
        let grad = Tensor::from_slice(&[1.001_f32; 5]);
        for gradient_too in [true, false] {
            let y = match gradient_too {
                true => rounded(x.shallow_clone(), precision),
                false => rounded_forward(&x, precision),
            };
            let y = y.expect("rounded");
            assert_eq!((numbers(&y), y.kind()), (expected.to_vec(), Kind::Float), "{precision:?}");
            let mut x = x.shallow_clone();
            x.zero_grad();
            (y * &grad).sum(Kind::Float).backward();
            let of_grad = if gradient_too { expected[1] } else { 1.001 };
            assert_eq!(numbers(&x.grad()), [of_grad; 5], "{precision:?}");
        }
    }

    #[test]
    fn numbers_and_gradients_are_rounded() {
        check(Precision::F32, [1.0, 1.001, -3.3e-8, 65_519.0, 7.0e4]);
        check(Precision::Bf16, [1.0, 1.0, -3.306_195e-8, 65_536.0, 70_144.0]);
        check(Precision::F16, [1.0, 1.000_976_6, -5.960_464_5e-8, 65_504.0, f32::INFINITY]);
    }

    #[test]
    fn skips_end_where_a_lower_scale_is_no_help() {
        let skips = |init_scale: f64| {
            let mut scaling = Scaling::new(Some(GradScalerConfig { init_scale, ..GradScalerConfig::default() }));
            loop {
                assert!(scaling.skip());
                match scaling.hopeless(7, "so it is".to_owned()) {
                    Some(RunError::Overflow { step: 7, skips, scale, .. }) => break (skips, scale, scaling.skipped()),
                    Some(error) => panic!("{error}"),
                    None => {}
                }
            }
        };
        assert_eq!(skips(1.0), (14, 0.5_f64.powi(13), 14), "a half to the power of 14 is 6e-5");
        assert_eq!(skips(65536.0), (30, 0.5_f64.powi(13), 30));
        assert_eq!(skips(2.0_f64.powi(100)), (MOST_SKIPS, 2.0_f64.powi(51), MOST_SKIPS));
        assert!(!Scaling::new(None).skip(), "without a scale there is nothing to lower");
    }
}
