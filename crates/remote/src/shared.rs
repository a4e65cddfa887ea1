//! State that the training thread and the RPC thread share.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use sepal_core::Span;
use sepal_route::{Call, Router, ServerId, Timing, Work};
use sepal_swarm::{Endpoint, Evidence, RemoteOptions, Traffic};
use tokio::time::Instant;

use crate::expectation::ModelExpectation;

/// State of one client. Clones share their counters and router.
#[derive(Debug, Clone)]
pub(crate) struct SharedState {
    pub(crate) expected: ModelExpectation,
    pub(crate) options: RemoteOptions,
    pub(crate) traffic: Traffic,
    pub(crate) router: SharedRouter,
    pub(crate) verification: Verification,
    /// True unless the client never uses more than one server.
    may_have_replicas: bool,
    relay_count: Arc<AtomicU64>,
}

/// Parts of the verification that the caller adds after the connection.
#[derive(Clone, Default)]
pub(crate) struct Verification {
    /// Server of this process with all blocks that servers run.
    pub(crate) own_blocks: Arc<OnceLock<Endpoint>>,
    /// Receives the evidence against servers.
    pub(crate) on_evidence: Arc<OnceLock<EvidenceHandler>>,
}

/// Function that receives the evidence against a server when it is quarantined. The RPC thread calls it and waits for it.
pub type EvidenceHandler = Box<dyn Fn(&Evidence) + Send + Sync>;

impl fmt::Debug for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verification").field("own_blocks", &self.own_blocks).finish_non_exhaustive()
    }
}

impl SharedState {
    pub(crate) fn new(expected: ModelExpectation, options: RemoteOptions, may_have_replicas: bool) -> Self {
        let (traffic, router, verification, relay_count) = Default::default();
        Self { expected, options, traffic, router, verification, may_have_replicas, relay_count }
    }

    /// True if calls may ever be checked. It is the same for all calls, because a backward call is signed only if its forward
    /// call was.
    pub(crate) fn can_verify(&self) -> bool {
        self.options.verify > 0.0 && (self.may_have_replicas || self.verification.own_blocks.get().is_some())
    }

    /// Returns the state of a connection whose traffic does not count.
    pub(crate) fn uncounted(&self) -> Self {
        Self { traffic: Traffic::default(), ..self.clone() }
    }

    /// Number of relayed passes of micro-batches.
    pub(crate) fn relay_count(&self) -> u64 {
        self.relay_count.load(Ordering::Relaxed)
    }

    pub(crate) fn count_relay(&self) {
        self.relay_count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Router that the training thread plans with and the RPC thread updates.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedRouter {
    router: Arc<Mutex<Router>>,
    /// By [`ServerId`].
    usage: Arc<Mutex<Vec<ServerUsage>>>,
}

/// Usage of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUsage {
    /// Address or name of the server.
    pub server: String,
    /// Blocks that it held when it was first connected.
    pub span: Span,
    /// Number of calls that it answered.
    pub calls: u64,
    /// Number of failed calls. They were repeated, there or elsewhere.
    pub failures: u64,
    /// Number of its answers that were computed again elsewhere and compared.
    pub checks: u64,
    /// Number of answers that were wrong or disputed, and of wrong receipts.
    pub differences: u64,
    /// True if its results were wrong, so that it is not used again.
    pub quarantined: bool,
}

impl ServerUsage {
    /// Usage of a server that was not called yet.
    pub(crate) fn new(server: String, span: Span) -> Self {
        Self { server, span, calls: 0, failures: 0, checks: 0, differences: 0, quarantined: false }
    }
}

impl SharedRouter {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Router> {
        // A router stays consistent if another thread panics, because none of its updates is partial.
        self.router.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn usage(&self) -> MutexGuard<'_, Vec<ServerUsage>> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Call that the router counts as in flight until it finishes or is dropped.
pub(crate) struct InFlightCall<'a> {
    router: &'a SharedRouter,
    server: ServerId,
    call: Call,
    started: Instant,
    is_finished: bool,
}

impl<'a> InFlightCall<'a> {
    pub(crate) fn new(router: &'a SharedRouter, server: ServerId, work: Work) -> Self {
        let call = router.lock().start_call(server, work);
        Self { router, server, call, started: Instant::now(), is_finished: false }
    }

    /// Duration after which the call is late, if such a call was measured before.
    pub(crate) fn late_after(&self) -> Option<Duration> {
        self.router.lock().late_after(&self.call)
    }

    /// Records the answer. `transfer` is the time beside queue and computation if it is known; otherwise it is the rest of
    /// the elapsed time.
    pub(crate) fn finish(mut self, timing: sepal_wire::Timing, transfer: Option<Duration>) {
        self.is_finished = true;
        let sepal_wire::Timing { queued, computed } = timing;
        // A server's figures do not exceed the client's own.
        let elapsed = self.started.elapsed();
        let total = transfer.map_or(elapsed, |transfer| (queued + computed + transfer).min(elapsed));
        self.router.lock().finish_call(self.call, Timing { total, queued, computed });
        self.router.usage()[self.server.0].calls += 1;
    }
}

impl Drop for InFlightCall<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            self.router.lock().abandon_call(self.call);
        }
    }
}
