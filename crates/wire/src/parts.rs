//! Tensor data that is sent beside the messages of a connection.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;

use bytes::Bytes;

use crate::activity::Activity;
use crate::codec::DecodeError;
use crate::quota::Reserved;

/// Size from which tensor data is sent as a part.
const INLINE_BYTES: usize = 1 << 10;
/// Bytes of a message beside the tensors of an answer: a description, a failure, names and small tensors.
const PLAIN_MESSAGE_BYTES: u64 = 1 << 20;

/// Parts of one connection: tensor data that is sent beside the messages, which avoids copies into and out of them. A tensor
/// in a message names its part. The part is sent with that message and lives as long as the received message. Clones share
/// the connection.
#[derive(Clone)]
pub struct Parts {
    pub(crate) store: PartStore,
    activity: Activity,
    handles: Rc<()>,
}

/// Parts, as the messages of the connection use them.
#[derive(Clone)]
pub(crate) struct PartStore(Rc<RefCell<Tables>>);

struct Tables {
    /// Name of the next part. The first name is random, so that other words of a message are hardly mistaken for a name.
    next_id: u64,
    /// Parts of messages that are not sent yet.
    outgoing: HashMap<u64, Bytes>,
    incoming: HashMap<u64, IncomingPart>,
    /// True once the connection has ended: no part is sent any more.
    is_closed: bool,
    /// Maximum bytes of the next message that arrives.
    incoming_limit: u64,
}

/// Part of a received message.
struct IncomingPart {
    /// None if the part was damaged in transit.
    data: Option<Bytes>,
    /// Reservations of its bytes until the part is read; from then on, the reader accounts for them.
    reserved: Vec<Reserved>,
}

impl Default for Parts {
    fn default() -> Self {
        Self::with_incoming_limit(u64::MAX)
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables = self.store.0.borrow();
        write!(f, "Parts({} outgoing, {} incoming)", tables.outgoing.len(), tables.incoming.len())
    }
}

impl Parts {
    /// Activity of the connection.
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Number of clones, this one included. Each capability of a server holds one.
    pub fn n_handles(&self) -> usize {
        Rc::strong_count(&self.handles)
    }

    /// Parts of a client. Its connection ends at a message that is more than a megabyte larger than the largest answer that
    /// was [expected](Self::expect_answer).
    pub fn of_client() -> Self {
        Self::with_incoming_limit(PLAIN_MESSAGE_BYTES)
    }

    fn with_incoming_limit(incoming_limit: u64) -> Self {
        let next_id = RandomState::new().hash_one(0);
        let (outgoing, incoming) = (HashMap::new(), HashMap::new());
        let tables = Tables { next_id, outgoing, incoming, is_closed: false, incoming_limit };
        let store = PartStore(Rc::new(RefCell::new(tables)));
        Self { store, activity: Activity::default(), handles: Rc::new(()) }
    }

    /// Admits answers with tensors of up to `bytes`. The limit stays, because the answer to a cancelled call may arrive
    /// later.
    pub fn expect_answer(&self, bytes: usize) {
        let mut tables = self.store.0.borrow_mut();
        let limit = PLAIN_MESSAGE_BYTES.saturating_add(bytes as u64);
        tables.incoming_limit = tables.incoming_limit.max(limit);
    }

    /// Adds a part and returns its name. `None` if the data is small enough for the message itself.
    pub(crate) fn attach(&self, data: &Bytes) -> Option<u64> {
        if data.len() < INLINE_BYTES {
            return None;
        }
        let mut tables = self.store.0.borrow_mut();
        // Zero means no part.
        let id = tables.next_id.max(1);
        tables.next_id = id.wrapping_add(1);
        if !tables.is_closed {
            tables.outgoing.insert(id, data.clone());
        }
        Some(id)
    }

    /// Returns the data of a received part, whose bytes are no longer reserved for the message.
    pub(crate) fn received(&self, id: u64) -> Result<Bytes, DecodeError> {
        let mut tables = self.store.0.borrow_mut();
        let part = tables.incoming.get_mut(&id).ok_or(DecodeError::Missing)?;
        part.reserved.clear();
        part.data.clone().ok_or(DecodeError::Damaged)
    }
}

impl PartStore {
    /// Maximum bytes of the message that arrives now.
    pub(crate) fn incoming_limit(&self) -> u64 {
        self.0.borrow().incoming_limit
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
    pub(crate) fn receive(&self, id: u64, data: Option<Bytes>, reserved: Vec<Reserved>) -> bool {
        match self.0.borrow_mut().incoming.entry(id) {
            Entry::Vacant(entry) => {
                entry.insert(IncomingPart { data, reserved });
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
