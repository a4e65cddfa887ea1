//! Start, main loop and end of a server.

use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sepal_blocks::tunable_names;
use sepal_checkpoint::Checkpoint;
use sepal_core::{ComputeFormat, Ragged, ServerName, Want, WeightFormat};
use sepal_swarm::{Addr, Dial, Endpoint, IdentityKey, InProcess, Listener, ServerSecurity, Streams};
use sepal_wire::{Limits, Load, ServerInfo};
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::accept::{Phase, run_loop};
use crate::admission::Admission;
use crate::engine::Engine;
use crate::forwarder::{Forwarder, RelayTargets};
use crate::ledger::{Ledger, Quotas};
use crate::mailbox::Mailbox;
use crate::receipts::Signer;
use crate::stacks::{DeviceStacks, StackCallMemory};
use crate::state::ServerState;
use crate::stats::ServerStats;
use crate::tapes::TapeStore;

/// Options of a server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Limits on requests. If they limit the memory of a computation, batches have at most as many positions as fit.
    pub limits: Limits,
    /// Maximum bytes of everything that clients make the server hold, of which the limits of tapes, of tunables and of a
    /// computation are parts. The others are for inputs, results and messages, up to a half for one connection. A connection
    /// keeps at most three quarters of all between calls, and the connections of one network leave a quarter of each part to
    /// others. No limit if none, as for servers within the process of their clients.
    pub max_memory: Option<u64>,
    /// Maximum calls that wait or run before others are refused, but for those of clients with less than an equal share; with
    /// `max_memory` a quarter of them for one connection.
    pub max_queue: u32,
    /// Maximum open connections, fewer if the process may have few open files. Beyond it, a connection that is silent or holds
    /// nothing is closed for a new one.
    pub max_connections: usize,
    /// Threads of one computation, at most [`sepal_core::MAX_THREADS`]; libtorch's default if none.
    pub threads: Option<u32>,
    /// Minimum duration of a computation per token and block; a stateless backward counts twice. It leaves computing time to
    /// other programs, and makes benchmarks of routing reproducible.
    pub pace: Option<Duration>,
    /// Lookup of the servers that receive forwarded results. Without one, results are forwarded to addresses of servers with
    /// the same secret; without a secret too, from and to this machine only.
    pub dial: Option<Arc<dyn Dial>>,
    /// Secret that clients must hold. Without one, all connections are accepted as they come.
    pub security: Option<Arc<ServerSecurity>>,
    /// Name of the server for people.
    pub name: Option<ServerName>,
    /// Key that signs receipts for clients that want them; no receipts without one.
    pub key: Option<Arc<IdentityKey>>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            max_memory: None,
            max_queue: 1024,
            max_connections: 1024,
            threads: None,
            pace: None,
            dial: None,
            security: None,
            name: None,
            key: None,
        }
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

/// Positions of a batch that are stated at least, even if the memory of a computation is too small for them.
const MIN_TOKENS: usize = 64;

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
        let memory = stacks.call_memory();
        let info = describe(&stacks, identity, &options, &memory);
        let targets = RelayTargets::new(&options, listener.addr().as_ref());
        let (config, limits) = (stacks.config().clone(), info.limits);
        let ledger = Ledger::new(Quotas::new(&limits, options.max_memory));
        let (phase, phase_changes) = watch::channel(Phase::Serving);
        let failed = phase.clone();
        let on_failure = move || {
            failed.send_replace(Phase::Stopping);
        };
        let (engine, compute) =
            Engine::start(stacks, &options, ledger.clone(), on_failure).map_err(StartError::Threads)?;
        let tapes = Arc::new(Mutex::new(TapeStore::new(limits.tape_budget_bytes, ledger.clone())));
        let stats = Arc::new(ServerStats::new(info.clone(), engine.counters(), Arc::clone(&tapes), ledger.clone()));
        let thread_stats = Arc::clone(&stats);
        let thread = thread::Builder::new().name("sepal-server".into()).spawn(move || {
            let stats = thread_stats;
            let forwarder = Forwarder::new(Arc::clone(&stats), targets);
            let mailbox = Mailbox::new();
            // The stated limits are those of the options, but for positions of which some batches fit and others do not.
            let admission = Admission::new(options.limits, memory, options.max_queue, options.max_memory);
            let (calls, clients) = Default::default();
            let signer = options.key.map(|key| Signer::new(key, info.model_digest.clone(), Arc::clone(&stats)));
            let security = options.security;
            let state = ServerState {
                engine,
                tapes,
                ledger,
                admission,
                stats,
                signer,
                mailbox,
                forwarder,
                security,
                info,
                config,
                calls,
                clients,
            };
            LocalSet::new()
                .block_on(&runtime, run_loop(listener, options.max_connections, Rc::new(state), phase_changes));
            // The engine is dropped with the last task, which ends the compute thread.
            drop(runtime);
            if compute.join().is_err() {
                tracing::error!("the compute thread panicked after its end");
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

fn describe(
    stacks: &DeviceStacks,
    identity: ModelIdentity,
    options: &ServerOptions,
    memory: &StackCallMemory,
) -> ServerInfo {
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
        limits: fitting_limits(options.limits, memory),
        load: Load::default(),
        tape_token_bytes: tape_token_bytes(stacks),
        draining: false,
        tunables: tunable_names(stacks.config()),
        name: options.name.clone(),
        key: options.key.as_ref().map(|key| key.public()),
        receipts: 0,
    }
}

/// Lowers the number of positions of a batch to those whose computation fits into its memory.
fn fitting_limits(limits: Limits, memory: &StackCallMemory) -> Limits {
    if limits.call_bytes == 0 {
        return limits;
    }
    let positions = memory.max_positions(limits.call_bytes, limits.max_tokens as usize);
    let max_tokens = u32::try_from(positions.max(MIN_TOKENS)).unwrap_or(u32::MAX);
    Limits { max_tokens: max_tokens.min(limits.max_tokens), ..limits }
}

/// Bytes of a tape per token and block, for a batch of rows of typical length.
fn tape_token_bytes(stacks: &DeviceStacks) -> u32 {
    const ROW_LEN: usize = 32;
    let bytes = Ragged::from_lengths([ROW_LEN; 32])
        .map(|rows| stacks.tape_bytes(stacks.span(), 0, &rows, Want::All) / (rows.n_tokens() * stacks.span().len()));
    u32::try_from(bytes.unwrap_or(0)).unwrap_or(u32::MAX)
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
