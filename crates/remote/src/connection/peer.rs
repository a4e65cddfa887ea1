use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use sepal_core::{DType, PublicKey, Span, Want};
use sepal_survey::{bootstrap, describe};
use sepal_swarm::{Endpoint, Progress, Traffic};
use sepal_wire::{Failure, FailureCode, Limits, Parts, ServerInfo, sepal_capnp as wire};
use tokio::sync::{Mutex, Notify, Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::answers::check_description;
use super::cached_prefixes::CachedPrefixes;
use super::deadlines::{Liveness, until_overdue};
use super::handle::TunedSession;
use super::rpc::with_timeout;
use crate::error::CallError;
use crate::shared::SharedState;
use crate::step::Step;

/// Oldest protocol with every kind of output.
const ALL_WANTS: u32 = 6;

/// Time beside four round trips that a late server has to answer a probe.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// Maximum calls of the star path that one server has at a time, without those that hedge or check others. It computes one
/// after another, and refuses those beyond a limit of its own.
const MAX_CALLS: usize = 64;

/// One server and the connection to it.
pub(crate) struct Peer {
    pub(crate) endpoint: Endpoint,
    pub(super) shared: SharedState,
    pub(super) connection: Mutex<Option<Connection>>,
    /// Duration of an empty call.
    round_trip: Cell<Duration>,
    /// Traffic of the connection for calls, and its progress below the stream.
    moved: RefCell<(Traffic, Option<Progress>)>,
    /// Newest protocol that the server speaks.
    protocol: Cell<u32>,
    /// Key that signs the server's receipts, as it stated last.
    key: Cell<Option<PublicKey>>,
    /// Number of connections opened for calls.
    generation: Cell<u64>,
    pub(super) cached_prefixes: RefCell<CachedPrefixes>,
    /// Cancelled when the peer is disconnected: no call uses it until it has answered again.
    disconnected: RefCell<CancellationToken>,
    /// One for each call that the server may have at a time.
    permits: Semaphore,
    /// Reason of the last failed call.
    last_failure: RefCell<Option<String>>,
    /// Notified when the server is sighted or is to be probed now.
    pub(crate) sighted: Notify,
    /// True if the server has announced its departure or was not sighted for too long.
    pub(crate) is_gone: Cell<bool>,
    /// True once the router knows the server.
    pub(crate) is_registered: Cell<bool>,
}

pub(super) struct Connection {
    pub(super) root: wire::block_server::Client,
    pub(super) parts: Parts,
    pub(super) limits: Limits,
    pub(super) sessions: HashMap<Span, wire::session::Client>,
    /// Version of the step that `tuned` belongs to.
    pub(super) step_version: u64,
    pub(super) tuned: HashMap<Span, TunedSession>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Peer {
    pub(crate) fn new(endpoint: Endpoint, shared: SharedState) -> Self {
        Self {
            endpoint,
            shared,
            connection: Mutex::new(None),
            round_trip: Cell::default(),
            moved: RefCell::default(),
            protocol: Cell::default(),
            key: Cell::default(),
            generation: Cell::default(),
            cached_prefixes: RefCell::default(),
            disconnected: RefCell::default(),
            permits: Semaphore::new(MAX_CALLS),
            last_failure: RefCell::default(),
            sighted: Notify::new(),
            is_gone: Cell::default(),
            is_registered: Cell::default(),
        }
    }

    pub(super) fn dtype(&self) -> DType {
        self.shared.options.dtype()
    }

    /// Newest protocol that the server speaks.
    pub(super) fn protocol(&self) -> u32 {
        self.protocol.get()
    }

    /// Reason of the last failed call.
    pub(crate) fn last_failure(&self) -> Option<String> {
        self.last_failure.borrow().clone()
    }

    pub(crate) fn set_last_failure(&self, error: &CallError) {
        self.last_failure.replace(Some(error.to_string()));
    }

    /// Waits until `probe_at` or until the server is sighted; for a sighting alone while the server is gone.
    pub(crate) async fn until_probe(&self, probe_at: Instant) {
        let sighted = self.sighted.notified();
        if self.is_gone.get() {
            return sighted.await;
        }
        tokio::select! {
            () = tokio::time::sleep_until(probe_at) => {}
            () = sighted => {}
        }
    }

    /// Duration of an empty call when the first connection was opened.
    pub(crate) fn round_trip(&self) -> Duration {
        self.round_trip.get()
    }

    /// Connects to the server, for the first time or again. A connection that is disconnected, lost or silent is replaced.
    pub(crate) async fn connect(&self) -> Result<ServerInfo, CallError> {
        let mut slot = self.connection.lock().await;
        let disconnected = self.disconnected.borrow().clone();
        let open = slot.as_ref().filter(|connection| !disconnected.is_cancelled() && !connection.driver.is_finished());
        let answer = match open {
            Some(connection) => self.probe_connection(&connection.root).await.ok(),
            None => None,
        };
        let info = match answer {
            Some(info) => info,
            None => {
                *slot = None;
                let (connection, info) = self.open_for_calls().await?;
                *slot = Some(connection);
                info
            }
        };
        if info.draining {
            return Err(CallError::Failure(Failure::new(FailureCode::ShuttingDown, "the server is shutting down")));
        }
        // The peer may have been disconnected during the probe; the connection in the slot is newer or has just answered.
        if self.disconnected.borrow().is_cancelled() {
            self.disconnected.replace(CancellationToken::new());
        }
        Ok(info)
    }

    /// Probes the connection for calls, if there is one.
    pub(crate) async fn check_connection(&self) -> Result<(), CallError> {
        // A call that holds the lock detects a broken connection by itself.
        let root = self.connection.try_lock().ok().and_then(|slot| slot.as_ref().map(|open| open.root.clone()));
        match root {
            Some(root) => self.probe_connection(&root).await.map(drop),
            None => Ok(()),
        }
    }

    async fn probe_connection(&self, root: &wire::block_server::Client) -> Result<ServerInfo, CallError> {
        with_timeout(self.probe_timeout(), self.describe(root)).await
    }

    fn probe_timeout(&self) -> Duration {
        PROBE_TIMEOUT + 4 * self.round_trip.get()
    }

    /// Refuses an output that the server's protocol does not have.
    pub(super) fn check_want(&self, want: Want) -> Result<(), CallError> {
        let protocol = self.protocol();
        if protocol >= ALL_WANTS || matches!(want, Want::All | Want::LastOfRows) {
            return Ok(());
        }
        let message = format!(
            "it speaks protocol {protocol}, in which last blocks return the last token of each row only; update it to \
             protocol {ALL_WANTS}"
        );
        Err(CallError::Failure(Failure::new(FailureCode::NotServed, message)))
    }

    /// Key that signs the server's receipts, if it has one.
    pub(crate) fn key(&self) -> Option<PublicKey> {
        self.key.get()
    }

    /// Number of the connection for calls. Capabilities of earlier connections are lost.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// True if the server has cached the prefix of `step` in `span`.
    pub(crate) fn has_cached_prefix(&self, span: Span, step: &Step) -> bool {
        self.cached_prefixes.borrow().contains(span, step.version, self.generation())
    }

    /// Notes that the server has cached the prefix of `step` in `span`, on the connection of `generation`.
    pub(crate) fn note_cached_prefix(&self, span: Span, step: &Step, generation: u64) {
        self.cached_prefixes.borrow_mut().insert(span, step.version, generation);
    }

    /// Ends all calls to the server, current and future, until [`connect`](Self::connect) succeeds.
    pub(crate) fn disconnect(&self) {
        self.disconnected.borrow().cancel();
        // A call that holds the lock ends with the others.
        if let Ok(mut connection) = self.connection.try_lock() {
            *connection = None;
        }
    }

    /// Waits while the server has the maximum number of calls. A call counts until the result is dropped.
    pub(crate) async fn call_permit(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.permits.acquire().await.ok()
    }

    /// Returns the result of `call`, or an error once the peer is disconnected or the call is overdue.
    pub(crate) async fn with_deadline<T>(
        &self,
        late_after: Option<Duration>,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let bounded = async {
            tokio::select! {
                biased;
                outcome = call => outcome,
                error = until_overdue(self, late_after, self.shared.options.call_timeout()) => Err(error),
            }
        };
        self.unless_disconnected(bounded).await
    }

    /// Returns the result of `call`, or an error once the peer is disconnected.
    pub(crate) async fn unless_disconnected<T>(
        &self,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let disconnected = self.disconnected.borrow().clone();
        tokio::select! {
            biased;
            () = disconnected.cancelled() => Err(CallError::Disconnected),
            outcome = call => outcome,
        }
    }

    /// Returns the connection of `slot`, after opening one if there is none.
    pub(super) async fn connected<'a>(
        &self,
        slot: &'a mut Option<Connection>,
    ) -> Result<&'a mut Connection, CallError> {
        let connection = match slot.take().filter(|connection| !connection.driver.is_finished()) {
            Some(connection) => connection,
            None => self.open_for_calls().await?.0,
        };
        Ok(slot.insert(connection))
    }

    async fn open_for_calls(&self) -> Result<(Connection, ServerInfo), CallError> {
        let moved = Traffic::default();
        self.moved.replace((moved.clone(), None));
        let (connection, info, progress) = with_timeout(self.shared.options.connect_timeout, self.open(&moved)).await?;
        self.moved.borrow_mut().1 = Some(progress);
        self.generation.set(self.generation.get() + 1);
        Ok((connection, info))
    }

    async fn open(&self, moved: &Traffic) -> Result<(Connection, ServerInfo, Progress), CallError> {
        let stream = self.endpoint.connect().await.map_err(CallError::Connect)?;
        let stream = stream.counted(&self.shared.traffic).counted(moved);
        let progress = stream.progress.clone();
        let (root, parts, driver) = bootstrap(stream);
        let mut connection = Connection {
            root,
            parts,
            limits: Limits::default(),
            sessions: HashMap::new(),
            step_version: u64::MAX,
            tuned: HashMap::new(),
            driver,
        };
        let mut info = self.describe(&connection.root).await?;
        if self.round_trip.get().is_zero() {
            let started = Instant::now();
            info = self.describe(&connection.root).await?;
            self.round_trip.set(started.elapsed());
        }
        connection.limits = info.limits;
        self.protocol.set(info.protocol);
        self.key.set(info.key);
        Ok((connection, info, progress))
    }

    /// Returns the server's description after checking that it can be used.
    async fn describe(&self, root: &wire::block_server::Client) -> Result<ServerInfo, CallError> {
        let info = describe(root).await?;
        check_description(&info, &self.shared.expected, &self.endpoint)?;
        Ok(info)
    }
}

impl Liveness for Peer {
    async fn probe(&self) -> Result<ServerInfo, CallError> {
        // A connection of its own, because the one for calls may be stuck.
        let (_, info, _) = with_timeout(self.probe_timeout(), self.open(&Traffic::default())).await?;
        Ok(info)
    }

    fn bytes_moved(&self) -> u64 {
        let (traffic, progress) = &*self.moved.borrow();
        traffic.up() + traffic.down() + progress.as_ref().map_or(0, Progress::now)
    }
}
