//! Storage of tapes within a byte budget.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::budget::Reservation;
use crate::stacks::StackTape;

/// Identifier of a tape within its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TapeId(u64);

#[derive(Debug)]
pub(crate) struct StoredTape {
    /// None in tests of the store.
    pub(crate) tape: Option<Box<StackTape>>,
    /// Bytes of the tape itself.
    pub(crate) bytes: u64,
    /// Bytes of its tunables, which all tapes of a step share. None in tests of the store.
    pub(crate) _reserved: Option<Arc<Reservation>>,
}

#[derive(Debug)]
pub(crate) struct TapeStore {
    budget: u64,
    used: u64,
    next_id: u64,
    tapes: BTreeMap<TapeId, StoredTape>,
}

impl TapeStore {
    pub(crate) fn new(budget: u64) -> Self {
        Self { budget, used: 0, next_id: 0, tapes: BTreeMap::new() }
    }

    /// Stores a tape and evicts the oldest ones if necessary. A tape beyond the budget is not stored; its owner gets
    /// `tapeExpired`.
    pub(crate) fn insert(&mut self, tape: StoredTape) -> TapeId {
        let id = TapeId(self.next_id);
        self.next_id += 1;
        if tape.bytes <= self.budget {
            while self.used + tape.bytes > self.budget {
                let Some((_, oldest)) = self.tapes.pop_first() else { break };
                self.used -= oldest.bytes;
            }
            self.used += tape.bytes;
            self.tapes.insert(id, tape);
        }
        id
    }

    pub(crate) fn take(&mut self, id: TapeId) -> Option<StoredTape> {
        let tape = self.tapes.remove(&id)?;
        self.used -= tape.bytes;
        Some(tape)
    }

    /// Number of tapes and their bytes.
    pub(crate) fn load(&self) -> (u32, u64) {
        (u32::try_from(self.tapes.len()).unwrap_or(u32::MAX), self.used)
    }
}

#[cfg(test)]
mod tests {
    use sepal_wire::Limits;

    use super::*;
    use crate::budget::ByteBudget;
    use crate::queue::ClientId;

    fn tape(bytes: u64) -> StoredTape {
        StoredTape { tape: None, bytes, _reserved: None }
    }

    #[test]
    fn full_store_evicts_oldest_tape() {
        let mut store = TapeStore::new(100);
        let ids: Vec<TapeId> = (0..3).map(|_| store.insert(tape(40))).collect();
        assert_eq!(store.load(), (2, 80));
        assert!(store.take(ids[0]).is_none(), "evicted");
        assert!(store.take(ids[2]).is_some());
        assert!(store.take(ids[2]).is_none(), "already taken");
        assert_eq!(store.load(), (1, 40));
    }

    #[test]
    fn tunables_are_reserved_as_long_as_a_tape_holds_them() {
        let budget = ByteBudget::new(&Limits::default());
        let reserved = Arc::new(budget.reserve(ClientId(1), 30).expect("room"));
        let tapes = [40, 40].map(|bytes| StoredTape { _reserved: Some(Arc::clone(&reserved)), ..tape(bytes) });
        drop(reserved);
        let mut store = TapeStore::new(40);
        let [evicted, stored] = tapes.map(|tape| store.insert(tape));
        assert_eq!(budget.used(), 30);
        assert!(store.take(evicted).is_none());
        drop(store.take(stored));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn tape_beyond_budget_evicts_no_other() {
        let mut store = TapeStore::new(100);
        let small = store.insert(tape(60));
        let large = store.insert(tape(101));
        assert!(store.take(large).is_none());
        assert!(store.take(small).is_some());
        assert_eq!(store.load(), (0, 0));
    }
}
