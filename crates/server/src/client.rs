//! Identity of a client, and the group of clients that have one share of a server.

use std::net::IpAddr;

/// Client of a server: one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ClientId {
    number: u64,
    network: Option<IpAddr>,
}

/// Clients that have one share of the server. Many connections from one network get no more of it than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum ClientGroup {
    /// All connections from one network.
    Network(IpAddr),
    /// One connection from this machine, or of a transport without addresses.
    Connection(u64),
}

impl ClientId {
    /// The server itself; clients count from 1.
    pub(crate) const SERVER: Self = Self { number: 0, network: None };

    /// Returns the client of a connection, and of the network that it comes from.
    pub(crate) fn new(number: u64, network: Option<IpAddr>) -> Self {
        Self { number, network }
    }

    pub(crate) fn group(self) -> ClientGroup {
        self.network.map_or(ClientGroup::Connection(self.number), ClientGroup::Network)
    }

    /// True if the client may be one of many connections from its network.
    pub(crate) fn has_network(self) -> bool {
        self.network.is_some()
    }

    /// Returns a client from this machine.
    #[cfg(test)]
    pub(crate) fn local(number: u64) -> Self {
        Self::new(number, None)
    }

    /// Returns a client from the network `10.0.0.NETWORK`.
    #[cfg(test)]
    pub(crate) fn remote(number: u64, network: u8) -> Self {
        Self::new(number, Some(IpAddr::from([10, 0, 0, network])))
    }
}
