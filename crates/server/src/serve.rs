//! Start, main loop and end of a server.

use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sepal_blocks::tunable_names;
use sepal_checkpoint::Checkpoint;
use sepal_core::{ComputeFormat, Ragged, ServerName, Want, WeightFormat};
use sepal_swarm::{Addr, Dial, Endpoint, InProcess, Listener, Stream, Streams};
use sepal_wire::{Limits, Load, Parts, ServerInfo, rpc};
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::budget::ByteBudget;
use crate::engine::Engine;
use crate::forwarder::Forwarder;
use crate::mailbox::Mailbox;
use crate::service::BlockServerImpl;
use crate::stacks::DeviceStacks;
use crate::state::{ClientConnection, ServerState};
use crate::stats::ServerStats;
use crate::tapes::TapeStore;

/// Options of a server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Limits on requests.
    pub limits: Limits,
    /// Maximum calls in the queue before others are refused.
    pub max_queue: u32,
    /// Threads of one computation; libtorch's default if none.
    pub threads: Option<u32>,
    /// Minimum duration of a computation per token and block; a stateless backward counts twice. It leaves computing time to
    /// other programs, and makes benchmarks of routing reproducible.
    pub pace: Option<Duration>,
    /// Lookup of the servers that receive forwarded results; network addresses if none.
    pub dial: Option<Arc<dyn Dial>>,
    /// Name of the server for people.
    pub name: Option<ServerName>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { limits: Limits::default(), max_queue: 1024, threads: None, pace: None, dial: None, name: None }
    }
}

/// Identity of the model that a span belongs to.
#[derive(Debug, Clone)]
pub struct ModelIdentity {
    /// Digest of the model.
    pub digest: String,
    /// Name of the architecture.
    pub family: String,
    /// Number of blocks in the model.
    pub n_blocks: usize,
    /// Size of a hidden state.
    pub hidden: usize,
    /// Description of the checkpoint and of the formats of its blocks, for people.
    pub weights: String,
    /// Format of the computation, which is part of the digest.
    pub compute: ComputeFormat,
}

impl ModelIdentity {
    /// Returns the identity of an open checkpoint.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Self {
        let config = checkpoint.config();
        Self {
            digest: checkpoint.digest().to_owned(),
            family: config.family.name().to_owned(),
            n_blocks: config.n_blocks,
            hidden: config.hidden,
            weights: checkpoint.describe().to_string(),
            compute: ComputeFormat::F32,
        }
    }

    /// Returns the identity of the checkpoint with the blocks' weights in the format `weights` and the computation in the
    /// format `compute`. A format that rounds makes a different model.
    #[must_use]
    pub fn with_formats(self, weights: WeightFormat, compute: ComputeFormat) -> Self {
        let stored = match weights {
            WeightFormat::Auto | WeightFormat::F32 => self.weights,
            rounded => format!("{}, kept as {rounded}", self.weights),
        };
        let description = match compute {
            ComputeFormat::F32 => stored,
            rounded => format!("{stored}, computed in {rounded}"),
        };
        Self { digest: compute.digest(&weights.digest(&self.digest)), weights: description, compute, ..self }
    }
}

/// Error of starting a server.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum StartError {
    /// Address that is in use, of another machine, or not permitted.
    #[error("listen on {addr}")]
    Listen { addr: Addr, source: io::Error },
    /// Failure to start a thread or runtime.
    #[error("start the server's threads")]
    Threads(#[source] io::Error),
}

/// Time without traffic after which a stopping server assumes that its last answers are sent.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Accepts no new work, until all tapes are freed or the deadline has passed.
    Draining(Instant),
    Stopping,
}

/// Running server. Dropping it has the effect of [`BlockServer::shutdown`].
#[derive(Debug)]
pub struct BlockServer {
    endpoint: Endpoint,
    stats: Arc<ServerStats>,
    phase: watch::Sender<Phase>,
    thread: Option<JoinHandle<()>>,
}

