use std::error::Error;
use std::path::Path;

use sepal_nn::Tunable;
use tch::{TchError, Tensor};

/// Tuning mode: the trainable tensors injected into the frozen model.
pub trait TuningMode: Send {
    /// Returns the soft prompts `[pre_seq_len, hidden]` before every row, attached to the graph of the parameters;
    /// `None` if there are none.
    ///
    /// # Errors
    /// [`TuningError`] if libtorch fails.
    fn prefix(&self) -> Result<Option<Tensor>, TuningError>;

    /// Returns the tunables for one optimizer step, attached to the graph of the parameters: trainable tensors that the
    /// blocks take, stacked by block, by the names of [`TunableName`](sepal_core::TunableName).
    ///
    /// With `prefix_keys_values`, the [`prefix`](Self::prefix) is only a placeholder for its positions and need not be
    /// attached to a graph.
    ///
    /// # Errors
    /// [`TuningError`] if libtorch fails.
    fn tunables(&self) -> Result<Vec<Tunable>, TuningError>;

    /// Number of positions of the [`prefix`](Self::prefix); 0 if there is none.
    fn pre_seq_len(&self) -> usize;

    /// Adapter that the parameters are initialised with, if any. A head with the same labels is initialised with the
    /// adapter's head.
    fn starts_as(&self) -> Option<&Path> {
        None
    }
}

/// A tuning mode that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TuningError {
    /// Failure of libtorch.
    #[error("compute prompts or tunables")]
    Torch(#[from] TchError),
    /// Failure specific to the plugin.
    #[error("compute prompts or tunables")]
    Other(#[source] Box<dyn Error + Send + Sync>),
}
