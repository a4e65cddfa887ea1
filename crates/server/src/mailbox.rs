//! Mailbox of tensors that arrive from other servers.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use sepal_core::HostTensor;
use sepal_wire::{Failure, FailureCode, MailboxKey};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::ledger::{ClientQuota, Kind, Reservation};
use crate::refusals::Reason;

/// Time for which a tensor is stored until its call arrives.
const STORE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for which a call waits for its tensor.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Memory of a stored tensor beside its data, in bytes.
const ENTRY_BYTES: u64 = 1 << 10;

pub(crate) struct Mailbox {
    slots: RefCell<HashMap<MailboxKey, Slot>>,
    closed: CancellationToken,
}

enum Slot {
    Awaited(oneshot::Sender<HostTensor>),
    Stored(StoredTensor),
}

/// Tensor that arrived before its call.
struct StoredTensor {
    tensor: HostTensor,
    _reserved: Reservation,
    /// Removes the tensor after a while.
    _expiry: AbortOnDropHandle<()>,
}

impl Mailbox {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self { slots: RefCell::default(), closed: CancellationToken::new() })
    }

    /// Returns the tensor of this key, after waiting for it if necessary. `client` is the caller.
    pub(crate) async fn receive(&self, client: &ClientQuota, key: MailboxKey) -> Result<HostTensor, Failure> {
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
            () = tokio::time::sleep(WAIT_TIMEOUT) => {
                let message = format!("no server sent the input of the call within {} s", WAIT_TIMEOUT.as_secs());
                Err(client.refuse(Reason::Wait, Failure::new(FailureCode::NotRelayed, message)))
            }
        }
    }

    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// Passes a tensor to the call that waits for it, or stores it for a while. `client` is the server that sends it.
    pub(crate) fn deliver(
        self: &Rc<Self>,
        client: &ClientQuota,
        key: MailboxKey,
        tensor: HostTensor,
    ) -> Result<(), Failure> {
        let slot = self.slots.borrow_mut().remove(&key);
        if let Some(Slot::Awaited(call)) = slot {
            return call.send(tensor).map_err(|_| Failure::new(FailureCode::NotRelayed, "the call was cancelled"));
        }
        // Frees the previous tensor of the key.
        drop(slot);
        let reserved = client
            .reserve(Kind::Mailbox, tensor.data().len() as u64 + ENTRY_BYTES)
            .map_err(|failure| Failure::new(FailureCode::NotRelayed, failure.message))?;
        let mailbox = Rc::clone(self);
        let expiry = AbortOnDropHandle::new(tokio::task::spawn_local(async move {
            tokio::time::sleep(STORE_TIMEOUT).await;
            mailbox.take_stored(key);
        }));
        let stored = StoredTensor { tensor, _reserved: reserved, _expiry: expiry };
        self.slots.borrow_mut().insert(key, Slot::Stored(stored));
        Ok(())
    }

    fn take_stored(&self, key: MailboxKey) -> Option<HostTensor> {
        let mut slots = self.slots.borrow_mut();
        match slots.remove(&key)? {
            Slot::Stored(StoredTensor { tensor, .. }) => Some(tensor),
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
    use sepal_wire::Limits;
    use tokio::task::LocalSet;

    use super::*;
    use crate::client::ClientId;
    use crate::ledger::{Ledger, Quotas};

    const KEY: MailboxKey = MailboxKey([7; 16]);

    fn tensor() -> HostTensor {
        HostTensor::from_f32(vec![2], &[1.0, 2.0]).expect("a tensor")
    }

    /// Mailbox with one client and the ledger of both.
    struct Fixture {
        mailbox: Rc<Mailbox>,
        client: ClientQuota,
        ledger: Ledger,
    }

    impl Fixture {
        async fn receive(&self, key: MailboxKey) -> Result<HostTensor, Failure> {
            self.mailbox.receive(&self.client, key).await
        }

        fn deliver(&self, key: MailboxKey) -> Result<(), Failure> {
            self.mailbox.deliver(&self.client, key, tensor())
        }

        fn assert_empty(&self) {
            let mailbox = &self.mailbox;
            assert!(mailbox.slots.borrow().is_empty());
            assert_eq!(self.ledger.used(&Kind::ALL), 0);
        }
    }

    /// Runs `test` in virtual time on a mailbox that stores one tensor.
    fn check(test: impl AsyncFnOnce(Fixture)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let limits = Limits { max_message_bytes: 8 + ENTRY_BYTES, ..Limits::default() };
        let ledger = Ledger::new(Quotas::new(&limits, None));
        let fixture = Fixture { mailbox: Mailbox::new(), client: ledger.client(ClientId::local(1)), ledger };
        LocalSet::new().block_on(&runtime.expect("a runtime"), test(fixture));
    }

    #[test]
    fn receive_before_and_after_delivery_returns_tensor() {
        check(async |fixture| {
            fixture.deliver(KEY).expect("stored");
            assert_eq!(fixture.receive(KEY).await.expect("stored"), tensor());
            let (received, delivered) = tokio::join!(fixture.receive(KEY), async { fixture.deliver(KEY).map(drop) });
            delivered.expect("awaited");
            assert_eq!(received.expect("delivered"), tensor());
            fixture.assert_empty();
        });
    }

    #[test]
    fn stored_tensors_are_limited_and_expire() {
        check(async |fixture| {
            fixture.deliver(KEY).expect("stored");
            let failure = fixture.deliver(MailboxKey([8; 16])).expect_err("full");
            assert_eq!(failure.code, FailureCode::NotRelayed);
            tokio::time::sleep(2 * STORE_TIMEOUT).await;
            fixture.assert_empty();
            fixture.deliver(MailboxKey([8; 16])).expect("stored");
        });
    }

    #[test]
    fn later_tensor_of_a_key_has_its_own_time() {
        check(async |fixture| {
            fixture.deliver(KEY).expect("stored");
            tokio::time::sleep(STORE_TIMEOUT * 2 / 3).await;
            fixture.deliver(KEY).expect("stored in its place");
            tokio::time::sleep(STORE_TIMEOUT * 2 / 3).await;
            assert_eq!(fixture.receive(KEY).await.expect("still stored"), tensor());
            fixture.assert_empty();
        });
    }

    #[test]
    fn cancelled_receive_frees_its_slot() {
        check(async |fixture| {
            let cancelled = tokio::time::timeout(Duration::from_secs(1), fixture.receive(KEY)).await;
            assert!(cancelled.is_err() && fixture.mailbox.slots.borrow().is_empty());
        });
    }

    #[test]
    fn close_ends_present_and_future_receives() {
        check(async |fixture| {
            let (received, ()) = tokio::join!(fixture.receive(KEY), async { fixture.mailbox.close() });
            assert_eq!(received.expect_err("closed").code, FailureCode::ShuttingDown);
            assert_eq!(fixture.receive(KEY).await.expect_err("closed").code, FailureCode::ShuttingDown);
        });
    }

    #[test]
    fn second_delivery_of_key_expires() {
        check(async |fixture| {
            let deliveries = async {
                fixture.deliver(KEY).expect("awaited");
                fixture.deliver(KEY).expect("stored");
            };
            let (received, ()) = tokio::join!(fixture.receive(KEY), deliveries);
            assert_eq!(received.expect("delivered"), tensor());
            tokio::time::sleep(2 * STORE_TIMEOUT).await;
            fixture.assert_empty();
        });
    }

    #[test]
    fn second_receive_of_key_is_refused() {
        check(async |fixture| {
            let second = async {
                let failure = fixture.receive(KEY).await.expect_err("refused");
                assert_eq!(failure.code, FailureCode::InvalidRequest);
                fixture.deliver(KEY).expect("awaited");
            };
            let (first, ()) = tokio::join!(fixture.receive(KEY), second);
            assert_eq!(first.expect("delivered"), tensor());
        });
    }

    #[test]
    fn wait_for_a_tensor_has_a_deadline() {
        check(async |fixture| {
            let failure = fixture.receive(KEY).await.expect_err("nothing arrives");
            assert_eq!(failure.code, FailureCode::NotRelayed);
            assert!(failure.message.contains("within 60 s"), "{failure}");
            assert_eq!(fixture.ledger.refusals().count(Reason::Wait), 1);
            fixture.assert_empty();
        });
    }

    #[test]
    fn tensors_without_data_are_counted() {
        check(async |fixture| {
            let empty = || HostTensor::from_f32(vec![0], &[]).expect("a tensor");
            fixture.mailbox.deliver(&fixture.client, KEY, empty()).expect("stored");
            assert_eq!(fixture.ledger.used(&[Kind::Mailbox]), ENTRY_BYTES);
            let second = fixture.mailbox.deliver(&fixture.client, MailboxKey([8; 16]), empty());
            assert_eq!(second.expect_err("full").code, FailureCode::NotRelayed);
            assert_eq!(fixture.ledger.refusals().count(Reason::Mailbox), 1);
        });
    }
}
