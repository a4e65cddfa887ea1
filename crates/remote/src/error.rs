use std::time::Duration;

use sepal_core::{DType, Span};
use sepal_wire::codec::DecodeError;
use sepal_wire::{Failure, FailureCode, Retry};

/// What a caller of remote blocks is told.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// A server serves another model, or the same with other weights.
    #[error("server {server} serves another model: {what} is {found}, expected {expected}")]
    WrongModel {
        /// Its address.
        server: String,
        /// What differs: digest, number of blocks, hidden size or protocol.
        what: &'static str,
        /// As the client has it.
        expected: String,
        /// As the server has it.
        found: String,
    },
    /// No server holds these blocks.
    #[error("no server holds blocks {missing}{}; start one with `sepal serve MODEL --blocks {missing}`", unreachable.iter().map(|u| format!("; {u}")).collect::<String>())]
    Uncovered {
        /// The first run of blocks that nobody holds.
        missing: Span,
        /// Servers that could not be reached, each with its reason.
        unreachable: Vec<String>,
    },
    /// Every server that holds a block went on failing.
    #[error("no server answered for blocks {span} within {} s; last: {last}", waited.as_secs_f64())]
    NoServer {
        /// The blocks that could not be run.
        span: Span,
        /// How long it was tried.
        waited: Duration,
        /// The last failure.
        last: String,
    },
    /// A server says that the request is wrong; it is not sent again.
    #[error("server {server} refused a call for blocks {span}: {failure}")]
    Refused {
        /// Its address.
        server: String,
        /// The blocks that were asked for.
        span: Span,
        /// What it said.
        failure: Failure,
    },
    /// Numbers that are infinite or not numbers came back.
    #[error("server {server} returned {what} that are not finite for blocks {span}")]
    NonFinite {
        /// Its address.
        server: String,
        /// The block, or where the server names none, its blocks.
        span: Span,
        /// Hidden states or gradients.
        what: &'static str,
    },
    /// What the client sends is not finite, or not so in the format that it goes in.
    #[error("send {what} that are not finite in {dtype}")]
    NonFiniteInput {
        /// Prompts, hidden states or gradients.
        what: &'static str,
        /// What they go as.
        dtype: DType,
    },
    /// Shapes that do not fit together.
    #[error("run remote blocks: {what} has shape {found:?}, expected {expected}")]
    Shape {
        /// Which argument.
        what: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        found: Vec<i64>,
    },
    /// libtorch failed in this process.
    #[error("prepare or read tensors of a remote call: {message}")]
    Local {
        /// What it said.
        message: String,
    },
    /// The thread that speaks with the servers has ended.
    #[error("the thread that speaks with the servers has stopped")]
    Stopped,
}

/// What is not finite in [`RemoteError::NonFinite`] and [`RemoteError::NonFiniteInput`].
pub(crate) const GRADIENTS: &str = "gradients";
pub(crate) const HIDDEN_STATES: &str = "hidden states";
pub(crate) const PROMPTS: &str = "prompts";

impl RemoteError {
    /// Whether numbers were too large for the format that they go in, or grew out of all bounds on a server. The same
    /// call with a smaller loss, or with other rows, may do; prompts that are not finite stay so.
    pub fn is_overflow(&self) -> bool {
        match self {
            RemoteError::NonFinite { .. } => true,
            RemoteError::NonFiniteInput { what, .. } => *what != PROMPTS,
            _ => false,
        }
    }

    pub(crate) fn local(error: impl std::fmt::Display) -> Self {
        RemoteError::Local { message: error.to_string() }
    }
}

/// What became of one call to one server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("{0}")]
    Failure(Failure),
    #[error("could not connect: {0}")]
    Connect(std::io::Error),
    #[error("the connection failed: {0}")]
    Transport(capnp::Error),
    #[error("no answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
    #[error("it does not answer {:.1} s after a call: {error}", after.as_secs_f64())]
    Hung { after: Duration, error: Box<CallError> },
    #[error("it is idle {:.1} s after a call: the call was lost", after.as_secs_f64())]
    Lost { after: Duration },
    #[error("it has finished nothing for a while, {:.1} s after a call", after.as_secs_f64())]
    Stalled { after: Duration },
    #[error("it was left after another call failed")]
    Left,
    #[error("an answer that cannot be read: {0}")]
    Decode(#[from] DecodeError),
    /// It serves another model, or speaks otherwise.
    #[error("{0}")]
    Unusable(RemoteError),
    #[error("an answer without {0}")]
    Missing(&'static str),
}

impl From<capnp::Error> for CallError {
    fn from(error: capnp::Error) -> Self {
        CallError::Transport(error)
    }
}

impl CallError {
    /// What may be done about it. A server that answers nonsense is left like one that does not answer.
    pub(crate) fn retry(&self) -> Retry {
        match self {
            CallError::Failure(failure) => failure.retry,
            _ => Retry::Elsewhere,
        }
    }

    /// Whether the server took too long, rather than being gone.
    pub(crate) fn is_late(&self) -> bool {
        matches!(
            self,
            CallError::Timeout(_) | CallError::Hung { .. } | CallError::Lost { .. } | CallError::Stalled { .. }
        )
    }

    pub(crate) fn is_tape_expired(&self) -> bool {
        matches!(self, CallError::Failure(failure) if failure.code == FailureCode::TapeExpired)
    }
}
