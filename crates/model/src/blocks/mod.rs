//! Blocks of a model: in this process, on servers, or the first here and the others there.

mod local;
mod observation;
mod remote;
mod split;

use sepal_core::{Ragged, SpanError, Want};
use sepal_nn::Tunable;
use sepal_remote::{EvidenceHandler, RemoteError, ServerUsage};
use sepal_swarm::Traffic;
use tch::{TchError, Tensor};

pub use local::LocalBlocks;
pub use split::SplitBlocks;

/// Frozen transformer blocks as one differentiable operation.
pub trait Blocks {
    /// Starts a session with the tunables of one optimizer step.
    ///
    /// # Errors
    /// [`BlocksError`] if the blocks do not take a tunable, or it is not stacked by block.
    fn tune(&self, tunables: Vec<Tunable>) -> Result<Box<dyn BlocksSession + '_>, BlocksError>;

    /// Runs the backward pass of `loss`. An error of a server keeps its type.
    ///
    /// # Errors
    /// [`BlocksError`]; gradients that were computed before it have been added up.
    fn backward(&self, loss: &Tensor) -> Result<(), BlocksError>;

    /// Bytes sent and received so far.
    fn traffic(&self) -> &Traffic;

    /// Spans and their places, for messages, for example `blocks 0:10 in this process, 10:30`.
    fn description(&self) -> String;

    /// Number of servers that were found.
    fn n_servers(&self) -> usize;

    /// Calls and failures of each server so far.
    fn server_usage(&self) -> Vec<ServerUsage>;

    /// Passes the evidence against servers with wrong results to `handler`. Blocks without servers drop it.
    fn on_evidence(&self, handler: EvidenceHandler) {
        drop(handler);
    }

    /// Returns the blocks themselves if all of them are in this process.
    fn as_local(&self) -> Option<&LocalBlocks> {
        None
    }
}

/// Blocks with the tunables of one optimizer step.
pub trait BlocksSession {
    /// Returns the hidden states after the last block that `want` selects, before the final norm: `[rows, hidden]` or
    /// `[n_tokens, hidden]`.
    ///
    /// `prefix` is `[prefix_len, hidden]`, shared by all rows; `tokens` is `[n_tokens, hidden]`, the rows end to end. The
    /// result is differentiable in both and in the tunables.
    ///
    /// # Errors
    /// [`BlocksError`] if a block or a server fails.
    fn forward(
        &self,
        prefix: Option<&Tensor>,
        tokens: &Tensor,
        rows: &Ragged,
        want: Want,
    ) -> Result<Tensor, BlocksError>;

    /// Replaces the graph of the tunables, for a second backward pass within one step. Values that were uploaded stay.
    fn set_graph(&mut self, tunables: Vec<Tunable>);
}

/// A failure of blocks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlocksError {
    /// Failure of blocks in this process.
    #[error("run the blocks of this process")]
    Local(#[source] sepal_blocks::ForwardError),
    /// Failure of servers.
    #[error("run the remote blocks")]
    Remote(#[source] RemoteError),
    /// Observer behind the last block.
    #[error("observe hidden states before a block")]
    #[expect(missing_docs, reason = "the message names the fields")]
    Observation { source: SpanError },
    /// Failure of libtorch.
    #[error("compute a step")]
    Torch(#[from] TchError),
}

impl BlocksError {
    /// Error of the servers, if they failed.
    pub fn remote(&self) -> Option<&RemoteError> {
        match self {
            Self::Remote(error) => Some(error),
            _ => None,
        }
    }

    /// True if values exceeded the range of their 16-bit format, so that a smaller loss scale may help.
    pub fn is_overflow(&self) -> bool {
        self.remote().is_some_and(RemoteError::is_overflow)
    }

    /// True if servers with wrong results were taken out of use, so that the others can do the same work again.
    pub fn is_quarantine(&self) -> bool {
        self.remote().is_some_and(RemoteError::is_quarantine)
    }

    /// True if a server received or returned NaN or infinite values.
    pub fn is_non_finite(&self) -> bool {
        matches!(self, Self::Remote(RemoteError::NonFinite { .. } | RemoteError::NonFiniteInput { .. }))
    }
}
