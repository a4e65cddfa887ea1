use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sepal_blocks::BlockStack;
use sepal_checkpoint::Checkpoint;
use sepal_core::{DType, Ragged, Want, WeightFormat};
use sepal_swarm::{Addr, Dial, Endpoint, InProcess, Listener, Stream, Streams};
use sepal_wire::{Limits, Load, Parts, ServerInfo, conversation};
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::board::Board;
use crate::engine::{Engine, EngineOptions};
use crate::relay::{Links, Parcels};
use crate::rpc::{Caller, Root, Shared};
use crate::tapes::TapeStore;

/// How a server runs.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// What it accepts.
    pub limits: Limits,
    /// Calls that may wait before others are refused.
    pub max_queue: u32,
    /// Threads of one computation; libtorch's choice if not set.
    pub threads: Option<u32>,
    /// What a computation takes at least for each token and block (a backward alone counts once, forward and backward
    /// twice). A server that must leave room for others waits that long; so do benchmarks of routing.
    pub pace: Option<Duration>,
    /// How servers are found that results are handed on to, beside those at addresses of the network.
    pub dial: Option<Arc<dyn Dial>>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { limits: Limits::default(), max_queue: 1024, threads: None, pace: None, dial: None }
    }
}

/// The model that a span belongs to.
#[derive(Debug, Clone)]
pub struct ModelIdentity {
    /// Digest of the whole model.
    pub digest: String,
    /// Name of the architecture.
    pub family: String,
    /// Blocks of the whole model.
    pub n_blocks: usize,
    /// Size of a hidden state.
    pub hidden: usize,
    /// The checkpoint in words.
    pub weights: String,
}

impl ModelIdentity {
    /// Of an open checkpoint.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        let config = checkpoint.config();
        Self {
            digest: checkpoint.digest().to_owned(),
            family: config.family.name().to_owned(),
            n_blocks: config.n_blocks,
            hidden: config.hidden,
            weights: checkpoint.describe().to_string(),
        }
    }

    /// The same with the blocks' weights kept in `format`: another model, where that rounds.
    #[must_use]
    pub fn kept_as(self, format: WeightFormat) -> Self {
        match format {
            WeightFormat::F32 => self,
            rounded => Self {
                digest: format.digest(&self.digest),
                weights: format!("{}, kept as {rounded}", self.weights),
                ..self
            },
        }
    }
}

/// A server that did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address is taken, not ours, or not allowed.
    #[error("listen on {addr}")]
    Listen {
        /// Where.
        addr: Addr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No thread or no runtime.
    #[error("start the server's threads")]
    Threads(#[source] io::Error),
}

/// How long nothing may be written to any client before a server that stops takes its last answers to have left.
const LAST_ANSWERS: Duration = Duration::from_millis(100);

/// What a server is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Nothing new, until the tapes are gone or this time has come.
    Draining(Instant),
    Stopping,
}

/// A running server. Dropping it stops it as [`BlockServer::shutdown`] does.
#[derive(Debug)]
pub struct BlockServer {
    endpoint: Endpoint,
    board: Arc<Board>,
    phase: watch::Sender<Phase>,
    thread: Option<JoinHandle<()>>,
}

impl BlockServer {
    /// Serves connections to `addr`.
    ///
    /// # Errors
    /// [`StartError`] if the address cannot be had.
    pub fn listen(
        stack: BlockStack,
        identity: ModelIdentity,
        options: ServerOptions,
        addr: Addr,
    ) -> Result<Self, StartError> {
        let runtime = runtime()?;
        let listener = runtime
            .block_on(Listener::bind(&addr))
            .map_err(|source| StartError::Listen { addr: addr.clone(), source })?;
        let endpoint = Endpoint::Addr(listener.addr().unwrap_or(addr));
        Self::start(stack, identity, options, runtime, listener, endpoint)
    }

    /// Serves connections that something else accepts; `endpoint` is where clients find it.
    ///
    /// # Errors
    /// [`StartError::Threads`].
    pub fn accept(
        stack: BlockStack,
        identity: ModelIdentity,
        options: ServerOptions,
        connections: Streams,
        endpoint: Endpoint,
    ) -> Result<Self, StartError> {
        Self::start(stack, identity, options, runtime()?, Listener::Streams(connections), endpoint)
    }

    /// Serves connections from inside this process.
    ///
    /// # Errors
    /// [`StartError::Threads`].
    pub fn embedded(stack: BlockStack, identity: ModelIdentity, options: ServerOptions) -> Result<Self, StartError> {
        let (server, incoming) = InProcess::new();
        let listener = Listener::InProcess(incoming);
        Self::start(stack, identity, options, runtime()?, listener, Endpoint::InProcess(server))
    }

    /// Where clients find it; with the port that the system chose.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What it says of itself now, and what it has counted.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Takes no more connections or calls, finishes those under way, and returns when all is done.
    pub fn shutdown(mut self) {
        self.stop_and_join();
    }

    /// Leaves without loss to its clients: says that it is about to leave and takes nothing new, but finishes the graphs
    /// that are kept here for their backward. Returns when there are none left, or after `patience`.
    pub fn drain(mut self, patience: Duration) {
        self.phase.send_replace(Phase::Draining(Instant::now() + patience));
        self.join();
    }

