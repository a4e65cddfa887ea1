//! One server: its connection, its sessions and what was uploaded to it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use sepal_core::{DType, HostTensor, Span, Want};
use sepal_swarm::{Endpoint, Progress, RemoteOptions, Stream, Traffic};
use sepal_wire::codec::{self, GradWant, Grads, WireBatch};
use sepal_wire::{Failure, FailureCode, Limits, Parts, Relay, ServerInfo, Timing, rpc, sepal_capnp as wire};
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::{CallError, RemoteError};
use crate::held::{Held, Tape, Tuned};
use crate::kept::KeptSpans;
use crate::patience::{Pulse, give_up};
use crate::sequential::ModelExpectation;
use crate::step::Step;

/// The largest message that a client reads.
const MAX_MESSAGE_BYTES: u64 = 1 << 30;
/// How long a server that is late may take to say that it is there, beside four round trips.
const PULSE: Duration = Duration::from_millis(500);

/// One server.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) endpoint: Endpoint,
    traffic: Traffic,
    expected: ModelExpectation,
    call_timeout: Duration,
    connect_timeout: Duration,
    dtype: DType,
    connection: Mutex<Option<Connection>>,
    /// What an empty call took.
    round_trip: Cell<Duration>,
    /// What the connection has moved, and how it gets on beside.
    moved: RefCell<(Traffic, Option<Progress>)>,
    /// Connections opened for calls so far.
    generation: Cell<u64>,
    kept: RefCell<KeptSpans>,
    /// Whether calls are never to be computed with those of others.
    alone: bool,
    /// Set when the server is left: no call goes to it until it has answered again.
    left: RefCell<CancellationToken>,
    /// Told when something has been heard of the server.
    pub(crate) heard: Notify,
    /// It has said that it leaves, or has not been heard of for too long.
    pub(crate) is_gone: Cell<bool>,
    /// It was met, and is known to the router.
    pub(crate) is_met: Cell<bool>,
}

struct Connection {
    root: wire::block_server::Client,
    parts: Parts,
    limits: Limits,
    sessions: HashMap<Span, wire::session::Client>,
    version: u64,
    tuned: HashMap<Span, Tuned>,
    driver: JoinHandle<()>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({} sessions)", self.sessions.len())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Peer {
    pub(crate) fn new(
        endpoint: Endpoint,
        traffic: Traffic,
        expected: ModelExpectation,
        options: &RemoteOptions,
    ) -> Self {
        Self {
            endpoint,
            traffic,
            expected,
            call_timeout: options.call_timeout(),
            connect_timeout: options.connect_timeout,
            dtype: options.dtype(),
            connection: Mutex::new(None),
            round_trip: Cell::new(Duration::ZERO),
            moved: RefCell::default(),
            generation: Cell::new(0),
            kept: RefCell::default(),
            alone: options.deterministic,
            left: RefCell::default(),
            heard: Notify::new(),
            is_gone: Cell::new(false),
            is_met: Cell::new(false),
        }
    }

