use std::error::Error;
use std::path::Path;

use sepal_core::Span;
use tch::{TchError, Tensor};

/// What trains, and what is slipped into and around the frozen blocks.
pub trait TuningMode: Send {
    /// Soft prompts `[pre_seq_len, hidden]` that every row starts with, attached to the graph of the
    /// parameters; `None` if there are none.
    ///
    /// # Errors
    /// [`TuningError`] if libtorch refuses.
    fn prefix(&self) -> Result<Option<Tensor>, TuningError>;

    /// What the blocks of `span` are given once per optimizer step, attached to the graph of the parameters:
    /// - `deep_prompts [span.len(), pre_seq_len, hidden]`, added to the prefix's hidden states before each block;
    /// - `prefix_keys_values [span.len(), pre_seq_len, 2 * kv_size]`, which the rows see of the prefix instead of the keys
    ///   and values that each block would compute: keys of all heads, turned to their positions, then values. The
    ///   [`prefix`](Self::prefix) only holds their places then, and need not be attached to anything.
    ///
    /// # Errors
    /// [`TuningError::Span`] if the model has no such blocks.
    fn tunables(&self, span: Span) -> Result<Vec<NamedTensor>, TuningError>;

    /// How many positions [`prefix`](Self::prefix) has; 0 if there is none.
    fn pre_seq_len(&self) -> usize;

    /// The adapter that the prefix starts as, if it starts as one: a head of the same labels starts as the one in there.
    fn starts_as(&self) -> Option<&Path> {
        None
    }
}

/// A tensor with its name.
#[derive(Debug)]
pub struct NamedTensor {
    /// For example `deep_prompts`.
    pub name: String,
    /// The tensor.
    pub tensor: Tensor,
}

/// What a tuning mode cannot give.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TuningError {
    /// The model has no such blocks.
    #[error("tune blocks {span} of a model with {n_blocks} blocks")]
    Span {
        /// The blocks asked for.
        span: Span,
        /// The model's blocks.
        n_blocks: usize,
    },
    /// libtorch refused.
    #[error("compute the prompts")]
    Torch(#[from] TchError),
    /// A reason of the plugin's own.
    #[error("compute the prompts")]
    Other(#[source] Box<dyn Error + Send + Sync>),
}
