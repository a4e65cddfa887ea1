//! Mailbox of tensors that arrive from other servers.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use sepal_core::HostTensor;
use sepal_wire::{Failure, FailureCode, MailboxKey};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Time for which a tensor is stored until its call arrives.
const STORE_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) struct Mailbox {
    slots: RefCell<HashMap<MailboxKey, Slot>>,
    closed: CancellationToken,
    stored_bytes: Cell<u64>,
    max_stored_bytes: u64,
}

enum Slot {
    Awaited(oneshot::Sender<HostTensor>),
    Stored(HostTensor),
}

impl Mailbox {
    pub(crate) fn new(max_stored_bytes: u64) -> Rc<Self> {
        let (slots, stored_bytes) = (RefCell::default(), Cell::new(0));
        Rc::new(Self { slots, closed: CancellationToken::new(), stored_bytes, max_stored_bytes })
    }

    /// Returns the tensor of this key, after waiting for it if necessary.
    pub(crate) async fn receive(&self, key: MailboxKey) -> Result<HostTensor, Failure> {
        let key_in_use = || Failure::new(FailureCode::InvalidRequest, "two calls wait for the same tensor");
        if let Some(tensor) = self.take_stored(key) {
            return Ok(tensor);
        }
        let (sender, receiver) = oneshot::channel();
        if self.slots.borrow().contains_key(&key) {
            return Err(key_in_use());
        }
        self.slots.borrow_mut().insert(key, Slot::Awaited(sender));
        let _guard = ReceiveGuard { mailbox: self, key };
        tokio::select! {
            biased;
            tensor = receiver => tensor.map_err(|_| key_in_use()),
            () = self.closed.cancelled() => Err(shutting_down()),
        }
    }

    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// Passes a tensor to the call that waits for it, or stores it for a while.
    pub(crate) fn deliver(self: &Rc<Self>, key: MailboxKey, tensor: HostTensor) -> Result<(), Failure> {
        let slot = self.slots.borrow_mut().remove(&key);
        if let Some(Slot::Awaited(call)) = slot {
            return call.send(tensor).map_err(|_| Failure::new(FailureCode::NotRelayed, "the call was cancelled"));
        }
        if let Some(Slot::Stored(previous)) = slot {
            self.stored_bytes.set(self.stored_bytes.get() - previous.data().len() as u64);
        }
        let stored_bytes = self.stored_bytes.get() + tensor.data().len() as u64;
        if stored_bytes > self.max_stored_bytes {
            return Err(Failure::new(FailureCode::NotRelayed, "too many tensors wait for their calls"));
        }
        self.stored_bytes.set(stored_bytes);
        self.slots.borrow_mut().insert(key, Slot::Stored(tensor));
        let mailbox = Rc::clone(self);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(STORE_TIMEOUT).await;
            mailbox.take_stored(key);
        });
        Ok(())
    }

    fn take_stored(&self, key: MailboxKey) -> Option<HostTensor> {
        let mut slots = self.slots.borrow_mut();
        match slots.remove(&key)? {
            Slot::Stored(tensor) => {
                self.stored_bytes.set(self.stored_bytes.get() - tensor.data().len() as u64);
                Some(tensor)
            }
            awaited => {
                slots.insert(key, awaited);
                None
            }
        }
    }
}

pub(crate) fn shutting_down() -> Failure {
    Failure::new(FailureCode::ShuttingDown, "the server is stopping")
}

/// Removes the slot of a waiting call on drop.
struct ReceiveGuard<'a> {
    mailbox: &'a Mailbox,
    key: MailboxKey,
}

impl Drop for ReceiveGuard<'_> {
    fn drop(&mut self) {
        let mut slots = self.mailbox.slots.borrow_mut();
        // A tensor that was stored under the same key since then expires by itself.
        if matches!(slots.get(&self.key), Some(Slot::Awaited(_))) {
            slots.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;

    const KEY: MailboxKey = MailboxKey([7; 16]);

    fn tensor() -> HostTensor {
        HostTensor::from_f32(vec![2], &[1.0, 2.0]).expect("a tensor")
    }

    /// Runs `test` in virtual time on a mailbox that stores one tensor.
    fn check(test: impl AsyncFnOnce(Rc<Mailbox>)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        LocalSet::new().block_on(&runtime.expect("a runtime"), test(Mailbox::new(8)));
    }

    fn assert_empty(mailbox: &Mailbox) {
        assert!(mailbox.slots.borrow().is_empty() && mailbox.stored_bytes.get() == 0);
    }

    #[test]
    fn receive_before_and_after_delivery_returns_tensor() {
        check(async |mailbox| {
            mailbox.deliver(KEY, tensor()).expect("stored");
            assert_eq!(mailbox.receive(KEY).await.expect("stored"), tensor());
            let (received, delivered) =
                tokio::join!(mailbox.receive(KEY), async { mailbox.deliver(KEY, tensor()).map(drop) });
            delivered.expect("awaited");
            assert_eq!(received.expect("delivered"), tensor());
            assert_empty(&mailbox);
        });
    }

    #[test]
    fn stored_tensors_are_limited_and_expire() {
        check(async |mailbox| {
            mailbox.deliver(KEY, tensor()).expect("stored");
            let failure = mailbox.deliver(MailboxKey([8; 16]), tensor()).expect_err("full");
            assert_eq!(failure.code, FailureCode::NotRelayed);
            tokio::time::sleep(2 * STORE_TIMEOUT).await;
            assert_empty(&mailbox);
            mailbox.deliver(MailboxKey([8; 16]), tensor()).expect("stored");
        });
    }

    #[test]
    fn cancelled_receive_frees_its_slot() {
        check(async |mailbox| {
            let cancelled = tokio::time::timeout(Duration::from_secs(1), mailbox.receive(KEY)).await;
            assert!(cancelled.is_err() && mailbox.slots.borrow().is_empty());
        });
    }

    #[test]
    fn close_ends_present_and_future_receives() {
        check(async |mailbox| {
            let (received, ()) = tokio::join!(mailbox.receive(KEY), async { mailbox.close() });
            assert_eq!(received.expect_err("closed").code, FailureCode::ShuttingDown);
            assert_eq!(mailbox.receive(KEY).await.expect_err("closed").code, FailureCode::ShuttingDown);
        });
    }

    #[test]
    fn second_delivery_of_key_expires() {
        check(async |mailbox| {
            let deliveries = async {
                mailbox.deliver(KEY, tensor()).expect("awaited");
                mailbox.deliver(KEY, tensor()).expect("stored");
            };
            let (received, ()) = tokio::join!(mailbox.receive(KEY), deliveries);
            assert_eq!(received.expect("delivered"), tensor());
            tokio::time::sleep(2 * STORE_TIMEOUT).await;
            assert_empty(&mailbox);
        });
    }

    #[test]
    fn second_receive_of_key_is_refused() {
        check(async |mailbox| {
            let second = async {
                let failure = mailbox.receive(KEY).await.expect_err("refused");
                assert_eq!(failure.code, FailureCode::InvalidRequest);
                mailbox.deliver(KEY, tensor()).expect("awaited");
            };
            let (first, ()) = tokio::join!(mailbox.receive(KEY), second);
            assert_eq!(first.expect("delivered"), tensor());
        });
    }
}
