//! Peer-to-peer swarms in a build without the feature `p2p`: tickets are not read, and no node starts.
//!
//! The items have the interface of the module that the feature adds. Nodes, identities and tickets have no values.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use sepal_core::NotBuilt;
use sepal_swarm::{Endpoint, Rights, Streams};

use crate::absent::absent_discovery;
use crate::record::ServerRecord;

const ERROR: NotBuilt = NotBuilt { part: "a peer-to-peer swarm", feature: "p2p" };

/// Error of every use, because the build leaves the swarms out.
pub const NOT_BUILT: Option<NotBuilt> = Some(ERROR);

/// Error of opening an identity.
pub type IdentityError = NotBuilt;
/// Error of starting a node.
pub type NodeError = NotBuilt;
/// Error of reading a ticket.
pub type TicketError = NotBuilt;

/// Identity of a machine in a swarm.
#[derive(Debug)]
pub struct Identity(());

impl Identity {
    /// Opens no identity.
    ///
    /// # Errors
    /// [`NotBuilt`], always.
    pub fn open(_path: &Path) -> Result<Self, IdentityError> {
        Err(ERROR)
    }

    /// Returns an identity with which no node starts.
    pub fn ephemeral() -> Self {
        Self(())
    }
}

/// Returns false: no identity is in use.
pub fn is_in_use(_error: &IdentityError) -> bool {
    false
}

/// Ticket of a swarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket(Infallible);

impl Ticket {
    /// Reads no ticket.
    ///
    /// # Errors
    /// [`NotBuilt`], always.
    pub fn read(_text: &str) -> Result<Self, TicketError> {
        Err(ERROR)
    }

    /// Reads no ticket.
    ///
    /// # Errors
    /// [`NotBuilt`], always.
    pub fn read_file(_path: &Path) -> Result<Self, TicketError> {
        Err(ERROR)
    }

    /// Path of the file that would hold the ticket.
    pub fn file(text: &str) -> Option<&Path> {
        Some(Path::new(text))
    }

    /// Rights of the holder.
    pub fn rights(&self) -> Rights {
        match self.0 {}
    }

    /// Epoch of the ticket.
    pub fn epoch(&self) -> u32 {
        match self.0 {}
    }

    /// True for the ticket of a later epoch.
    pub fn replaces(&self, _current: &Self) -> bool {
        match self.0 {}
    }

    /// True if the machine of this identity has founded the swarm.
    pub fn is_founded_by(&self, _identity: &Identity) -> bool {
        match self.0 {}
    }

    /// Returns the ticket of lesser rights.
    pub fn derive(&self, _rights: Rights) -> Option<Self> {
        match self.0 {}
    }

    /// Returns the servers' ticket of the next epoch.
    pub fn next_epoch(&self) -> Option<Self> {
        match self.0 {}
    }

    /// Writes the ticket into a file.
    ///
    /// # Errors
    /// None, since there is no ticket.
    pub fn write(&self, _path: &Path) -> io::Result<()> {
        match self.0 {}
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {}
    }
}

/// Options of a node.
#[derive(Debug)]
pub struct NodeOptions {
    /// Identity of the machine.
    pub identity: Identity,
    /// Ticket of the swarm to join.
    pub ticket: Option<Ticket>,
    /// UDP address to bind.
    pub bind: Option<SocketAddr>,
    /// Relays of peers behind routers.
    pub relays: Vec<String>,
}

absent_discovery! {
    /// Member of a swarm.
    Node
}

impl Node {
    /// Starts no node.
    ///
    /// # Errors
    /// [`NotBuilt`], always.
    pub fn start(_options: NodeOptions) -> Result<Self, NodeError> {
        Err(ERROR)
    }

    /// Name of this node in the swarm.
    pub fn name(&self) -> String {
        match self.0 {}
    }

    /// Returns a ticket of the swarm.
    pub fn ticket(&self) -> Ticket {
        match self.0 {}
    }

    /// Waits for a neighbour in the swarm.
    pub fn wait_for_neighbour(&self, _timeout: Duration) -> bool {
        match self.0 {}
    }

    /// Follows the file of the ticket.
    pub fn follow_ticket(&self, _file: &Path) {
        match self.0 {}
    }

    /// Announces the local server.
    pub fn announce(&self, _describe: impl Fn() -> Option<ServerRecord> + Send + Sync + 'static) {
        match self.0 {}
    }

    /// Returns the future connections to the local server.
    pub fn connections(&self) -> Streams {
        match self.0 {}
    }

    /// Returns the peer of this name.
    pub fn peer(&self, _name: &str) -> Option<Endpoint> {
        match self.0 {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticket_of_an_absent_feature_names_it() {
        assert_eq!(Ticket::read("sepal1abc").expect_err("not built"), ERROR);
        assert_eq!(Identity::open(Path::new("identity")).expect_err("not built"), ERROR);
        let options = NodeOptions { identity: Identity::ephemeral(), ticket: None, bind: None, relays: Vec::new() };
        assert_eq!(Node::start(options).expect_err("not built"), ERROR);
        assert!(!is_in_use(&ERROR));
    }
}
