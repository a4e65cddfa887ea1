//! Discovery of the servers of a model, in a peer-to-peer swarm that a ticket admits to or on the local network.
//!
//! The crate opens connections and lists servers; it knows nothing of the messages that are sent over the connections. In the
//! crate graph it stands on `swarm` and `core`, and it alone knows iroh and mDNS. `status`, `pipeline` and `cli` use it.
//!
//! Invariants: a node contacts no machine outside the swarm, except configured relays. An announcement of a peer is valid only
//! with a signature for this swarm. Connections between peers are encrypted and authenticate both ends, and a server accepts
//! those of members only. None of this holds for the local network.
//!
//! ```no_run
//! use sepal_discover::p2p::{Identity, Node, NodeOptions, Ticket};
//! use sepal_discover::{Discovery, wait_until_settled};
//!
//! let ticket = Some(Ticket::read("sepal1...")?);
//! let node = Node::start(NodeOptions { identity: Identity::ephemeral(), ticket, bind: None, relays: Vec::new() })?;
//! wait_until_settled(&node);
//! for member in node.members() {
//!     println!("{} holds blocks {}", member.endpoint, member.record.span);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod discovery;
pub mod lan;
mod lock;
mod members;
pub mod p2p;
mod record;

pub use discovery::{Discovery, wait_until_settled};
pub use members::Member;
pub use record::ServerRecord;