    /// Waits until it is time to ask the server whether it is there: at `due`, or as soon as something is heard of it;
    /// not at all while it is gone.
    pub(crate) async fn until_due(&self, due: Instant) {
        let heard = self.heard.notified();
        if self.is_gone.get() {
            return heard.await;
        }
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = heard => {}
        }
    }

    /// What an empty call took when the server was met.
    pub(crate) fn round_trip(&self) -> Duration {
        self.round_trip.get()
    }

    /// Meets the server, for the first time or again. A connection that was left, lost or is silent is replaced.
    pub(crate) async fn meet(&self) -> Result<ServerInfo, CallError> {
        let mut slot = self.connection.lock().await;
        let left = self.left.borrow().clone();
        let alive = slot.as_ref().filter(|connection| !left.is_cancelled() && !connection.driver.is_finished());
        let known = match alive {
            Some(connection) => within(PULSE + 4 * self.round_trip.get(), self.info(&connection.root)).await.ok(),
            None => None,
        };
        let info = match known {
            Some(info) => info,
            None => {
                *slot = None;
                let (connection, info) = self.open_counted().await?;
                *slot = Some(connection);
                info
            }
        };
        if info.draining {
            return Err(CallError::Failure(Failure::new(FailureCode::ShuttingDown, "it is about to leave")));
        }
        // It may have been left, again, while it was asked; what is in the slot was opened since or has just answered.
        if self.left.borrow().is_cancelled() {
            self.left.replace(CancellationToken::new());
        }
        Ok(info)
    }

    /// Whether the connection that is in use still works, if there is one.
    pub(crate) async fn check_connection(&self) -> Result<(), CallError> {
        // Whoever holds the lock is a call, and notices by itself.
        let root = self.connection.try_lock().ok().and_then(|slot| slot.as_ref().map(|open| open.root.clone()));
        match root {
            Some(root) => within(PULSE + 4 * self.round_trip.get(), self.info(&root)).await.map(drop),
            None => Ok(()),
        }
    }

    /// Which of the connections to this server is in use: capabilities of an earlier one are gone with it.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// Whether it has kept the prefix of `step` in `span`.
    pub(crate) fn has_kept(&self, span: Span, step: &Step) -> bool {
        self.kept.borrow().has(span, step.version, self.generation())
    }

    /// It has kept the prefix of `step` in `span`, on the connection of this generation.
    pub(crate) fn note_kept(&self, span: Span, step: &Step, generation: u64) {
        self.kept.borrow_mut().add(span, step.version, generation);
    }

    /// Ends all calls to the server, those under way and those to come, until it is met again.
    pub(crate) fn leave(&self) {
        self.left.borrow().cancel();
        // Whoever holds the lock is a call, and ends with the others.
        if let Ok(mut connection) = self.connection.try_lock() {
            *connection = None;
        }
    }

    /// `call` to its end, unless the server is left or to be given up first.
    pub(crate) async fn patiently<T>(
        &self,
        late_after: Option<Duration>,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let patient = async {
            tokio::select! {
                biased;
                outcome = call => outcome,
                error = give_up(self, late_after, self.call_timeout) => Err(error),
            }
        };
        self.unless_left(patient).await
    }

    /// `call` to its end, unless the server is left first.
    pub(crate) async fn unless_left<T>(
        &self,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let left = self.left.borrow().clone();
        tokio::select! {
            biased;
            () = left.cancelled() => Err(CallError::Left),
            outcome = call => outcome,
        }
    }

    /// Runs a span forward: the output and, if asked for, its tape.
    pub(crate) async fn forward(
        &self,
        tuned: &Tuned,
        batch: &WireBatch,
        want: Want,
        keep_tape: bool,
    ) -> Result<(Output, Timing), CallError> {
        let no_relay = Relay::default();
        let (part, timing) = self.forward_relayed(tuned, batch, want, keep_tape, &no_relay).await?;
        let RelayedPart { output, tape, not_finite } = part;
        let hidden = output.ok_or(CallError::Missing("an output"))?;
        Ok((Output { hidden, tape, not_finite, generation: self.generation() }, timing))
    }

    /// As [`forward`](Self::forward), at a place in a chain: there is an output if it is not handed on.
    pub(crate) async fn forward_relayed(
        &self,
        tuned: &Tuned,
        batch: &WireBatch,
        want: Want,
        keep_tape: bool,
        relay: &Relay,
    ) -> Result<(RelayedPart, Timing), CallError> {
        let parts = &tuned.parts;
        let mut request = tuned.client.forward_request();
        let mut params = request.get();
        match relay.from {
            None => codec::write_batch(params.reborrow().init_batch(), batch, parts),
            Some(_) => codec::write_rows(params.reborrow().init_batch(), batch),
        }
        params.set_want(codec::want_to_wire(want));
        params.set_keep_tape(keep_tape);
        params.set_dtype(codec::dtype_to_wire(self.dtype));
        relay.write(params.init_relay());
        let answer = request.send().promise.await?;
        let results = answer.get()?;
        if results.has_failure() {
            return Err(CallError::Failure(Failure::read(results.get_failure()?)?));
        }
        let output = match relay.next {
            None => Some(codec::read_tensor(results.get_output()?, parts)?),
            Some(_) => None,
        };
        let expected = [want.positions(batch.prefix_slots(), &batch.rows), self.expected.hidden];
        if output.as_ref().is_some_and(|output| output.shape() != expected || output.dtype() != self.dtype) {
            return Err(CallError::Missing("an output of the right shape and dtype"));
        }
        let tape = if keep_tape && results.has_tape() { Some(tuned.held(results.get_tape()?)) } else { None };
        let not_finite = codec::block_from_wire(results.get_not_finite());
        Ok((RelayedPart { output, tape, not_finite }, Timing::read(results.get_timing()?)))
    }

    /// Runs a tape backward; `grad_output` is given unless another server sends it.
    pub(crate) async fn backward_tape(
        &self,
        tape: &Tape,
        grad_output: Option<&HostTensor>,
        want: GradWant,
        relay: &Relay,
    ) -> Result<(Grads, Timing), CallError> {
        let parts = &tape.parts;
        let mut request = tape.client.backward_request();
        let mut params = request.get();
        if let Some(grad_output) = grad_output {
            codec::write_tensor(params.reborrow().init_grad_output(), grad_output, parts);
        }
        codec::write_grad_want(params.reborrow().init_grad(), want);
        relay.write(params.init_relay());
        let answer = request.send().promise.await?;
        let results = answer.get()?;
        if results.has_failure() {
            return Err(CallError::Failure(Failure::read(results.get_failure()?)?));
        }
        Ok((codec::read_grads(results.get_grads()?, parts)?, Timing::read(results.get_timing()?)))
    }

    /// Runs forward again and then backward.
    pub(crate) async fn backward_stateless(
        &self,
        tuned: &Tuned,
        batch: &WireBatch,
        want_output: Want,
        grad_output: &HostTensor,
        want: GradWant,
    ) -> Result<(Grads, Timing), CallError> {
        let parts = &tuned.parts;
        let mut request = tuned.client.backward_request();
        let mut params = request.get();
        codec::write_batch(params.reborrow().init_batch(), batch, parts);
        params.set_want(codec::want_to_wire(want_output));
        codec::write_tensor(params.reborrow().init_grad_output(), grad_output, parts);
        codec::write_grad_want(params.init_grad(), want);
        let answer = request.send().promise.await?;
        let results = answer.get()?;
        if results.has_failure() {
            return Err(CallError::Failure(Failure::read(results.get_failure()?)?));
        }
        Ok((codec::read_grads(results.get_grads()?, parts)?, Timing::read(results.get_timing()?)))
    }

    /// The session of `span` with the tunables of `step`, which are uploaded once however many
    /// micro-batches ask at the same time.
    pub(crate) async fn tuned(&self, span: Span, step: &Step, batch: &WireBatch) -> Result<Tuned, CallError> {
        let mut guard = self.connection.lock().await;
        let connection = self.connected(&mut guard).await?;
        // The gradient of the output may come with the batch, and is no larger.
        check_size(2 * batch.hidden.data().len(), &connection.limits, "lower swarm.with.micro_batch_tokens")?;
        if connection.version != step.version {
            connection.tuned.clear();
            connection.version = step.version;
        }
        if let Some(tuned) = connection.tuned.get(&span) {
            return Ok(tuned.clone());
        }
        let session = self.session(connection, span).await?;
        let part = step.part(span)?;
        let bytes = part.iter().map(|named| named.tensor.data().len()).sum();
        check_size(bytes, &connection.limits, "use fewer prompts, or servers with fewer blocks each")?;
        let mut request = session.tune_request();
        let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
        codec::write_named(request.get().init_tunables(length), &part, &connection.parts);
        request.get().set_alone(self.alone);
        let answer = request.send().promise.await?;
        let results = answer.get()?;
        if results.has_failure() {
            return Err(CallError::Failure(Failure::read(results.get_failure()?)?));
        }
        let tuned = Held { client: results.get_tuned()?, parts: connection.parts.clone() };
        connection.tuned.insert(span, tuned.clone());
        self.kept.borrow_mut().forget(span);
        Ok(tuned)
    }

    async fn session(&self, connection: &mut Connection, span: Span) -> Result<wire::session::Client, CallError> {
        if let Some(session) = connection.sessions.get(&span) {
            return Ok(session.clone());
        }
        let mut request = connection.root.open_request();
        codec::write_span(request.get().init_span(), span);
        let answer = request.send().promise.await?;
        let results = answer.get()?;
        if results.has_failure() {
            return Err(CallError::Failure(Failure::read(results.get_failure()?)?));
        }
        let session = results.get_session()?;
        connection.sessions.insert(span, session.clone());
        Ok(session)
    }

    /// The connection, opened and checked if there is none.
    async fn connected<'a>(&self, slot: &'a mut Option<Connection>) -> Result<&'a mut Connection, CallError> {
        let connection = match slot.take().filter(|connection| !connection.driver.is_finished()) {
            Some(connection) => connection,
            None => self.open_counted().await?.0,
        };
        Ok(slot.insert(connection))
    }

    /// A connection for calls.
    async fn open_counted(&self) -> Result<(Connection, ServerInfo), CallError> {
        let moved = Traffic::default();
        self.moved.replace((moved.clone(), None));
        let (connection, info, progress) = within(self.connect_timeout, self.open(&moved)).await?;
        self.moved.borrow_mut().1 = Some(progress);
        self.generation.set(self.generation.get() + 1);
        Ok((connection, info))
    }

    async fn open(&self, moved: &Traffic) -> Result<(Connection, ServerInfo, Progress), CallError> {
        let stream = self.endpoint.connect().await.map_err(CallError::Connect)?;
        let stream = stream.counted(&self.traffic).counted(moved);
        let progress = stream.progress.clone();
        let (root, parts, driver) = bootstrap(stream);
        let mut connection = Connection {
            root,
            parts,
            limits: Limits::default(),
            sessions: HashMap::new(),
            version: u64::MAX,
            tuned: HashMap::new(),
            driver,
        };
        let mut info = self.info(&connection.root).await?;
        if self.round_trip.get().is_zero() {
            let asked = Instant::now();
            info = self.info(&connection.root).await?;
            self.round_trip.set(asked.elapsed());
        }
        connection.limits = info.limits;
        Ok((connection, info, progress))
    }

    /// What the server says of itself, checked against what this client expects.
    async fn info(&self, root: &wire::block_server::Client) -> Result<ServerInfo, CallError> {
        let answer = root.describe_request().send().promise.await?;
        self.check(ServerInfo::read(answer.get()?.get_info()?)?)
    }

    fn check(&self, info: ServerInfo) -> Result<ServerInfo, CallError> {
        let wrong = |what, expected: &dyn ToString, found: &dyn ToString| {
            let (expected, found) = (expected.to_string(), found.to_string());
            Err(CallError::Unusable(RemoteError::WrongModel {
                server: self.endpoint.to_string(),
                what,
                expected,
                found,
            }))
        };
        if info.protocol != sepal_wire::PROTOCOL {
            return wrong("the protocol", &sepal_wire::PROTOCOL, &info.protocol);
        }
        if info.n_blocks != self.expected.n_blocks {
            return wrong("the number of blocks", &self.expected.n_blocks, &info.n_blocks);
        }
        if info.hidden != self.expected.hidden {
            return wrong("the hidden size", &self.expected.hidden, &info.hidden);
        }
        if info.model_digest != self.expected.digest {
            return wrong("the digest of the weights", &self.expected.digest, &info.model_digest);
        }
        Ok(info)
    }
}

