//! Tensors that servers hand on to each other, without the client in between.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sepal_core::HostTensor;
use sepal_swarm::{Addr, Dial, Endpoint, Progress, Stream, Traffic};
use sepal_wire::{Failure, FailureCode, Next, ParcelKey, Parts, codec, conversation, sepal_capnp as wire};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::board::Board;

/// How long a tensor is kept for a call that has not come yet.
const PARKED: Duration = Duration::from_secs(30);
/// How long opening a connection to the next server may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a connection to the next server may be silent before it counts as lost.
const SILENCE: Duration = Duration::from_secs(4);
/// Connections to other servers that are kept open.
const MOST_LINKS: usize = 64;
/// The largest answer of another server: only failures come back.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// What has come from other servers, and what is awaited from them.
#[derive(Debug)]
pub(crate) struct Parcels {
    slots: RefCell<HashMap<ParcelKey, Slot>>,
    /// Nothing is waited for any more.
    closed: CancellationToken,
    /// Bytes of tensors that nobody has asked for yet, and how many there may be.
    parked: Cell<u64>,
    room: u64,
}

#[derive(Debug)]
enum Slot {
    Awaited(oneshot::Sender<HostTensor>),
    Parked(HostTensor),
}

impl Parcels {
    pub(crate) fn new(room: u64) -> Rc<Self> {
        Rc::new(Self { slots: RefCell::default(), closed: CancellationToken::new(), parked: Cell::new(0), room })
    }

    /// The tensor that comes, or has come, under this key.
    pub(crate) async fn receive(self: &Rc<Self>, key: ParcelKey) -> Result<HostTensor, Failure> {
        let taken_twice = || Failure::new(FailureCode::InvalidRequest, "two calls wait for the same tensor");
        if let Some(tensor) = self.take_parked(key) {
            return Ok(tensor);
        }
        let (sender, coming) = oneshot::channel();
        if self.slots.borrow().contains_key(&key) {
            return Err(taken_twice());
        }
        self.slots.borrow_mut().insert(key, Slot::Awaited(sender));
        // A call that is given up awaits nothing.
        let _awaiting = Awaiting { parcels: self, key };
        tokio::select! {
            biased;
            tensor = coming => tensor.map_err(|_| taken_twice()),
            () = self.closed.cancelled() => Err(stopping()),
        }
    }

    /// Ends calls that wait for tensors, and all that will.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// Hands a tensor to the call that awaits it, or keeps it a while until that comes.
    pub(crate) fn deliver(self: &Rc<Self>, key: ParcelKey, tensor: HostTensor) -> Result<(), Failure> {
        let slot = self.slots.borrow_mut().remove(&key);
        if let Some(Slot::Awaited(call)) = slot {
            return call.send(tensor).map_err(|_| Failure::new(FailureCode::NotRelayed, "the call was given up"));
        }
        if let Some(Slot::Parked(first)) = slot {
            self.parked.set(self.parked.get() - first.data().len() as u64);
        }
        let parked = self.parked.get() + tensor.data().len() as u64;
        if parked > self.room {
            return Err(Failure::new(FailureCode::NotRelayed, "too many tensors wait for their calls"));
        }
        self.parked.set(parked);
        self.slots.borrow_mut().insert(key, Slot::Parked(tensor));
        let parcels = Rc::clone(self);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(PARKED).await;
            parcels.take_parked(key);
        });
        Ok(())
    }

    fn take_parked(&self, key: ParcelKey) -> Option<HostTensor> {
        let mut slots = self.slots.borrow_mut();
        match slots.remove(&key)? {
            Slot::Parked(tensor) => {
                self.parked.set(self.parked.get() - tensor.data().len() as u64);
                Some(tensor)
            }
            awaited => {
                slots.insert(key, awaited);
                None
            }
        }
    }
}

fn stopping() -> Failure {
    Failure::new(FailureCode::ShuttingDown, "the server is stopping")
}

/// A call that awaits a tensor.
struct Awaiting<'a> {
    parcels: &'a Parcels,
    key: ParcelKey,
}

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        let mut slots = self.parcels.slots.borrow_mut();
        // What has come under the same key since is dropped in its time.
        if matches!(slots.get(&self.key), Some(Slot::Awaited(_))) {
            slots.remove(&self.key);
        }
    }
}