    fn start(
        stack: BlockStack,
        identity: ModelIdentity,
        options: ServerOptions,
        runtime: tokio::runtime::Runtime,
        listener: Listener,
        endpoint: Endpoint,
    ) -> Result<Self, StartError> {
        let info = describe(&stack, identity, options.limits);
        let config = stack.config().clone();
        let ServerOptions { threads, max_queue, pace, dial, .. } = options;
        let (engine, compute) =
            Engine::start(stack, EngineOptions { threads, max_queue, pace }).map_err(StartError::Threads)?;
        let (phase, told) = watch::channel(Phase::Serving);
        let tapes = Arc::new(Mutex::new(TapeStore::new(info.limits.tape_budget_bytes)));
        let (queue, completed) = engine.counts();
        let board = Arc::new(Board::new(info.clone(), queue, completed, Arc::clone(&tapes)));
        let (shared_info, shared_board) = (info.clone(), Arc::clone(&board));
        let thread = thread::Builder::new()
            .name("sepal-server".into())
            .spawn(move || {
                let shared = Rc::new(Shared {
                    engine,
                    tapes,
                    links: Links::new(Arc::clone(&shared_board), dial),
                    board: shared_board,
                    parcels: Parcels::new(shared_info.limits.max_message_bytes),
                    info: shared_info,
                    config,
                    calls: Cell::default(),
                    clients: Cell::default(),
                });
                LocalSet::new().block_on(&runtime, serve(listener, shared, told));
                // The last reference to the engine went with the tasks: the compute thread ends.
                drop(runtime);
                if compute.join().is_err() {
                    tracing::error!("the compute thread panicked");
                }
            })
            .map_err(StartError::Threads)?;
        Ok(Self { endpoint, board, phase, thread: Some(thread) })
    }

    fn stop_and_join(&mut self) {
        self.phase.send_replace(Phase::Stopping);
        self.join();
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the server's thread panicked");
        }
    }
}

impl Drop for BlockServer {
    fn drop(&mut self) {
        self.stop_and_join();
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, StartError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Threads)
}

fn describe(stack: &BlockStack, identity: ModelIdentity, limits: Limits) -> ServerInfo {
    ServerInfo {
        protocol: sepal_wire::PROTOCOL,
        software: concat!("sepal ", env!("CARGO_PKG_VERSION")).to_owned(),
        model_digest: identity.digest,
        family: identity.family,
        n_blocks: identity.n_blocks,
        hidden: identity.hidden,
        span: stack.span(),
        compute_dtype: DType::F32,
        weights: identity.weights,
        limits,
        load: Load::default(),
        tape_token_bytes: tape_token_bytes(stack),
        draining: false,
    }
}

/// What a graph keeps for each token and block, in a batch of sentences.
fn tape_token_bytes(stack: &BlockStack) -> u32 {
    const ROW: usize = 32;
    let bytes = Ragged::from_lengths([ROW; 32])
        .map(|rows| stack.tape_bytes(stack.span(), 0, &rows, Want::All) / (rows.n_tokens() * stack.span().len()));
    u32::try_from(bytes.unwrap_or(0)).unwrap_or(u32::MAX)
}

/// Accepts until told to stop, or until it has drained; then waits for the calls under way.
async fn serve(mut listener: Listener, shared: Rc<Shared>, mut told: watch::Receiver<Phase>) {
    let traffic = shared.board.traffic.clone();
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Some(Ok(stream)) => {
                    connections.spawn_local(converse(stream.counted(&traffic), Rc::clone(&shared)));
                }
                Some(Err(error)) => {
                    // Out of file descriptors, say: others may still be served.
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                None => break,
            },
            Some(_) = connections.join_next() => {}
            () = finished(&shared, &mut told) => break,
        }
    }
    drop(listener);
    shared.board.draining.store(true, Ordering::Relaxed);
    // What waits for other servers would wait for ever.
    shared.parcels.close();
    shared.links.close();
    while shared.calls.get() > 0 || shared.engine.queue() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Answers of the last calls leave before their connections close: as long as anything moves it is waited for.
    let mut written = None;
    while !connections.is_empty() && written.replace(traffic.up()) != Some(traffic.up()) {
        tokio::time::sleep(LAST_ANSWERS).await;
        while connections.try_join_next().is_some() {}
    }
    connections.shutdown().await;
}

/// Ends when the server is to stop, or has drained.
async fn finished(shared: &Shared, told: &mut watch::Receiver<Phase>) {
    loop {
        let phase = *told.borrow_and_update();
        match phase {
            Phase::Serving => {}
            Phase::Draining(until) => {
                shared.board.draining.store(true, Ordering::Relaxed);
                if Instant::now() >= until || !shared.is_in_use() {
                    return;
                }
            }
            Phase::Stopping => return,
        }
        let changed = told.changed();
        match phase {
            Phase::Draining(_) => {
                // Tapes end one by one: it is looked at again in a while.
                let _ = tokio::time::timeout(Duration::from_millis(20), changed).await;
            }
            // An error means that the server's handle is gone.
            _ if changed.await.is_err() => return,
            _ => {}
        }
    }
}

async fn converse(stream: Stream, shared: Rc<Shared>) {
    let max_message_bytes = shared.info.limits.max_message_bytes;
    let parts = Parts::default();
    let caller = Caller { client: shared.next_client(), parts: parts.clone() };
    let root = capnp_rpc::new_client(Root { shared, caller });
    let Stream { reader, writer, .. } = stream;
    if let Err(error) = conversation::server(reader, writer, max_message_bytes, root, &parts).await {
        tracing::debug!(%error, "a connection ended");
    }
}