impl BlockServer {
    /// Starts a server that listens on `addr`. `stacks` are a [`BlockStack`](sepal_blocks::BlockStack) or stacks on several
    /// devices.
    ///
    /// # Errors
    /// [`StartError`] if the address is not available or no thread starts.
    pub fn listen(
        stacks: impl Into<DeviceStacks>,
        identity: ModelIdentity,
        options: ServerOptions,
        addr: Addr,
    ) -> Result<Self, StartError> {
        let runtime = runtime()?;
        let listener = runtime
            .block_on(Listener::bind(&addr))
            .map_err(|source| StartError::Listen { addr: addr.clone(), source })?;
        let endpoint = Endpoint::Addr(listener.addr().unwrap_or(addr));
        Self::start(stacks.into(), identity, options, runtime, listener, endpoint)
    }

    /// Starts a server for connections from `connections`, with the endpoint that clients use.
    ///
    /// # Errors
    /// [`StartError::Threads`] if no thread starts.
    pub fn accept(
        stacks: impl Into<DeviceStacks>,
        identity: ModelIdentity,
        options: ServerOptions,
        connections: Streams,
        endpoint: Endpoint,
    ) -> Result<Self, StartError> {
        Self::start(stacks.into(), identity, options, runtime()?, Listener::Streams(connections), endpoint)
    }

    /// Starts a server for connections from this process.
    ///
    /// # Errors
    /// [`StartError::Threads`] if no thread starts.
    pub fn embedded(
        stacks: impl Into<DeviceStacks>,
        identity: ModelIdentity,
        options: ServerOptions,
    ) -> Result<Self, StartError> {
        let (server, incoming) = InProcess::new();
        let listener = Listener::InProcess(incoming);
        Self::start(stacks.into(), identity, options, runtime()?, listener, Endpoint::InProcess(server))
    }

    /// Endpoint for clients, with the port that the system chose.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Statistics of the server.
    pub fn stats(&self) -> &Arc<ServerStats> {
        &self.stats
    }

    /// Stops the server: refuses new connections and calls, finishes the calls in flight, then returns.
    pub fn shutdown(mut self) {
        self.stop_and_join();
    }

    /// Stops the server without loss to its clients: announces the end and refuses new work, but serves the backward passes of
    /// stored tapes. Returns when no tape is left, or after `timeout`.
    pub fn drain(mut self, timeout: Duration) {
        self.phase.send_replace(Phase::Draining(Instant::now() + timeout));
        self.join();
    }

    fn start(
        stacks: DeviceStacks,
        identity: ModelIdentity,
        options: ServerOptions,
        runtime: tokio::runtime::Runtime,
        listener: Listener,
        endpoint: Endpoint,
    ) -> Result<Self, StartError> {
        let info = describe(&stacks, identity, &options);
        let config = stacks.config().clone();
        let (engine, compute) = Engine::start(stacks, &options).map_err(StartError::Threads)?;
        let (phase, phase_changes) = watch::channel(Phase::Serving);
        let tapes = Arc::new(Mutex::new(TapeStore::new(info.limits.tape_budget_bytes)));
        let budget = ByteBudget::new(&info.limits);
        let stats = Arc::new(ServerStats::new(info.clone(), engine.counters(), Arc::clone(&tapes), budget.clone()));
        let thread_stats = Arc::clone(&stats);
        let thread = thread::Builder::new().name("sepal-server".into()).spawn(move || {
            let stats = thread_stats;
            let forwarder = Forwarder::new(Arc::clone(&stats), options.dial);
            let mailbox = Mailbox::new(info.limits.max_message_bytes);
            let (calls, clients) = Default::default();
            let state = ServerState { engine, tapes, budget, stats, mailbox, forwarder, info, config, calls, clients };
            LocalSet::new().block_on(&runtime, run_loop(listener, Rc::new(state), phase_changes));
            // The engine is dropped with the last task, which ends the compute thread.
            drop(runtime);
            if compute.join().is_err() {
                tracing::error!("the compute thread panicked");
            }
        });
        Ok(Self { endpoint, stats, phase, thread: Some(thread.map_err(StartError::Threads)?) })
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

fn describe(stacks: &DeviceStacks, identity: ModelIdentity, options: &ServerOptions) -> ServerInfo {
    ServerInfo {
        protocol: sepal_wire::PROTOCOL,
        oldest_protocol: sepal_wire::OLDEST_CLIENT,
        software: concat!("sepal ", env!("CARGO_PKG_VERSION")).to_owned(),
        model_digest: identity.digest,
        family: identity.family,
        n_blocks: identity.n_blocks,
        hidden: identity.hidden,
        span: stacks.span(),
        compute_dtype: identity.compute.dtype(),
        weights: identity.weights,
        limits: options.limits,
        load: Load::default(),
        tape_token_bytes: tape_token_bytes(stacks),
        draining: false,
        tunables: tunable_names(stacks.config()),
        name: options.name.clone(),
    }
}

/// Bytes of a tape per token and block, for a batch of rows of typical length.
fn tape_token_bytes(stacks: &DeviceStacks) -> u32 {
    const ROW_LEN: usize = 32;
    let bytes = Ragged::from_lengths([ROW_LEN; 32])
        .map(|rows| stacks.tape_bytes(stacks.span(), 0, &rows, Want::All) / (rows.n_tokens() * stacks.span().len()));
    u32::try_from(bytes.unwrap_or(0)).unwrap_or(u32::MAX)
}

/// Accepts connections until the server stops or is drained, then waits for the calls in flight.
async fn run_loop(mut listener: Listener, state: Rc<ServerState>, mut phase: watch::Receiver<Phase>) {
    let traffic = state.stats.traffic.clone();
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Some(Ok(stream)) => {
                    connections.spawn_local(serve_connection(stream.counted(&traffic), Rc::clone(&state)));
                }
                Some(Err(error)) => {
                    // Out of file descriptors, for example: open connections are still served.
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                None => break,
            },
            Some(_) = connections.join_next() => {}
            () = wait_for_end(&state, &mut phase) => break,
        }
    }
    drop(listener);
    state.stats.draining.store(true, Ordering::Relaxed);
    // Calls that wait for other servers would never end.
    state.mailbox.close();
    state.forwarder.close();
    while state.calls.get() > 0 || state.engine.queue() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Answers of the last calls are sent before their connections close, as long as there is any traffic.
    let mut sent_bytes = None;
    while !connections.is_empty() && sent_bytes.replace(traffic.up()) != Some(traffic.up()) {
        tokio::time::sleep(FLUSH_INTERVAL).await;
        while connections.try_join_next().is_some() {}
    }
    connections.shutdown().await;
}

