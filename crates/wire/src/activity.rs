//! Activity of one connection, for the program that watches it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tokio::sync::Notify;

/// Bytes and messages of one connection, and the means to end it. Clones share the connection.
#[derive(Debug, Clone, Default)]
pub struct Activity(Rc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    received_bytes: Cell<u64>,
    sent_bytes: Cell<u64>,
    received_messages: Cell<u64>,
    queued_messages: Cell<usize>,
    is_receiving: Cell<bool>,
    is_waiting: Cell<bool>,
    is_overloaded: Cell<bool>,
    failure: RefCell<Option<capnp::Error>>,
    closing: Notify,
}

impl Activity {
    /// Number of bytes that were read.
    pub fn received_bytes(&self) -> u64 {
        self.0.received_bytes.get()
    }

    /// Number of bytes that were written.
    pub fn sent_bytes(&self) -> u64 {
        self.0.sent_bytes.get()
    }

    /// Number of messages that have arrived completely.
    pub fn received_messages(&self) -> u64 {
        self.0.received_messages.get()
    }

    /// Number of messages that wait to be written or are being written.
    pub fn queued_messages(&self) -> usize {
        self.0.queued_messages.get()
    }

    /// True while a message has arrived in part, unless its rest is not read yet for lack of memory.
    pub fn is_receiving(&self) -> bool {
        self.0.is_receiving.get() && !self.0.is_waiting.get()
    }

    /// True once the connection has exceeded its quota, or the number of its calls or queued messages.
    pub fn is_overloaded(&self) -> bool {
        self.0.is_overloaded.get()
    }

    /// Ends the connection with an error, which the other side gets if it reads. Only the first error counts.
    pub fn close(&self, error: capnp::Error) {
        self.0.failure.borrow_mut().get_or_insert(error);
        self.0.closing.notify_waiters();
    }

    /// Waits until the connection is closed from this side, and returns the error.
    pub async fn closed(&self) -> capnp::Error {
        loop {
            // Created before the check, so that no notification is missed.
            let closing = self.0.closing.notified();
            if let Some(error) = self.failure() {
                return error;
            }
            closing.await;
        }
    }

    pub(crate) fn failure(&self) -> Option<capnp::Error> {
        self.0.failure.borrow().clone()
    }

    /// Records that the connection exceeds a limit, and returns the error that ends it.
    pub(crate) fn overload(&self, detail: String) -> capnp::Error {
        self.0.is_overloaded.set(true);
        capnp::Error::overloaded(detail)
    }

    pub(crate) fn count_received(&self, bytes: usize) {
        self.0.received_bytes.set(self.0.received_bytes.get() + bytes as u64);
    }

    pub(crate) fn count_sent(&self, bytes: usize) {
        self.0.sent_bytes.set(self.0.sent_bytes.get() + bytes as u64);
    }

    pub(crate) fn begin_message(&self) {
        self.0.is_receiving.set(true);
    }

    /// Records that a message waits for memory, until the result is dropped.
    pub(crate) fn begin_wait(&self) -> MemoryWait {
        self.0.is_waiting.set(true);
        MemoryWait(self.clone())
    }

    pub(crate) fn end_message(&self) {
        self.0.is_receiving.set(false);
        self.0.received_messages.set(self.0.received_messages.get() + 1);
    }

    pub(crate) fn queue_message(&self) {
        self.0.queued_messages.set(self.0.queued_messages.get() + 1);
    }

    pub(crate) fn unqueue_message(&self) {
        self.0.queued_messages.set(self.0.queued_messages.get().saturating_sub(1));
    }
}

/// Wait of a message for memory, which ends when this is dropped.
pub(crate) struct MemoryWait(Activity);

impl Drop for MemoryWait {
    fn drop(&mut self) {
        let MemoryWait(Activity(counts)) = self;
        counts.is_waiting.set(false);
    }
}
