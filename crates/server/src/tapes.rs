//! Storage of tapes within a byte budget that clients share.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::client::{ClientGroup, ClientId};
use crate::ledger::{Kind, Ledger, Reservation};
use crate::stacks::StackTape;

/// Identifier of a tape within its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TapeId(u64);

/// Tape of a forward pass.
#[derive(Debug)]
pub(crate) struct NewTape {
    /// None in tests of the store.
    pub(crate) tape: Option<Box<StackTape>>,
    /// Bytes of the tape itself.
    pub(crate) bytes: u64,
    /// Bytes of its tunables, which all tapes of a step share, with the client.
    pub(crate) tunables: Arc<Reservation>,
}

#[derive(Debug)]
struct StoredTape {
    tape: NewTape,
    _reserved: Reservation,
}

impl StoredTape {
    fn client(&self) -> ClientId {
        self.tape.tunables.client()
    }
}

#[derive(Debug)]
pub(crate) struct TapeStore {
    budget: u64,
    used: u64,
    next_id: u64,
    tapes: BTreeMap<TapeId, StoredTape>,
    /// Bytes of each client with tapes.
    clients: HashMap<ClientId, u64>,
    ledger: Ledger,
}

impl TapeStore {
    pub(crate) fn new(budget: u64, ledger: Ledger) -> Self {
        let (tapes, clients) = (BTreeMap::new(), HashMap::new());
        Self { budget, used: 0, next_id: 0, tapes, clients, ledger }
    }

    /// Stores a tape and evicts others if necessary: the oldest of the clients that have more than an equal share of the
    /// budget. The connections of one network have one share. A tape that does not fit even so is not stored; its owner gets
    /// `tapeExpired`.
    pub(crate) fn insert(&mut self, tape: NewTape) -> TapeId {
        let id = TapeId(self.next_id);
        self.next_id += 1;
        let (client, bytes) = (tape.tunables.client(), tape.bytes);
        if !self.make_room(client, bytes) {
            return id;
        }
        let reserved = loop {
            match self.ledger.try_reserve(client, Kind::Tapes, bytes) {
                Ok(reserved) => break reserved,
                // The client has too much in all.
                Err(_) => match self.oldest(|owner| owner == client) {
                    Some(oldest) => drop(self.take(oldest)),
                    None => return id,
                },
            }
        };
        self.used += bytes;
        *self.clients.entry(client).or_default() += bytes;
        self.tapes.insert(id, StoredTape { tape, _reserved: reserved });
        id
    }

    pub(crate) fn take(&mut self, id: TapeId) -> Option<NewTape> {
        let stored = self.tapes.remove(&id)?;
        let (client, bytes) = (stored.client(), stored.tape.bytes);
        self.used -= bytes;
        match self.clients.get(&client).map_or(0, |used| used - bytes) {
            0 => drop(self.clients.remove(&client)),
            used => drop(self.clients.insert(client, used)),
        }
        Some(stored.tape)
    }

    /// Number of tapes and their bytes.
    pub(crate) fn load(&self) -> (u32, u64) {
        (u32::try_from(self.tapes.len()).unwrap_or(u32::MAX), self.used)
    }

    /// Evicts tapes until one of these bytes fits into the budget. `false` if only tapes are left of clients that have at
    /// most their shares.
    fn make_room(&mut self, client: ClientId, bytes: u64) -> bool {
        if bytes > self.budget {
            return false;
        }
        while self.used + bytes > self.budget {
            let shares = self.shares(client, bytes);
            match self.oldest(|owner| shares.is_exceeded_by(owner)) {
                Some(oldest) => drop(self.take(oldest)),
                None => return false,
            }
        }
        true
    }

    /// Shares of the clients if `client` stores this many bytes more.
    fn shares(&self, client: ClientId, bytes: u64) -> Shares {
        let mut clients = self.clients.clone();
        *clients.entry(client).or_default() += bytes;
        let mut groups = HashMap::<ClientGroup, GroupUse>::new();
        for (owner, used) in &clients {
            let group = groups.entry(owner.group()).or_default();
            group.bytes += used;
            group.n_clients += 1;
        }
        Shares { budget: self.budget / groups.len() as u64, clients, groups }
    }

    /// Oldest tape of the clients that `is_chosen` selects.
    fn oldest(&self, is_chosen: impl Fn(ClientId) -> bool) -> Option<TapeId> {
        self.tapes.iter().find(|(_, stored)| is_chosen(stored.client())).map(|(&id, _)| id)
    }
}

/// Bytes of clients and their groups, beside the share of a group.
#[derive(Debug)]
struct Shares {
    /// Bytes of each group.
    budget: u64,
    clients: HashMap<ClientId, u64>,
    groups: HashMap<ClientGroup, GroupUse>,
}

#[derive(Debug, Default)]
struct GroupUse {
    bytes: u64,
    n_clients: u64,
}

impl Shares {
    /// True if the client's group has more than its share, and the client more than an equal part of that.
    fn is_exceeded_by(&self, client: ClientId) -> bool {
        let used = self.clients.get(&client).copied().unwrap_or(0);
        let Some(group) = self.groups.get(&client.group()) else { return false };
        group.bytes > self.budget && used > self.budget / group.n_clients
    }
}

#[cfg(test)]
mod tests {
    use sepal_wire::Limits;

    use super::*;
    use crate::ledger::Quotas;

