//! Blocks of a model: in this process, on servers, or the first here and the others there.

mod local;
mod remote;
mod split;

use sepal_core::Ragged;
use sepal_remote::{RemoteError, ServerUsage};
use sepal_swarm::Traffic;
use tch::{TchError, Tensor};

pub use local::LocalBlocks;
pub use split::SplitBlocks;

/// Frozen transformer blocks as one differentiable operation.
pub trait Blocks {
    /// Starts a session with the tunables of one optimizer step, each stacked by block: `[n_blocks, ..]`.
    ///
    /// # Errors
    /// [`BlocksError`] if the blocks do not support a tunable, or it is not stacked by block.
    fn tune(&self, tunables: Vec<(String, Tensor)>) -> Result<Box<dyn BlocksSession + '_>, BlocksError>;

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
}

/// Blocks with the tunables of one optimizer step.
pub trait BlocksSession {
    /// Returns the hidden state of each row's last token after the last block, before the final norm: `[rows, hidden]`.
    ///
    /// `prefix` is `[prefix_len, hidden]`, shared by all rows; `tokens` is `[n_tokens, hidden]`, the rows end to end. The
    /// result is differentiable in both and in the tunables.
    ///
    /// # Errors
    /// [`BlocksError`] if a block or a server fails.
    fn forward(&self, prefix: Option<&Tensor>, tokens: &Tensor, rows: &Ragged) -> Result<Tensor, BlocksError>;

    /// Replaces the graph of the tunables, for a second backward pass within one step. Values that were uploaded stay.
    fn set_graph(&mut self, tunables: Vec<(String, Tensor)>);
}

/// A failure of blocks.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum BlocksError {
    /// Tunable that blocks in this process do not support.
    #[error("tune the blocks of this process: they know {}, not `{name}`", local::TUNABLES.join(" and "))]
    Tunable { name: String },
    /// Failure of blocks in this process.
    #[error("run the blocks of this process")]
    Local(#[source] sepal_blocks::ForwardError),
    /// Failure of servers.
    #[error("run the remote blocks")]
    Remote(#[source] RemoteError),
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

    /// True if a server received or returned NaN or infinite values.
    pub fn is_non_finite(&self) -> bool {
        matches!(self, Self::Remote(RemoteError::NonFinite { .. } | RemoteError::NonFiniteInput { .. }))
    }
}