impl Pulse for Peer {
    async fn ask(&self) -> Result<ServerInfo, CallError> {
        // A connection of its own: the one in use may be what is stuck.
        let (_, info, _) = within(PULSE + 4 * self.round_trip.get(), self.open(&Traffic::default())).await?;
        Ok(info)
    }

    fn moved(&self) -> u64 {
        let (traffic, progress) = &*self.moved.borrow();
        traffic.up() + traffic.down() + progress.as_ref().map_or(0, Progress::now)
    }
}

/// What a forward gives.
pub(crate) struct Output {
    pub(crate) hidden: HostTensor,
    pub(crate) tape: Option<Tape>,
    /// The first block whose hidden states were not finite.
    pub(crate) not_finite: Option<usize>,
    /// The connection that the tape belongs to.
    pub(crate) generation: u64,
}

/// What a forward at a place in a chain gives.
pub(crate) struct RelayedPart {
    /// If it was not handed on.
    pub(crate) output: Option<HostTensor>,
    pub(crate) tape: Option<Tape>,
    pub(crate) not_finite: Option<usize>,
}

/// Refuses tensors that the server would not read: it would only close the connection.
fn check_size(bytes: usize, limits: &Limits, what_helps: &str) -> Result<(), CallError> {
    if bytes as u64 <= limits.max_message_bytes {
        return Ok(());
    }
    let message =
        format!("a message of up to {bytes} bytes, but this server reads {}; {what_helps}", limits.max_message_bytes);
    Err(CallError::Failure(Failure::new(FailureCode::InvalidRequest, message)))
}

/// The server at the other end of a stream, and the task that speaks with it.
pub(crate) fn bootstrap(stream: Stream) -> (wire::block_server::Client, Parts, JoinHandle<()>) {
    let Stream { reader, writer, .. } = stream;
    let parts = Parts::default();
    let (root, system) = rpc::client(reader, writer, MAX_MESSAGE_BYTES, &parts);
    let driver = tokio::task::spawn_local(async move {
        if let Err(error) = system.await {
            tracing::debug!(%error, "a connection ended");
        }
    });
    (root, parts, driver)
}

/// `work`, or that it took too long.
pub(crate) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(CallError::Timeout(limit)))
}
