//! What moves the parameters: optimizers, learning-rate schedules, clipping and scaling of gradients.
//!
//! This crate computes no gradients, counts no steps for the caller and knows no pipeline file. It works on
//! the named tensors of [`sepal_nn::Parameters`] and changes them in place.
//!
//! Invariants: a step equals PyTorch's; a parameter without a gradient is left as it is and its state does
//! not age; a schedule is a pure function of the step and of the evaluations that it was told of; what is saved as
//! a state and restored goes on to the last bit.
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
mod adamw;
mod clip;
#[cfg(test)]
mod goldens;
mod lion;
mod moments;
mod scaler;
mod schedule;
mod sgd;
mod state;

pub use adafactor::{Adafactor, AdafactorConfig};
pub use adam::{Adam, AdamConfig};
pub use adamw::{AdamW, AdamWConfig};
pub use clip::clip_grad_norm;
pub use lion::{Lion, LionConfig};
pub use scaler::GradScaler;
pub use schedule::{
    Constant, ConstantConfig, Cosine, CosineConfig, CosineWithRestarts, CosineWithRestartsConfig, Decay, InverseSqrt,
    InverseSqrtConfig, Linear, LinearConfig, PlateauMode, Polynomial, PolynomialConfig, ReduceOnPlateau,
    ReduceOnPlateauConfig, Schedule, ThresholdMode, WarmupStableDecay, WarmupStableDecayConfig, share_of,
};
pub use sepal_core::GradScalerConfig;
pub use sgd::{Sgd, SgdConfig};
pub use state::StateError;

use sepal_core::NamedHostTensor;
use sepal_nn::Parameters;
use tch::{TchError, Tensor};

/// Moves parameters against their gradients.
pub trait Optimizer: Send {
    /// The learning rate that the options give, before any schedule.
    fn lr(&self) -> f64;

    /// One step at the learning rate `lr`, in place. Gradients are read and kept; parameters without one are
    /// skipped.
    ///
    /// # Errors
    /// [`StepError`] if libtorch refuses; parameters before the named one have moved then.
    fn step(&mut self, params: &Parameters, lr: f64) -> Result<(), StepError>;

    /// All that the next step depends on besides parameters and gradients, as named tensors to be saved.
    ///
    /// # Errors
    /// [`StateError`] if libtorch cannot copy them.
    fn state(&self) -> Result<Vec<NamedHostTensor>, StateError>;

    /// Goes on from what [`state`](Self::state) gave, for the same parameters.
    ///
    /// # Errors
    /// [`StateError`], and nothing changes, if a tensor fits no parameter.
    fn load_state(&mut self, params: &Parameters, state: &[NamedHostTensor]) -> Result<(), StateError>;
}

/// A step that libtorch refused.
#[derive(Debug, thiserror::Error)]
#[error("update parameter `{parameter}`")]
pub struct StepError {
    /// The parameter.
    pub parameter: String,
    /// What libtorch said.
    #[source]
    pub source: TchError,
}

/// Calls `update(name, parameter, gradient)` for each parameter that has a gradient, without recording.
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
