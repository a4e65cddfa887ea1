//! Discovery of the servers of a model, in a peer-to-peer swarm that a ticket admits to or on the local network.
//!
//! The crate opens connections and lists servers; it knows nothing of the messages that are sent over the connections. In the
//! crate graph it stands on `swarm` and `core`, and it alone knows iroh and mDNS. `status`, `pipeline` and `cli` use it.
//!
//! Invariants: a node contacts no machine outside the swarm, except configured relays. An announcement of a peer is valid only
//! with a signature for this swarm. Connections between peers are encrypted and authenticate both ends, and a server accepts
//! those of members only. On the local network, announcements are not signed; connections are secured if there is a secret.
//!
//! Without one of the default features `lan` and `p2p`, the module of that name has the same interface, and each use of it
//! is a [`NotBuilt`](sepal_core::NotBuilt) error.
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

#[cfg(not(all(feature = "lan", feature = "p2p")))]
mod absent;
mod discovery;
#[cfg(feature = "lan")]
pub mod lan;
#[cfg(not(feature = "lan"))]
#[path = "lan_absent.rs"]
pub mod lan;
#[cfg(any(feature = "lan", feature = "p2p"))]
mod lock;
#[cfg(any(feature = "lan", feature = "p2p"))]
mod members;
#[cfg(feature = "p2p")]
pub mod p2p;
#[cfg(not(feature = "p2p"))]
#[path = "p2p_absent.rs"]
pub mod p2p;
mod record;

pub use discovery::{Discovery, Member, wait_until_settled};
pub use record::ServerRecord;
