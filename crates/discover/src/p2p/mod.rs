//! Peer-to-peer swarm: identity, encryption and NAT traversal by iroh, announcements by its gossip protocol.

mod announcement;
mod gossip;
mod identity;
mod node;
mod state;
mod stream;
#[cfg(test)]
mod tests;
mod ticket;

pub use identity::{Identity, IdentityError};
pub use node::{Node, NodeError, NodeOptions};
pub use ticket::{Ticket, TicketError};
