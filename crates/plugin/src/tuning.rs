use std::error::Error;
use std::path::Path;

use sepal_core::Span;
use tch::{TchError, Tensor};

/// Tuning mode: the trainable tensors injected into the frozen model.
pub trait TuningMode: Send {
    /// Returns the soft prompts `[pre_seq_len, hidden]` before every row, attached to the graph of the parameters;
    /// `None` if there are none.
    ///
    /// # Errors
    /// [`TuningError`] if libtorch fails.
    fn prefix(&self) -> Result<Option<Tensor>, TuningError>;

    /// Returns the tunables of the blocks of `span` for one optimizer step, attached to the graph of the parameters:
    /// - `deep_prompts [span.len(), pre_seq_len, hidden]`, added to the prefix's hidden states before each block;
    /// - `prefix_keys_values [span.len(), pre_seq_len, 2 * kv_size]`, which replace the keys and values that each block
    ///   would compute for the prefix: rotated keys of all heads, then values. The [`prefix`](Self::prefix) is only a
    ///   placeholder for its positions then, and need not be attached to a graph.
    ///
    /// # Errors
    /// [`TuningError::Span`] if the model has no such blocks.
    fn tunables(&self, span: Span) -> Result<Vec<NamedTensor>, TuningError>;

    /// Number of positions of the [`prefix`](Self::prefix); 0 if there is none.
    fn pre_seq_len(&self) -> usize;

    /// Adapter that the prefix is initialised with, if any. A head with the same labels is initialised with the
    /// adapter's head.
    fn starts_as(&self) -> Option<&Path> {
        None
    }
}

/// Tensor with its name.
#[derive(Debug)]
pub struct NamedTensor {
    /// Name, for example `deep_prompts`.
    pub name: String,
    /// Tensor.
    pub tensor: Tensor,
}

/// A tuning mode that failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum TuningError {
    /// Blocks that the model does not have.
    #[error("tune blocks {span} of a model with {n_blocks} blocks")]
    Span { span: Span, n_blocks: usize },
    /// Failure of libtorch.
    #[error("compute the prompts")]
    Torch(#[from] TchError),
    /// Failure specific to the plugin.
    #[error("compute the prompts")]
    Other(#[source] Box<dyn Error + Send + Sync>),
}
