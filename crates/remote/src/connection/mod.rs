//! Connections to single servers: opening them, calls over them, and detection of servers that hang.

mod answers;
mod cached_prefixes;
mod calls;
mod deadlines;
mod handle;
mod peer;
mod receipts;
mod rpc;
mod sessions;

pub(crate) use answers::ExpectedGrads;
pub(crate) use calls::{BackwardOutput, ForwardOutput, ForwardRequest};
pub(crate) use deadlines::{Liveness, until_overdue};
pub(crate) use handle::{Tape, TunedSession};
pub(crate) use peer::Peer;