async fn wait_for_end(state: &ServerState, phase: &mut watch::Receiver<Phase>) {
    loop {
        let current = *phase.borrow_and_update();
        match current {
            Phase::Serving => {}
            Phase::Draining(deadline) => {
                state.stats.draining.store(true, Ordering::Relaxed);
                if Instant::now() >= deadline || !state.is_in_use() {
                    return;
                }
            }
            Phase::Stopping => return,
        }
        let changed = phase.changed();
        match current {
            Phase::Draining(_) => {
                // No event signals the end of a tape, so the state is polled.
                let _ = tokio::time::timeout(Duration::from_millis(20), changed).await;
            }
            // An error means that the server's handle was dropped.
            _ if changed.await.is_err() => return,
            _ => {}
        }
    }
}

async fn serve_connection(stream: Stream, state: Rc<ServerState>) {
    let max_message_bytes = state.info.limits.max_message_bytes;
    let parts = Parts::default();
    let root = capnp_rpc::new_client(BlockServerImpl(ClientConnection::new(state, parts.clone())));
    let Stream { reader, writer, .. } = stream;
    if let Err(error) = rpc::server(reader, writer, max_message_bytes, root, &parts).await {
        tracing::debug!(%error, "a connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_names_the_formats_that_round() {
        let identity = |weights, compute| {
            let plain = ModelIdentity {
                digest: "d".to_owned(),
                family: "llama".to_owned(),
                n_blocks: 1,
                hidden: 8,
                weights: "GGUF".to_owned(),
                compute: ComputeFormat::F32,
            };
            let identity = plain.with_formats(weights, compute);
            assert_eq!(identity.compute, compute);
            [identity.digest, identity.weights]
        };
        for unrounded in [WeightFormat::Auto, WeightFormat::F32] {
            assert_eq!(identity(unrounded, ComputeFormat::F32), ["d", "GGUF"]);
            assert_eq!(identity(unrounded, ComputeFormat::F16), ["d+compute-f16", "GGUF, computed in f16"]);
        }
        assert_eq!(identity(WeightFormat::Int8, ComputeFormat::F32), ["d+int8", "GGUF, kept as int8"]);
        let both = ["d+nf4+compute-bf16", "GGUF, kept as nf4, computed in bf16"];
        assert_eq!(identity(WeightFormat::Nf4, ComputeFormat::Bf16), both);
    }
}