/// Connections to other servers, by address.
#[derive(Debug)]
pub(crate) struct Links {
    open: RefCell<HashMap<String, Rc<Link>>>,
    board: Arc<Board>,
    dial: Option<Arc<dyn Dial>>,
    /// Nothing is handed on any more.
    closed: CancellationToken,
}

struct Link {
    root: wire::block_server::Client,
    parts: Parts,
    traffic: Traffic,
    progress: Progress,
    driver: JoinHandle<()>,
}

impl Link {
    /// Grows as long as something moves.
    fn moved(&self) -> u64 {
        self.traffic.up() + self.traffic.down() + self.progress.now()
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Link")
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Links {
    pub(crate) fn new(board: Arc<Board>, dial: Option<Arc<dyn Dial>>) -> Self {
        Self { open: RefCell::default(), board, dial, closed: CancellationToken::new() }
    }

    /// Ends what is on its way.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// Brings a tensor to the next server; returns when that has it.
    pub(crate) async fn hand_on(&self, next: &Next, tensor: &HostTensor) -> Result<(), Failure> {
        tokio::select! {
            biased;
            done = self.deliver(next, tensor) => done,
            () = self.closed.cancelled() => Err(stopping()),
        }
    }

    async fn deliver(&self, next: &Next, tensor: &HostTensor) -> Result<(), Failure> {
        let mut sending = Sending::new(self, &next.address);
        let broken = |error: &dyn std::fmt::Display| {
            Failure::new(FailureCode::NotRelayed, format!("could not hand on to {}: {error}", next.address))
        };
        let link = self.link(&next.address).await.map_err(|error| broken(&error))?;
        let mut request = link.root.deliver_request();
        request.get().set_key(&next.key.0);
        codec::write_tensor(request.get().init_tensor(), tensor, &link.parts);
        let mut answer = std::pin::pin!(request.send().promise);
        let answer = loop {
            let before = link.moved();
            match tokio::time::timeout(SILENCE, answer.as_mut()).await {
                Ok(answer) => break answer.map_err(|error| broken(&error))?,
                Err(_) if link.moved() == before => {
                    return Err(broken(&format_args!("nothing has moved for {} s", SILENCE.as_secs())));
                }
                Err(_) => {}
            }
        };
        let results = answer.get().map_err(|error| broken(&error))?;
        if results.has_failure() {
            let failure = results.get_failure().map_err(|error| broken(&error))?;
            return Err(broken(&Failure::read(failure).map_err(|error| broken(&error))?));
        }
        sending.is_done = true;
        Ok(())
    }

    /// Where the next server is. It is the caller who says so: a member of a swarm is sent to other members alone, and
    /// nobody is sent to files of this machine.
    fn endpoint(&self, address: &str) -> Result<Endpoint, Box<dyn std::error::Error>> {
        if let Some(dial) = &self.dial {
            return Ok(dial.find(address).ok_or("no server of the swarm is called so")?);
        }
        match address.parse::<Addr>()? {
            addr @ Addr::Tcp(_) => Ok(Endpoint::Addr(addr)),
            Addr::Unix(_) => Err("a Unix socket is no place for other machines".into()),
        }
    }

    async fn link(&self, address: &str) -> Result<Rc<Link>, Box<dyn std::error::Error>> {
        let open = self.open.borrow().get(address).filter(|link| !link.driver.is_finished()).cloned();
        if let Some(link) = open {
            return Ok(link);
        }
        let endpoint = self.endpoint(address)?;
        let traffic = Traffic::default();
        let stream = tokio::time::timeout(CONNECT, endpoint.connect()).await??.counted(&traffic);
        let Stream { reader, writer, progress } = stream;
        let parts = Parts::default();
        let (root, system) = conversation::client(reader, writer, MAX_ANSWER_BYTES, &parts);
        let driver = tokio::task::spawn_local(async move {
            if let Err(error) = system.await {
                tracing::debug!(%error, "a connection to another server ended");
            }
        });
        let link = Rc::new(Link { root, parts, traffic, progress, driver });
        let mut open = self.open.borrow_mut();
        open.retain(|_, link| !link.driver.is_finished());
        if open.len() >= MOST_LINKS {
            // Those in use live on until they have done what they do.
            open.clear();
        }
        open.insert(address.to_owned(), Rc::clone(&link));
        Ok(link)
    }
}

/// A tensor on its way. If it does not arrive, the connection is not used again: it may be what is broken.
struct Sending<'a> {
    links: &'a Links,
    address: &'a str,
    is_done: bool,
}

impl<'a> Sending<'a> {
    fn new(links: &'a Links, address: &'a str) -> Self {
        links.board.relaying.fetch_add(1, Ordering::Relaxed);
        Self { links, address, is_done: false }
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.links.board.relaying.fetch_sub(1, Ordering::Relaxed);
        if !self.is_done {
            self.links.open.borrow_mut().remove(self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;

    const KEY: ParcelKey = ParcelKey([7; 16]);

    fn tensor() -> HostTensor {
        HostTensor::from_f32(vec![2], &[1.0, 2.0]).expect("a tensor")
    }

    /// Runs `work` with virtual time and room for one tensor.
    fn check(work: impl AsyncFnOnce(Rc<Parcels>)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        LocalSet::new().block_on(&runtime.expect("a runtime"), work(Parcels::new(8)));
    }

    #[test]
    fn a_tensor_meets_its_call_whichever_comes_first() {
        check(async |parcels| {
            parcels.deliver(KEY, tensor()).expect("kept");
            assert_eq!(parcels.receive(KEY).await.expect("it is there"), tensor());
            let (received, delivered) =
                tokio::join!(parcels.receive(KEY), async { parcels.deliver(KEY, tensor()).map(drop) });
            delivered.expect("awaited");
            assert_eq!(received.expect("it came"), tensor());
            assert!(parcels.slots.borrow().is_empty() && parcels.parked.get() == 0);
        });
    }

    #[test]
    fn what_nobody_asks_for_is_dropped_and_does_not_pile_up() {
        check(async |parcels| {
            parcels.deliver(KEY, tensor()).expect("kept");
            let failure = parcels.deliver(ParcelKey([8; 16]), tensor()).expect_err("no room");
            assert_eq!(failure.code, FailureCode::NotRelayed);
            tokio::time::sleep(2 * PARKED).await;
            assert!(parcels.slots.borrow().is_empty() && parcels.parked.get() == 0);
            parcels.deliver(ParcelKey([8; 16]), tensor()).expect("room again");
        });
    }

    #[test]
    fn a_call_that_is_given_up_awaits_nothing() {
        check(async |parcels| {
            let given_up = tokio::time::timeout(Duration::from_secs(1), parcels.receive(KEY)).await;
            assert!(given_up.is_err() && parcels.slots.borrow().is_empty());
        });
    }

    #[test]
    fn a_server_that_stops_waits_for_nothing() {
        check(async |parcels| {
            let (received, ()) = tokio::join!(parcels.receive(KEY), async { parcels.close() });
            assert_eq!(received.expect_err("it ends").code, FailureCode::ShuttingDown);
            assert_eq!(parcels.receive(KEY).await.expect_err("at once").code, FailureCode::ShuttingDown);
        });
    }

    #[test]
    fn a_tensor_that_comes_twice_takes_no_room_for_ever() {
        check(async |parcels| {
            let twice = async {
                parcels.deliver(KEY, tensor()).expect("awaited");
                parcels.deliver(KEY, tensor()).expect("kept");
            };
            let (received, ()) = tokio::join!(parcels.receive(KEY), twice);
            assert_eq!(received.expect("it came"), tensor());
            tokio::time::sleep(2 * PARKED).await;
            assert!(parcels.slots.borrow().is_empty() && parcels.parked.get() == 0);
        });
    }

    #[test]
    fn only_one_call_may_wait_under_a_key() {
        check(async |parcels| {
            let second = async {
                let failure = parcels.receive(KEY).await.expect_err("refused");
                assert_eq!(failure.code, FailureCode::InvalidRequest);
                parcels.deliver(KEY, tensor()).expect("for the first");
            };
            let (first, ()) = tokio::join!(parcels.receive(KEY), second);
            assert_eq!(first.expect("it came"), tensor());
        });
    }
}