    fn ledger(max_memory: Option<u64>) -> Ledger {
        Ledger::new(Quotas::new(&Limits { tape_budget_bytes: 100, ..Limits::default() }, max_memory))
    }

    fn store(ledger: &Ledger) -> TapeStore {
        TapeStore::new(100, ledger.clone())
    }

    fn tape(ledger: &Ledger, client: u64, bytes: u64) -> NewTape {
        tape_of(ledger, ClientId::local(client), bytes)
    }

    fn tape_of(ledger: &Ledger, client: ClientId, bytes: u64) -> NewTape {
        let tunables = ledger.client(client).reserve(Kind::Tunables, 0).expect("room");
        NewTape { tape: None, bytes, tunables: Arc::new(tunables) }
    }

    #[test]
    fn full_store_evicts_oldest_tape() {
        let ledger = ledger(None);
        let mut store = store(&ledger);
        let ids: Vec<TapeId> = (0..3).map(|_| store.insert(tape(&ledger, 1, 40))).collect();
        assert_eq!((store.load(), ledger.used(&[Kind::Tapes])), ((2, 80), 80));
        assert!(store.take(ids[0]).is_none(), "evicted");
        assert!(store.take(ids[2]).is_some());
        assert!(store.take(ids[2]).is_none(), "already taken");
        assert_eq!((store.load(), ledger.used(&[Kind::Tapes])), ((1, 40), 40));
    }

    #[test]
    fn client_with_many_tapes_evicts_its_own() {
        let ledger = ledger(None);
        let mut store = store(&ledger);
        let honest = store.insert(tape(&ledger, 1, 30));
        let hostile: Vec<TapeId> = (0..20).map(|_| store.insert(tape(&ledger, 2, 20))).collect();
        assert_eq!(hostile.iter().filter_map(|&id| store.take(id)).count(), 3, "60 of 70 bytes");
        assert!(store.take(honest).is_some(), "the oldest of all");
        assert_eq!(store.load(), (0, 0));
    }

    #[test]
    fn new_client_gets_its_share_of_a_full_store() {
        let ledger = ledger(None);
        let mut store = store(&ledger);
        let first: Vec<TapeId> = (0..5).map(|_| store.insert(tape(&ledger, 1, 20))).collect();
        let second = [store.insert(tape(&ledger, 2, 25)), store.insert(tape(&ledger, 2, 25))];
        assert!(second.iter().all(|&id| store.take(id).is_some()));
        assert_eq!(first.iter().filter_map(|&id| store.take(id)).count(), 2);
    }

    #[test]
    fn connections_of_one_network_share_one_share() {
        let ledger = ledger(None);
        let mut store = store(&ledger);
        let many: Vec<TapeId> = (1..=8).map(|i| store.insert(tape_of(&ledger, ClientId::remote(i, 1), 10))).collect();
        let other = ClientId::remote(9, 2);
        let honest: Vec<TapeId> = (0..5).map(|_| store.insert(tape_of(&ledger, other, 10))).collect();
        assert_eq!(honest.iter().filter_map(|&id| store.take(id)).count(), 5, "a half of the budget");
        assert_eq!(many.iter().filter_map(|&id| store.take(id)).count(), 5, "the other half");
        assert_eq!(store.load(), (0, 0));
    }

    #[test]
    fn tape_beyond_a_share_does_not_evict_those_within_theirs() {
        let ledger = ledger(None);
        let mut store = store(&ledger);
        let small = store.insert(tape(&ledger, 1, 45));
        let large = store.insert(tape(&ledger, 2, 60));
        assert!(store.take(large).is_none() && store.take(small).is_some());
    }

    #[test]
    fn tunables_are_reserved_as_long_as_a_tape_holds_them() {
        let ledger = ledger(None);
        let reserved = Arc::new(ledger.client(ClientId::local(1)).reserve(Kind::Tunables, 30).expect("room"));
        let tapes = [70, 70].map(|bytes| NewTape { tape: None, bytes, tunables: Arc::clone(&reserved) });
        drop(reserved);
        let mut store = store(&ledger);
        let [evicted, stored] = tapes.map(|tape| store.insert(tape));
        assert_eq!(ledger.used(&[Kind::Tunables]), 30);
        assert!(store.take(evicted).is_none());
        drop(store.take(stored));
        assert_eq!(ledger.used(&Kind::ALL), 0);
    }

    #[test]
    fn tape_beyond_budget_evicts_no_other() {
        let ledger = ledger(None);
        let mut store = store(&ledger);
        let small = store.insert(tape(&ledger, 1, 60));
        let large = store.insert(tape(&ledger, 1, 101));
        assert!(store.take(large).is_none());
        assert!(store.take(small).is_some());
        assert_eq!(store.load(), (0, 0));
    }

    #[test]
    fn connection_over_its_quota_loses_its_own_tapes() {
        // Three quarters of 80 bytes are 60.
        let ledger = ledger(Some(80));
        let mut store = store(&ledger);
        let other = store.insert(tape(&ledger, 2, 10));
        let ids = [store.insert(tape(&ledger, 1, 40)), store.insert(tape(&ledger, 1, 30))];
        assert!(store.take(ids[0]).is_none() && store.take(ids[1]).is_some());
        assert!(store.take(other).is_some());
        let large = store.insert(tape(&ledger, 1, 61));
        assert!(store.take(large).is_none(), "more than the connection may have");
    }
}
