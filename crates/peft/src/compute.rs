use sepal_blocks::{EndsError, ForwardError, LoadError};
use sepal_core::{RaggedError, SpanError};
use sepal_nn::HostError;
use tch::TchError;

/// Error of loading or running the model.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum ComputeError {
    /// Blocks or ends cannot be loaded.
    #[error("load the model")]
    Load(#[from] LoadError),
    /// The blocks refuse the input.
    #[error("run the model's blocks")]
    Forward(#[from] ForwardError),
    /// Embeddings or the final norm refuse the input.
    #[error("run the model's ends")]
    Ends(#[from] EndsError),
    /// The model has no blocks.
    #[error("name the model's blocks")]
    Span(#[from] SpanError),
    /// Rows to verify with are invalid.
    #[error("lay out rows")]
    Rows(#[from] RaggedError),
    /// Tensors cannot be moved.
    #[error("move tensors")]
    Host(#[from] HostError),
    /// A block returned no keys and values, which is a bug.
    #[error("fold the prompts: block {block_idx} gave no keys and values")]
    Nothing { block_idx: usize },
    /// libtorch refused, for example for want of memory.
    #[error("compute with libtorch")]
    Torch(#[from] TchError),
}
