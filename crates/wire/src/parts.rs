//! Tensor data that is sent beside the messages of a connection.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;

use bytes::Bytes;

use crate::codec::DecodeError;

/// Size from which tensor data is sent as a part.
const INLINE_BYTES: usize = 1 << 10;

/// Parts of one connection: tensor data that is sent beside the messages, which avoids copies into and out of them. A tensor
/// in a message names its part. The part is sent with that message and lives as long as the received message. Clones share
/// the connection.
#[derive(Clone)]
pub struct Parts(Rc<RefCell<Tables>>);

struct Tables {
    /// Name of the next part. The first name is random, so that other words of a message are hardly mistaken for a name.
    next_id: u64,
    /// Parts of messages that are not sent yet.
    outgoing: HashMap<u64, Bytes>,
    /// Parts of received messages; none if the part was damaged in transit.
    incoming: HashMap<u64, Option<Bytes>>,
    /// True once the connection has ended: no part is sent any more.
    is_closed: bool,
}

impl Default for Parts {
    fn default() -> Self {
        let next_id = RandomState::new().hash_one(0);
        let (outgoing, incoming) = (HashMap::new(), HashMap::new());
        Self(Rc::new(RefCell::new(Tables { next_id, outgoing, incoming, is_closed: false })))
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables = self.0.borrow();
        write!(f, "Parts({} outgoing, {} incoming)", tables.outgoing.len(), tables.incoming.len())
    }
}

impl Parts {
    /// Adds a part and returns its name. `None` if the data is small enough for the message itself.
    pub(crate) fn attach(&self, data: &Bytes) -> Option<u64> {
        if data.len() < INLINE_BYTES {
            return None;
        }
        let mut tables = self.0.borrow_mut();
        // Zero means no part.
        let id = tables.next_id.max(1);
        tables.next_id = id.wrapping_add(1);
        if !tables.is_closed {
            tables.outgoing.insert(id, data.clone());
        }
        Some(id)
    }

    pub(crate) fn received(&self, id: u64) -> Result<Bytes, DecodeError> {
        let tables = self.0.borrow();
        tables.incoming.get(&id).ok_or(DecodeError::Missing)?.clone().ok_or(DecodeError::Damaged)
    }

    /// Removes and returns the outgoing parts that the message with these segments names.
    pub(crate) fn take_referenced(&self, segments: &[&[u8]]) -> Vec<(u64, Bytes)> {
        let outgoing = &mut self.0.borrow_mut().outgoing;
        let mut found = Vec::new();
        for segment in segments {
            // A 64-bit field is aligned to a word.
            for word in segment.chunks_exact(8) {
                if outgoing.is_empty() {
                    return found;
                }
                let id = u64::from_le_bytes(word.try_into().unwrap_or_default());
                found.extend(outgoing.remove(&id).map(|data| (id, data)));
            }
        }
        found
    }

    /// Stores a part of a received message. `false` if the name is taken.
    pub(crate) fn receive(&self, id: u64, data: Option<Bytes>) -> bool {
        match self.0.borrow_mut().incoming.entry(id) {
            Entry::Vacant(entry) => {
                entry.insert(data);
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    /// Drops all outgoing parts, present and future. Incoming parts stay readable.
    pub(crate) fn close(&self) {
        let mut tables = self.0.borrow_mut();
        tables.is_closed = true;
        tables.outgoing.clear();
    }

    pub(crate) fn release(&self, ids: &[u64]) {
        let incoming = &mut self.0.borrow_mut().incoming;
        ids.iter().for_each(|id| drop(incoming.remove(id)));
    }
}
