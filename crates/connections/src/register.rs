//! Open connections of a port.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Maximum numbers of open connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections in all.
    pub total: usize,
    /// Connections of one IPv4 address or one IPv6 network of 64 bits. This machine and transports without addresses have
    /// no such limit.
    pub per_address: usize,
}

/// Use of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// For this time, a request is arriving or none has arrived.
    Unproven(Duration),
    /// For this time, the connection holds nothing and no request is in progress.
    Idle(Duration),
    /// A request is in progress, or the connection holds state of the client.
    InUse,
}

/// Connection in a [`Register`].
pub trait Tracked {
    /// Current use of the connection.
    fn standing(&self) -> Standing;

    /// Closes the connection to make room for another.
    fn replace(&self);
}

impl<T: Tracked> Tracked for Rc<T> {
    fn standing(&self) -> Standing {
        T::standing(self)
    }

    fn replace(&self) {
        T::replace(self);
    }
}

impl<T: Tracked> Tracked for Arc<T> {
    fn standing(&self) -> Standing {
        T::standing(self)
    }

    fn replace(&self) {
        T::replace(self);
    }
}

/// Reason to refuse a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// All connections are in use.
    Total,
    /// All connections of the address are in use.
    Address,
}

impl Refusal {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Refusal::Total => "total",
            Refusal::Address => "address",
        }
    }
}

/// Open connections of a port. If there is no room, a new one takes the place of one that is silent or sends its request, or
/// else of one that is idle: of the address with the most connections, the one that has been so for the longest time. So a
/// burst of connections from one address replaces its own.
#[derive(Debug)]
pub struct Register<C> {
    limits: ConnectionLimits,
    entries: BTreeMap<u64, Entry<C>>,
    next_id: u64,
}

#[derive(Debug)]
struct Entry<C> {
    /// Address or network of the peer, if the transport has addresses.
    network: Option<IpAddr>,
    connection: C,
}

impl<C: Tracked> Register<C> {
    /// Creates a register without connections. Both limits are at least 1.
    pub fn new(limits: ConnectionLimits) -> Self {
        let limits = ConnectionLimits { total: limits.total.max(1), per_address: limits.per_address.max(1) };
        Self { limits, entries: BTreeMap::new(), next_id: 0 }
    }

    /// Number of open connections.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if no connection is open.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a connection of a peer and returns its number. Another may be closed to make room.
    ///
    /// # Errors
    /// [`Refusal`] if the connections that it could replace are all in use.
    pub fn admit(&mut self, peer: Option<IpAddr>, connection: C) -> Result<u64, Refusal> {
        let network = peer.map(network);
        let is_limited = limited_network(peer).is_some();
        let n_neighbours = self.entries.values().filter(|entry| entry.network == network).count();
        if is_limited && n_neighbours >= self.limits.per_address {
            self.replace_one(|entry| entry.network == network).ok_or(Refusal::Address)?;
        }
        if self.entries.len() >= self.limits.total {
            self.replace_one(|_| true).ok_or(Refusal::Total)?;
        }
        let id = self.next_id;
        self.next_id += 1;
        self.entries.insert(id, Entry { network, connection });
        Ok(id)
    }

    /// Removes a connection that has ended. It may have been replaced before.
    pub fn remove(&mut self, id: u64) {
        self.entries.remove(&id);
    }

    /// Closes the connection of `choice` that is used least; `None` if all are in use.
    fn replace_one(&mut self, choice: impl Fn(&Entry<C>) -> bool) -> Option<()> {
        let mut sizes: HashMap<Option<IpAddr>, usize> = HashMap::new();
        for entry in self.entries.values() {
            *sizes.entry(entry.network).or_default() += 1;
        }
        let candidates = self.entries.iter().filter(|(_, entry)| choice(entry));
        let ranked = candidates.filter_map(|(&id, entry)| {
            let (is_unproven, time) = match entry.connection.standing() {
                Standing::Unproven(time) => (true, time),
                Standing::Idle(time) => (false, time),
                Standing::InUse => return None,
            };
            // Of two that are alike, the older one.
            Some((is_unproven, sizes.get(&entry.network), time, Reverse(id)))
        });
        let (_, _, _, Reverse(id)) = ranked.max()?;
        self.entries.remove(&id)?.connection.replace();
        Some(())
    }
}

/// Network whose connections share limits: the IPv4 address of a peer, or its IPv6 network of 64 bits. `None` for this machine
/// and for transports without addresses, which have no such limit.
pub fn limited_network(peer: Option<IpAddr>) -> Option<IpAddr> {
    peer.map(network).filter(|network| !network.is_loopback())
}

