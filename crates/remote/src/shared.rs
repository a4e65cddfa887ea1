//! State that the training thread and the RPC thread share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sepal_core::Span;
use sepal_route::{Call, Router, ServerId, Timing, Work};
use sepal_swarm::{RemoteOptions, Traffic};
use tokio::time::Instant;

use crate::expectation::ModelExpectation;

/// State of one client. Clones share their counters and router.
#[derive(Debug, Clone)]
pub(crate) struct SharedState {
    pub(crate) expected: ModelExpectation,
    pub(crate) options: RemoteOptions,
    pub(crate) traffic: Traffic,
    pub(crate) router: SharedRouter,
    relay_count: Arc<AtomicU64>,
}

impl SharedState {
    pub(crate) fn new(expected: ModelExpectation, options: RemoteOptions) -> Self {
        let (traffic, router, relay_count) = Default::default();
        Self { expected, options, traffic, router, relay_count }
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
        let total = transfer.map_or(self.started.elapsed(), |transfer| queued + computed + transfer);
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
