use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;

use bytes::Bytes;

/// A number from this many bytes on goes beside its message.
const INLINE_BYTES: usize = 1 << 10;

/// The numbers of tensors that go beside the messages of one connection, so that nobody copies them into a message or out
/// of it. A tensor in a message names its part; the part is sent with the message that names it, and is there for as long
/// as that message is. Clones are of the same connection.
#[derive(Clone)]
pub struct Parts(Rc<RefCell<Tables>>);

struct Tables {
    /// The next part's name. Names start anywhere, so that hardly a word of a message is taken for one.
    next: u64,
    /// Written, in messages that are not sent yet.
    leaving: HashMap<u64, Bytes>,
    /// Of messages that are being read; nothing, where it was damaged on the way.
    arrived: HashMap<u64, Option<Bytes>>,
    /// The connection has ended: nothing leaves any more.
    has_ended: bool,
}

/// A part that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PartError {
    /// No message that is being read came with it.
    Missing,
    /// Its checksum is wrong.
    Damaged,
}

impl Default for Parts {
    fn default() -> Self {
        let next = RandomState::new().hash_one(0);
        Self(Rc::new(RefCell::new(Tables { next, leaving: HashMap::new(), arrived: HashMap::new(), has_ended: false })))
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables = self.0.borrow();
        write!(f, "Parts({} leaving, {} arrived)", tables.leaving.len(), tables.arrived.len())
    }
}

impl Parts {
    /// Takes in what goes beside the message that will name it. `None` if so little goes in the message itself.
    pub(crate) fn leave(&self, data: &Bytes) -> Option<u64> {
        if data.len() < INLINE_BYTES {
            return None;
        }
        let mut tables = self.0.borrow_mut();
        // Zero names nothing.
        let id = tables.next.max(1);
        tables.next = id.wrapping_add(1);
        if !tables.has_ended {
            tables.leaving.insert(id, data.clone());
        }
        Some(id)
    }

    /// What the message that is being read names.
    pub(crate) fn part(&self, id: u64) -> Result<Bytes, PartError> {
        let tables = self.0.borrow();
        tables.arrived.get(&id).ok_or(PartError::Missing)?.clone().ok_or(PartError::Damaged)
    }

    /// The parts that a message names, given its segments: they leave with it.
    pub(crate) fn named_in(&self, segments: &[&[u8]]) -> Vec<(u64, Bytes)> {
        let leaving = &mut self.0.borrow_mut().leaving;
        let mut found = Vec::new();
        for segment in segments {
            // A 64-bit field lies on a word of its own.
            for word in segment.chunks_exact(8) {
                if leaving.is_empty() {
                    return found;
                }
                let id = u64::from_le_bytes(word.try_into().unwrap_or_default());
                found.extend(leaving.remove(&id).map(|data| (id, data)));
            }
        }
        found
    }

    /// Takes in a part that came with a message. `false` if there is one of that name already.
    pub(crate) fn arrive(&self, id: u64, data: Option<Bytes>) -> bool {
        match self.0.borrow_mut().arrived.entry(id) {
            Entry::Vacant(place) => {
                place.insert(data);
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    /// Nothing leaves any more. What has arrived can still be read.
    pub(crate) fn end(&self) {
        let mut tables = self.0.borrow_mut();
        tables.has_ended = true;
        tables.leaving.clear();
    }

    /// The message that named them is gone.
    pub(crate) fn forget(&self, ids: &[u64]) {
        let arrived = &mut self.0.borrow_mut().arrived;
        ids.iter().for_each(|id| drop(arrived.remove(id)));
    }
}