/// Returns the IPv4 address or the IPv6 network of 64 bits of a peer.
pub(crate) fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            let mut octets = address.octets();
            octets[8..].fill(0);
            IpAddr::from(octets)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Connection whose use a test sets.
    #[derive(Debug, Clone)]
    struct Fake(Rc<(Cell<Standing>, Cell<bool>)>);

    impl Fake {
        fn new(standing: Standing) -> Self {
            Self(Rc::new((Cell::new(standing), Cell::new(false))))
        }

        fn is_replaced(&self) -> bool {
            self.0.1.get()
        }
    }

    impl Tracked for Fake {
        fn standing(&self) -> Standing {
            self.0.0.get()
        }

        fn replace(&self) {
            self.0.1.set(true);
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn register(total: usize, per_address: usize) -> Register<Fake> {
        Register::new(ConnectionLimits { total, per_address })
    }

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    #[test]
    fn burst_of_one_address_replaces_its_own_connections() {
        let mut register = register(4, 4);
        let honest = Fake::new(Standing::Unproven(9 * SECOND));
        register.admit(address("127.0.0.1"), honest.clone()).expect("room");
        let burst = [1; 8].map(|seconds| Fake::new(Standing::Unproven(seconds * SECOND)));
        for fake in &burst {
            register.admit(address("127.0.0.2"), fake.clone()).expect("room");
        }
        let n_replaced = burst.iter().filter(|fake| fake.is_replaced()).count();
        assert_eq!((honest.is_replaced(), n_replaced), (false, 5));
    }

    #[test]
    fn silent_connections_make_room_longest_first() {
        let mut register = register(3, 3);
        let silent = [1, 3, 2].map(|seconds| Fake::new(Standing::Unproven(seconds * SECOND)));
        for fake in &silent {
            register.admit(None, fake.clone()).expect("room");
        }
        let busy = [0; 3].map(|_| Fake::new(Standing::InUse));
        for (new, replaced) in busy.iter().zip([&[1][..], &[1, 2], &[0, 1, 2]]) {
            register.admit(None, new.clone()).expect("room");
            let found: Vec<usize> = (0..3).filter(|&i| silent[i].is_replaced()).collect();
            assert_eq!(found, replaced);
        }
        assert_eq!(register.admit(None, Fake::new(Standing::InUse)), Err(Refusal::Total));
        assert_eq!((register.len(), busy.iter().any(Fake::is_replaced)), (3, false));
    }

    #[test]
    fn idle_connection_makes_room_only_if_none_is_silent() {
        let mut register = register(2, 2);
        let idle = Fake::new(Standing::Idle(100 * SECOND));
        let silent = Fake::new(Standing::Unproven(SECOND));
        register.admit(None, idle.clone()).expect("room");
        register.admit(None, silent.clone()).expect("room");
        register.admit(None, Fake::new(Standing::InUse)).expect("room");
        assert_eq!((idle.is_replaced(), silent.is_replaced()), (false, true));
        register.admit(None, Fake::new(Standing::InUse)).expect("room");
        assert!(idle.is_replaced());
    }

    #[test]
    fn address_replaces_only_its_own_connections() {
        let mut register = register(10, 2);
        let other = Fake::new(Standing::Unproven(100 * SECOND));
        register.admit(address("192.0.2.1"), other.clone()).expect("room");
        let own = [1, 2].map(|seconds| Fake::new(Standing::Unproven(seconds * SECOND)));
        for fake in &own {
            register.admit(address("192.0.2.2"), fake.clone()).expect("room");
        }
        register.admit(address("::ffff:192.0.2.2"), Fake::new(Standing::InUse)).expect("room");
        let replaced = [other, own[0].clone(), own[1].clone()].map(|fake| fake.is_replaced());
        assert_eq!(replaced, [false, false, true]);
        register.admit(address("192.0.2.2"), Fake::new(Standing::InUse)).expect("room");
        let refused = register.admit(address("192.0.2.2"), Fake::new(Standing::InUse));
        assert_eq!((refused, register.len()), (Err(Refusal::Address), 3));
    }

    #[test]
    fn network_of_64_bits_counts_as_one_address_and_this_machine_as_none() {
        let mut register = register(10, 1);
        let admit = |register: &mut Register<Fake>, text| register.admit(address(text), Fake::new(Standing::InUse));
        assert!(admit(&mut register, "2001:db8:0:1::1").is_ok());
        assert_eq!(admit(&mut register, "2001:db8:0:1:2::9"), Err(Refusal::Address));
        assert!(admit(&mut register, "2001:db8:0:2::1").is_ok());
        for text in ["127.0.0.1", "127.0.0.1", "::1", "::1", "::ffff:127.0.0.1"] {
            assert!(admit(&mut register, text).is_ok(), "{text}");
        }
    }

    #[test]
    fn removed_connection_leaves_room() {
        let mut register = register(1, 1);
        let id = register.admit(None, Fake::new(Standing::InUse)).expect("room");
        register.remove(id);
        assert!(register.is_empty() && register.admit(None, Fake::new(Standing::InUse)).is_ok());
    }
}
