//! A swarm of peers: identity, encryption and NAT traversal by iroh, announcements by its gossip.

mod announcement;
mod identity;
mod link;
mod node;
mod talk;
#[cfg(test)]
mod tests;
mod ticket;

pub use identity::{Identity, IdentityError};
pub use node::{Node, NodeError, NodeOptions};
pub use ticket::{Ticket, TicketError};
