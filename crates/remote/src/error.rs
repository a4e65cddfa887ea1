use std::time::Duration;

use sepal_core::{DType, Span};
use sepal_wire::codec::DecodeError;
use sepal_wire::{Failure, FailureCode, Retry, RpcError};

/// Error of remote blocks.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum RemoteError {
    /// A server serves another model, or the same model with other weights.
    #[error("server {server} serves another model: {what} is {found}, expected {expected}")]
    WrongModel {
        server: String,
        /// Property that differs: digest, number of blocks, hidden size or protocol.
        what: &'static str,
        expected: String,
        found: String,
    },
    /// A server's blocks do not take a tunable of the run.
    #[error("server {server} is not used: its blocks do not take `{tunable}`; update it")]
    Lacks { server: String, tunable: String },
    /// No server holds these blocks.
    #[error("no server holds blocks {missing}{}", unreachable.iter().map(|u| format!("; {u}")).collect::<String>())]
    Uncovered {
        /// First contiguous span of blocks without a server.
        missing: Span,
        /// Servers that could not be reached, each with its reason.
        unreachable: Vec<String>,
    },
    /// Every server that holds a block kept failing.
    #[error("no server answered for blocks {span} within {} s{}", waited.as_secs_f64(), in_sequence(failures))]
    NoServer {
        span: Span,
        waited: Duration,
        /// Servers of these blocks, each with its last failure.
        failures: Vec<String>,
    },
    /// Two servers refused a request as invalid, or the only one of these blocks did so twice.
    #[error("run blocks {span}{}", in_sequence(refusals))]
    Refused {
        span: Span,
        /// One of each server.
        refusals: Vec<Refusal>,
    },
    /// A server returned NaN or infinite numbers.
    #[error("server {server} returned non-finite {what} for blocks {span}")]
    NonFinite {
        server: String,
        /// Block that produced them, or all blocks of the call if the server names none.
        span: Span,
        what: &'static str,
    },
    /// Checks found wrong results. The servers that returned them are not used again; the same work gives right results on the
    /// others. No server is named if several made the results, by relays or from a cached prompt, which are not used any more.
    #[error("check the results of servers: {}; the others can do the work again", list_liars(servers))]
    Quarantined { servers: Vec<String> },
    /// Checks found different results, and nothing tells which are right.
    #[error(
        "check the results of servers: {} returned different results for blocks {span}, and no other server tells which are \
         right",
        servers.join(" and ")
    )]
    Disputed { servers: Vec<String>, span: Span },
    /// The caller's numbers are NaN or infinite, perhaps only in the number format of the wire.
    #[error("send non-finite {what} as {dtype}")]
    NonFiniteInput { what: &'static str, dtype: DType },
    /// Shapes that do not fit together.
    #[error("run remote blocks: {what} has shape {found:?}, expected {expected}")]
    Shape { what: &'static str, expected: String, found: Vec<i64> },
    /// Prefix of another length than a tunable is for, 0 without a prefix: the tunable would have no effect and no gradient.
    #[error("run remote blocks on a prefix of {found} positions: `{tunable}` is for one of {expected}")]
    PrefixLen { tunable: String, expected: usize, found: usize },
    /// libtorch failed in this process.
    #[error("prepare or read tensors of a remote call: {message}")]
    Local { message: String },
    /// The RPC thread has ended.
    #[error("the RPC thread has stopped")]
    Stopped,
}

/// Server that refused a request as invalid, with its reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("server {server} refused a call: {failure}")]
pub struct Refusal {
    pub server: String,
    pub failure: Failure,
}

fn in_sequence(items: &[impl ToString]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    if items.is_empty() { String::new() } else { format!(": {}", items.join("; ")) }
}

/// Values of `what` in [`RemoteError::WrongModel`] for a server of another protocol, and of another model or of other formats.
pub(crate) const PROTOCOL: &str = "the protocol";
pub(crate) const DIGEST: &str = "the digest of the model";

/// Values of `what` in [`RemoteError::NonFinite`] and [`RemoteError::NonFiniteInput`].
pub(crate) const GRADIENTS: &str = "gradients";
pub(crate) const HIDDEN_STATES: &str = "hidden states";
pub(crate) const PROMPTS: &str = "prompts";
pub(crate) const TOKENS: &str = "hidden states of tokens";

fn list_liars(servers: &[String]) -> String {
    match servers {
        [] => "one that several servers made was wrong, and they do not share such work any more".to_owned(),
        [server] => format!("those of {server} were wrong, and it is not used any more"),
        servers => format!("those of {} were wrong, and they are not used any more", servers.join(" and ")),
    }
}

impl RemoteError {
    /// True if the same work is worth a repetition, because the servers with wrong results were taken out of use.
    pub fn is_quarantine(&self) -> bool {
        matches!(self, RemoteError::Quarantined { .. })
    }

    /// True if numbers overflowed, on the wire or on a server. The same call may succeed with a smaller loss or with
    /// other rows. Non-finite prompts and tokens of the caller are no overflow, because they stay non-finite.
    pub fn is_overflow(&self) -> bool {
        match self {
            RemoteError::NonFinite { .. } => true,
            RemoteError::NonFiniteInput { what, .. } => !matches!(*what, PROMPTS | TOKENS),
            _ => false,
        }
    }

    /// Server, expected digest and found digest, if a server has another digest of the model.
    pub fn other_digest(&self) -> Option<[&str; 3]> {
        match self {
            RemoteError::WrongModel { server, what, expected, found } if *what == DIGEST => {
                Some([server, expected, found].map(String::as_str))
            }
            _ => None,
        }
    }

    pub(crate) fn local(error: impl std::fmt::Display) -> Self {
        RemoteError::Local { message: error.to_string() }
    }
}

/// Error of one call to one server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("{0}")]
    Failure(Failure),
    #[error("could not connect: {0}")]
    Connect(std::io::Error),
    #[error("the connection failed: {0}")]
    Transport(RpcError),
    #[error("no answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
    #[error("the server does not answer {:.1} s after a call: {error}", after.as_secs_f64())]
    Hung { after: Duration, error: Box<CallError> },
    #[error("the server is idle {:.1} s after a call: the call was lost", after.as_secs_f64())]
    Lost { after: Duration },
    #[error("the server has completed nothing for a while, {:.1} s after a call", after.as_secs_f64())]
    Stalled { after: Duration },
    #[error("the server was disconnected after another call failed")]
    Disconnected,
    #[error("unreadable answer: {0}")]
    Decode(#[from] DecodeError),
    /// The server serves another model, speaks another protocol, or lacks a tunable.
    #[error("{0}")]
    Unusable(RemoteError),
    #[error("an answer without {0}")]
    Missing(&'static str),
    #[error("it returned {what} {found}, expected {expected}")]
    Invalid { what: &'static str, found: String, expected: String },
    /// Description of no usable server.
    #[error("it describes itself with {what} {found}")]
    Description { what: &'static str, found: u64 },
    #[error("another server computed what it refused ({0})")]
    WrongRefusal(Failure),
    #[error("it returned non-finite {0}, and another server finite ones")]
    WrongNonFinite(&'static str),
}

impl From<capnp::Error> for CallError {
    fn from(error: capnp::Error) -> Self {
        Self::Transport(error.into())
    }
}

impl CallError {
    /// Returns the reaction to the error. A server with invalid answers is treated like one that does not answer.
    pub(crate) fn retry(&self) -> Retry {
        match self {
            CallError::Failure(failure) => failure.retry,
            _ => Retry::Elsewhere,
        }
    }

    /// True if the server took too long, rather than being unreachable.
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
