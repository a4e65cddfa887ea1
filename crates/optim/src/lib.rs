//! Optimizers, learning-rate schedules, gradient clipping and gradient scaling.
//!
//! Limits: this crate computes no gradients, counts no steps and knows no pipeline file. It updates the named tensors
//! of [`sepal_nn::Parameters`] in place. In the crate graph it stands above `nn` (libtorch) and `options`, and `plugin` and
//! `pipeline` use it.
//!
//! Invariants: a step equals PyTorch's; a parameter without a gradient keeps its value and its state; a schedule is a
//! pure function of the step and of the received evaluations; a saved and restored state continues bit-exactly.
//!
//! ```
//! use sepal_nn::Parameters;
//! use sepal_optim::{AdamW, AdamWConfig, Linear, LinearConfig, Optimizer, Schedule, clip_grad_norm};
//! use tch::{Kind, Tensor};
//!
//! let mut params = Parameters::new();
//! let x = params.add("x", &Tensor::from_slice(&[1.0_f32, -2.0]))?;
//! let mut optimizer = AdamW::new(AdamWConfig { lr: 0.1, ..AdamWConfig::default() });
//! let schedule = Linear::new(LinearConfig { warmup_steps: 2, ..LinearConfig::default() }, 100);
//! for step in 0..100 {
//!     params.zero_grad();
//!     x.square().f_sum(Kind::Float)?.f_backward()?;
//!     clip_grad_norm(&params, 1.0)?;
//!     optimizer.step(&params, optimizer.lr() * schedule.factor(step))?;
//! }
//! assert!(f64::try_from(x.f_abs()?.f_max()?)? < 0.1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adafactor;
mod adam;
mod clip;
#[cfg(test)]
mod goldens;
mod groups;
mod lion;
mod moments;
mod scaler;
mod schedule;
mod sgd;
mod state;

pub use adafactor::Adafactor;
pub use adam::{Adam, AdamW};
pub use clip::clip_grad_norm;
pub use groups::{GroupError, GroupedOptimizer};
pub use lion::Lion;
pub use scaler::GradScaler;
pub use schedule::{
    Constant, Cosine, CosineWithRestarts, InverseSqrt, Linear, Polynomial, ReduceOnPlateau, Schedule,
    WarmupStableDecay, steps_or_ratio,
};
pub use sepal_core::GradScalerConfig;
pub use sepal_options::{
    AdafactorConfig, AdamConfig, AdamWConfig, ConstantConfig, CosineConfig, CosineWithRestartsConfig, Decay,
    InverseSqrtConfig, LinearConfig, LionConfig, PlateauMode, PolynomialConfig, ReduceOnPlateauConfig, SgdConfig,
    ThresholdMode, WarmupStableDecayConfig,
};
pub use sgd::Sgd;
pub use state::StateError;

use sepal_core::NamedHostTensor;
use sepal_nn::Parameters;
use tch::{TchError, Tensor};

/// Optimizer of named parameters.
pub trait Optimizer: Send {
    /// Returns the learning rate of the options, before any schedule.
    fn lr(&self) -> f64;

    /// Makes one step at the learning rate `lr`, in place. Gradients are kept; parameters without one are skipped.
    ///
    /// # Errors
    /// [`StepError`] if libtorch fails; the parameters before the named one are updated then.
    fn step(&mut self, params: &Parameters, lr: f64) -> Result<(), StepError>;

    /// Returns the state of the optimizer as named tensors.
    ///
    /// # Errors
    /// [`StateError`] if libtorch cannot copy them.
    fn state(&self) -> Result<Vec<NamedHostTensor>, StateError>;

    /// Restores the state returned by [`state`](Self::state), for the same parameters.
    ///
    /// # Errors
    /// [`StateError`] if a tensor fits no parameter; nothing changes then.
    fn load_state(&mut self, params: &Parameters, state: &[NamedHostTensor]) -> Result<(), StateError>;
}

/// Failed step of one parameter.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("update parameter `{parameter}`")]
pub struct StepError {
    pub parameter: String,
    pub source: TchError,
}

/// Calls `update(name, parameter, gradient)` for each parameter with a gradient, without recording.
fn update_each(
    params: &Parameters,
    mut update: impl FnMut(&str, &mut Tensor, &Tensor) -> Result<(), TchError>,
) -> Result<(), StepError> {
    tch::no_grad(|| {
        for (name, tensor) in params.iter() {
            let failed = |source| StepError { parameter: name.to_owned(), source };
            let grad = tensor.f_grad().map_err(failed)?;
            if grad.defined() {
                update(name, &mut tensor.shallow_clone(), &grad).map_err(failed)?;
            }
        }
        Ok(())
    })
}
