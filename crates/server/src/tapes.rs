use std::collections::BTreeMap;

use crate::compute::Kept;

/// A tape's name within its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TapeId(u64);

/// The graphs kept for backward, of all clients, within a byte budget.
#[derive(Debug)]
pub(crate) struct TapeStore {
    budget: u64,
    used: u64,
    next: u64,
    tapes: BTreeMap<TapeId, Kept>,
}

impl TapeStore {
    pub(crate) fn new(budget: u64) -> Self {
        Self { budget, used: 0, next: 0, tapes: BTreeMap::new() }
    }

    /// Keeps a tape, at the cost of the oldest ones if need be. A tape that is larger than the whole
    /// budget is not kept, so that its owner is told `tapeExpired` when it comes back.
    pub(crate) fn insert(&mut self, tape: Kept) -> TapeId {
        let id = TapeId(self.next);
        self.next += 1;
        if tape.bytes <= self.budget {
            while self.used + tape.bytes > self.budget {
                let Some((_, old)) = self.tapes.pop_first() else { break };
                self.used -= old.bytes;
            }
            self.used += tape.bytes;
            self.tapes.insert(id, tape);
        }
        id
    }

    /// Takes a tape out, if it is still there.
    pub(crate) fn take(&mut self, id: TapeId) -> Option<Kept> {
        let tape = self.tapes.remove(&id)?;
        self.used -= tape.bytes;
        Some(tape)
    }

    /// How many, and their bytes.
    pub(crate) fn load(&self) -> (u32, u64) {
        (u32::try_from(self.tapes.len()).unwrap_or(u32::MAX), self.used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tape(bytes: u64) -> Kept {
        Kept { tape: None, bytes }
    }

    #[test]
    fn the_oldest_give_way() {
        let mut store = TapeStore::new(100);
        let ids: Vec<TapeId> = (0..3).map(|_| store.insert(tape(40))).collect();
        assert_eq!(store.load(), (2, 80));
        assert!(store.take(ids[0]).is_none(), "the oldest gave way");
        assert!(store.take(ids[2]).is_some());
        assert!(store.take(ids[2]).is_none(), "a tape is taken once");
        assert_eq!(store.load(), (1, 40));
    }

    #[test]
    fn a_tape_beyond_the_budget_evicts_nobody() {
        let mut store = TapeStore::new(100);
        let small = store.insert(tape(60));
        let large = store.insert(tape(101));
        assert!(store.take(large).is_none());
        assert!(store.take(small).is_some());
        assert_eq!(store.load(), (0, 0));
    }
}
