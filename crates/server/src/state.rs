//! State that all connections of a server share.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use sepal_core::{HostTensor, HostTunable, ModelConfig, Span};
use sepal_wire::codec::{WireBatch, WireRows};
use sepal_wire::{Failure, Parts, Relay, ServerInfo, Timing};

use crate::budget::ByteBudget;
use crate::compute::{Job, JobOutput, Tunables, invalid};
use crate::engine::Engine;
use crate::forwarder::Forwarder;
use crate::lock::lock;
use crate::mailbox::{Mailbox, shutting_down};
use crate::queue::ClientId;
use crate::stats::{Method, ServerStats};
use crate::tapes::TapeStore;

pub(crate) struct ServerState {
    pub(crate) engine: Engine,
    pub(crate) tapes: Arc<Mutex<TapeStore>>,
    pub(crate) budget: ByteBudget,
    pub(crate) stats: Arc<ServerStats>,
    pub(crate) mailbox: Rc<Mailbox>,
    pub(crate) forwarder: Forwarder,
    /// Description with the load at the start.
    pub(crate) info: ServerInfo,
    pub(crate) config: ModelConfig,
    /// Number of calls whose answer is not written yet.
    pub(crate) calls: Cell<usize>,
    pub(crate) clients: Cell<u64>,
}

#[derive(Clone)]
pub(crate) struct ClientConnection {
    pub(crate) state: Rc<ServerState>,
    client: ClientId,
    pub(crate) parts: Parts,
}

impl ClientConnection {
    pub(crate) fn new(state: Rc<ServerState>, parts: Parts) -> Self {
        state.clients.set(state.clients.get() + 1);
        let client = ClientId(state.clients.get());
        Self { state, client, parts }
    }

    pub(crate) fn check_tunables(&self, tunables: Vec<HostTunable>, span: Span) -> Result<Tunables, Failure> {
        Tunables::check(tunables, span, &self.state.config, &self.state.budget, self.client)
    }

    pub(crate) async fn run(&self, job: Job, exclusive: bool) -> Result<(JobOutput, Timing), Failure> {
        self.state.engine.run(self.client, job, exclusive).await
    }
}

impl ServerState {
    /// Returns the input of a call, which is part of the call or arrives from another server.
    pub(crate) async fn input(&self, inline: Option<HostTensor>, relay: &Relay) -> Result<HostTensor, Failure> {
        match (relay.from, inline) {
            (Some(key), _) => self.mailbox.receive(key).await,
            (None, Some(tensor)) => Ok(tensor),
            (None, None) => Err(invalid("a call without its input")),
        }
    }

    /// Forwards a result to the next server, or returns it if the caller receives it.
    pub(crate) async fn forward_to(
        &self,
        result: Option<HostTensor>,
        relay: &Relay,
    ) -> Result<Option<HostTensor>, Failure> {
        match (&relay.next, result) {
            (Some(target), Some(result)) => self.forwarder.forward_to(target, &result).await.map(|()| None),
            (Some(_), None) => Err(invalid("no result to forward: the gradient of the input was not requested")),
            (None, result) => Ok(result),
        }
    }

    /// True while a call is in flight or a tape waits for its backward pass.
    pub(crate) fn is_in_use(&self) -> bool {
        self.calls.get() > 0 || self.engine.queue() > 0 || lock(&self.tapes).load().0 > 0
    }

    pub(crate) fn check_open(&self) -> Result<(), Failure> {
        if self.stats.draining.load(Ordering::Relaxed) { Err(shutting_down()) } else { Ok(()) }
    }

    pub(crate) fn check_rows(&self, WireRows { prefix_len, rows, .. }: &WireRows) -> Result<(), Failure> {
        let (limits, tokens) = (self.info.limits, prefix_len + rows.n_tokens());
        if rows.len() > limits.max_rows as usize {
            return Err(invalid(format!("{} rows, but this server accepts {}", rows.len(), limits.max_rows)));
        }
        if tokens > limits.max_tokens as usize {
            return Err(invalid(format!("{tokens} tokens, but this server accepts {}", limits.max_tokens)));
        }
        Ok(())
    }

    pub(crate) fn check_batch(&self, batch: &WireBatch) -> Result<(), Failure> {
        let (found, hidden) = (batch.hidden.shape()[1], self.info.hidden);
        if found != hidden {
            return Err(invalid(format!("hidden states of size {found}, expected {hidden}")));
        }
        Ok(())
    }
}

/// Counts a call as long as its answer is not written.
pub(crate) struct CallGuard {
    state: Rc<ServerState>,
    method: Method,
    started_at: Instant,
}

impl CallGuard {
    pub(crate) fn new(state: &Rc<ServerState>, method: Method) -> Self {
        state.calls.set(state.calls.get() + 1);
        Self { state: Rc::clone(state), method, started_at: Instant::now() }
    }

    /// Records the result of the call. Calls that the client cancelled are not recorded.
    pub(crate) fn record<T>(&self, result: &Result<T, Failure>) {
        self.state.stats.record_call(self.method, self.started_at.elapsed().as_secs_f64(), result.as_ref().err());
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        self.state.calls.set(self.state.calls.get() - 1);
    }
}
