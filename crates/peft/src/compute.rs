use sepal_blocks::{EndsError, ForwardError, LoadError};
use sepal_core::{RaggedError, SpanError};
use sepal_nn::HostError;
use tch::TchError;

/// The model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComputeError {
    /// Blocks or ends cannot be loaded.
    #[error("load the model")]
    Load(#[from] LoadError),
    /// Blocks do not take what they were given.
    #[error("run the model's blocks")]
    Forward(#[from] ForwardError),
    /// Embeddings or the final norm do not take what they were given.
    #[error("run the model's ends")]
    Ends(#[from] EndsError),
    /// The model has no blocks.
    #[error("name the model's blocks")]
    Span(#[from] SpanError),
    /// Rows to verify with that are none.
    #[error("lay out rows")]
    Rows(#[from] RaggedError),
    /// Tensors cannot be moved.
    #[error("move tensors")]
    Host(#[from] HostError),
    /// A block gave no keys and values; a fault of this program.
    #[error("fold the prompts: block {block_idx} gave no keys and values")]
    Nothing {
        /// The block.
        block_idx: usize,
    },
    /// libtorch refused, for example for want of memory.
    #[error("compute with libtorch")]
    Torch(#[from] TchError),
}
