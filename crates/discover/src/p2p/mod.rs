//! Peer-to-peer swarm: identity, encryption and NAT traversal by iroh, announcements by its gossip protocol.

mod announcement;
mod epochs;
mod gossip;
mod identity;
mod node;
mod state;
mod stream;
#[cfg(test)]
mod tests;
mod ticket;

use sepal_core::NotBuilt;

pub use identity::{Identity, IdentityError, is_in_use};
pub use node::{Node, NodeError, NodeOptions};
pub use ticket::{Ticket, TicketError};

/// No error, because the build has the swarms.
pub const NOT_BUILT: Option<NotBuilt> = None;
