//! Loss scaling and skipped steps.

use sepal_core::NamedHostTensor;
use sepal_nn::Parameters;
use sepal_optim::{GradScaler, GradScalerConfig, Optimizer, StateError, StepError};
use tch::{TchError, Tensor};

use crate::error::TrainError;

/// Consecutive steps that may be skipped.
const MAX_SKIPS: u64 = 50;
/// Loss scale below which a smaller one no longer helps.
const MIN_SCALE: f64 = 1e-4;

/// Scale of the loss, if it is scaled, and the steps that were skipped because of overflow.
#[derive(Debug)]
pub struct LossScaling {
    scaler: Option<GradScaler>,
    skipped: u64,
    /// Skipped steps since the last one that was made.
    consecutive: u64,
    /// Loss scale of the last skipped step.
    overflowed_at: f64,
}

impl LossScaling {
    /// Starts with the initial scale of `config`; without a config, the loss is not scaled.
    pub fn new(config: Option<GradScalerConfig>) -> Self {
        Self { scaler: config.map(GradScaler::new), skipped: 0, consecutive: 0, overflowed_at: 1.0 }
    }

    /// Factor of the loss in the next step; `None` if the loss is not scaled.
    pub fn scale(&self) -> Option<f64> {
        self.scaler.as_ref().map(GradScaler::scale)
    }

    pub(crate) fn skipped(&self) -> u64 {
        self.skipped
    }

    pub(crate) fn scaled(&self, loss: Tensor) -> Result<Tensor, TchError> {
        match &self.scaler {
            Some(scaler) => scaler.scale_loss(&loss),
            None => Ok(loss),
        }
    }

    /// Divides the gradients by the scale. Returns true if they are finite, or the loss is not scaled.
    pub(crate) fn unscale(&mut self, params: &Parameters) -> Result<bool, TchError> {
        match &mut self.scaler {
            Some(scaler) => scaler.unscale(params),
            None => Ok(true),
        }
    }

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
        self.consecutive = 0;
        Ok(())
    }

    /// Counts a skipped step and lowers the scale. Returns false if the loss is not scaled.
    pub(crate) fn skip(&mut self) -> bool {
        let Some(scaler) = &mut self.scaler else { return false };
        self.overflowed_at = scaler.scale();
        scaler.record_overflow();
        scaler.update();
        self.skipped += 1;
        self.consecutive += 1;
        true
    }

    /// Number of consecutive skipped steps, and the loss scale of the last one.
    pub(crate) fn skips(&self) -> (u64, f64) {
        (self.consecutive, self.overflowed_at)
    }

    pub(crate) fn state(&self) -> Result<Vec<NamedHostTensor>, StateError> {
        self.scaler.as_ref().map_or(Ok(Vec::new()), GradScaler::state)
    }

    pub(crate) fn load_state(
        &mut self,
        state: &[NamedHostTensor],
        skipped: u64,
        skips: (u64, f64),
    ) -> Result<(), StateError> {
        if let Some(scaler) = &mut self.scaler {
            scaler.load_state(state)?;
        }
        (self.skipped, (self.consecutive, self.overflowed_at)) = (skipped, skips);
        Ok(())
    }

    /// Returns the error that ends the run if a lower scale no longer helps.
    pub(crate) fn exhausted(&self, step: u64, reason: String) -> Option<TrainError> {
        let may_recover = self.consecutive < MAX_SKIPS && self.scale().is_none_or(|scale| scale >= MIN_SCALE);
        let (skips, scale) = (self.consecutive, self.overflowed_at);
        (!may_recover).then_some(TrainError::Overflow { step, skips, scale, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_skips_end_the_run() {
        let skips = |init_scale: f64| {
            let mut scaling = LossScaling::new(Some(GradScalerConfig { init_scale, ..GradScalerConfig::default() }));
            loop {
                assert!(scaling.skip());
                match scaling.exhausted(7, "overflow".to_owned()) {
                    Some(TrainError::Overflow { step: 7, skips, scale, .. }) => {
                        break (skips, scale, scaling.skipped());
                    }
                    Some(error) => panic!("{error}"),
                    None => {}
                }
            }
        };
        assert_eq!(skips(1.0), (14, 0.5_f64.powi(13), 14), "a half to the power of 14 is 6e-5");
        assert_eq!(skips(65536.0), (30, 0.5_f64.powi(13), 30));
        assert_eq!(skips(2.0_f64.powi(100)), (MAX_SKIPS, 2.0_f64.powi(51), MAX_SKIPS));
        assert!(!LossScaling::new(None).skip(), "the loss is not scaled");
    }
}
