//! Finding the servers of a model: in a peer-to-peer swarm that is joined with a ticket, or on the local network.
//!
//! This crate opens connections and says who is there; it knows nothing of what is said over them.
//!
//! Invariants: nothing outside the swarm is contacted unless a relay is configured; what a peer announces counts only
//! with its signature for this swarm; connections between peers are encrypted, their ends know who the other is, and a
//! server takes only those of members. On the local network nothing of that holds.

pub mod lan;
mod members;
mod notice;
pub mod p2p;

pub use members::Member;
pub use notice::Notice;

use std::fmt;

use sepal_swarm::Sightings;

/// A way in which servers are found.
pub trait Discovery: fmt::Debug + Send + Sync {
    /// The servers that are known.
    fn members(&self) -> Vec<Member>;

    /// The servers of a model, by its digest, as they come and go.
    fn sightings(&self, digest: &str) -> Sightings;

    /// Takes back what was announced.
    fn withdraw(&self);
}
