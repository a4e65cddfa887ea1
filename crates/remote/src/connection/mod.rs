//! Connections to single servers: opening them, calls over them, and detection of servers that hang.

mod cached_prefixes;
mod calls;
mod deadlines;
mod handle;
mod peer;
mod rpc;
mod sessions;

pub(crate) use calls::{ForwardOutput, ForwardRequest};
pub(crate) use deadlines::{Liveness, until_overdue};
pub(crate) use handle::Tape;
pub(crate) use peer::Peer;
