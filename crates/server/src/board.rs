//! What a server can be seen to do, from any thread.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use sepal_swarm::Traffic;
use sepal_wire::{Failure, FailureCode, Load, ServerInfo, Timing};

use crate::rpc::lock;
use crate::tapes::TapeStore;

/// What a call does, as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Forward,
    Backward,
    /// Forward again, then backward.
    Stateless,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Method::Forward => "forward",
            Method::Backward => "backward",
            Method::Stateless => "stateless_backward",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

/// A running server's description, load and counts.
#[derive(Debug)]
pub struct Board {
    /// But for what changes.
    described: ServerInfo,
    queue: Arc<AtomicU32>,
    completed: Arc<AtomicU64>,
    tapes: Arc<Mutex<TapeStore>>,
    /// Tensors on their way to other servers.
    pub(crate) relaying: AtomicU32,
    /// Bits of the measured seconds per token and block of a forward; 0 before the first.
    rate: AtomicU64,
    pub(crate) draining: AtomicBool,
    /// What its connections moved.
    pub(crate) traffic: Traffic,
    registry: Registry,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    calls: Family<MethodLabel, Counter>,
    tokens: Family<MethodLabel, Counter>,
    failures: Family<CodeLabel, Counter>,
    call_seconds: Histograms,
    queued_seconds: Histograms,
    compute_seconds: Histograms,
    sent: Counter,
    received: Counter,
    queue: Gauge,
    tapes: Gauge,
    tape_bytes: Gauge,
}

/// A histogram of seconds for each method.
#[derive(Debug)]
struct Histograms(Family<MethodLabel, Histogram, fn() -> Histogram>);

impl Default for Histograms {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 16))))
    }
}

impl Board {
    pub(crate) fn new(
        described: ServerInfo,
        queue: Arc<AtomicU32>,
        completed: Arc<AtomicU64>,
        tapes: Arc<Mutex<TapeStore>>,
    ) -> Self {
        let counts = Counts::default();
        let mut registry = Registry::with_prefix("sepal");
        let seconds = |registry: &mut Registry, name: &str, help: &str, histograms: &Histograms| {
            registry.register_with_unit(name, help, Unit::Seconds, histograms.0.clone());
        };
        registry.register("calls", "Calls that were answered", counts.calls.clone());
        registry.register("tokens", "Positions that were computed, prefixes included", counts.tokens.clone());
        registry.register("failures", "Calls that were answered with a failure", counts.failures.clone());
        seconds(&mut registry, "call", "From a call's coming to its answer", &counts.call_seconds);
        seconds(&mut registry, "queued", "That a call waited", &counts.queued_seconds);
        seconds(&mut registry, "compute", "That a call computed", &counts.compute_seconds);
        registry.register_with_unit("sent", "To clients", Unit::Bytes, counts.sent.clone());
        registry.register_with_unit("received", "From clients", Unit::Bytes, counts.received.clone());
        registry.register("queue", "Calls that wait or run", counts.queue.clone());
        registry.register("tapes", "Graphs kept for a backward", counts.tapes.clone());
        registry.register_with_unit("tape", "Memory of kept graphs, estimated", Unit::Bytes, counts.tape_bytes.clone());
        let budget: Gauge = Gauge::default();
        budget.set(described.limits.tape_budget_bytes.try_into().unwrap_or(i64::MAX));
        registry.register_with_unit("tape_budget", "Memory that kept graphs may take", Unit::Bytes, budget);
        let held: Gauge = Gauge::default();
        held.set(described.span.len().try_into().unwrap_or(i64::MAX));
        registry.register("blocks", "Blocks that are held", held);
        Self {
            described,
            queue,
            completed,
            tapes,
            relaying: AtomicU32::new(0),
            rate: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            traffic: Traffic::default(),
            registry,
            counts,
        }
    }

    /// What the server says of itself now.
    pub fn info(&self) -> ServerInfo {
        let (tapes, tape_bytes) = lock(&self.tapes).load();
        let load = Load {
            queue: self.queue.load(Ordering::Relaxed) + self.relaying.load(Ordering::Relaxed),
            tapes,
            tape_bytes,
            completed: self.completed.load(Ordering::Relaxed),
            rate: f64::from_bits(self.rate.load(Ordering::Relaxed)),
        };
        ServerInfo { load, draining: self.draining.load(Ordering::Relaxed), ..self.described.clone() }
    }

    /// Its counts in the text format of OpenMetrics, which Prometheus reads.
    pub fn metrics(&self) -> String {
        let (info, counts) = (self.info(), &self.counts);
        let narrow = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        counts.queue.set(info.load.queue.into());
        counts.tapes.set(info.load.tapes.into());
        counts.tape_bytes.set(narrow(info.load.tape_bytes));
        counts.sent.inner().store(self.traffic.up(), Ordering::Relaxed);
        counts.received.inner().store(self.traffic.down(), Ordering::Relaxed);
        let mut page = String::new();
        if text::encode(&mut page, &self.registry).is_err() {
            // Writing to a string does not fail.
            let _ = write!(page, "# EOF");
        }
        page
    }

    /// Takes in a computation of so many positions through so many blocks.
    pub(crate) fn computed(&self, method: Method, tokens: usize, blocks: usize, timing: Timing) {
        const WEIGHT: f64 = 0.3;
        let label = MethodLabel { method: method.name() };
        self.counts.tokens.get_or_create(&label).inc_by(tokens as u64);
        self.counts.queued_seconds.0.get_or_create(&label).observe(timing.queued.as_secs_f64());
        self.counts.compute_seconds.0.get_or_create(&label).observe(timing.computed.as_secs_f64());
        if method == Method::Forward {
            let now = timing.computed.as_secs_f64() / (tokens * blocks).max(1) as f64;
            let rate = f64::from_bits(self.rate.load(Ordering::Relaxed));
            let mean = if rate == 0.0 { now } else { rate + WEIGHT * (now - rate) };
            self.rate.store(mean.to_bits(), Ordering::Relaxed);
        }
    }

    /// Takes in a call that has ended.
    pub(crate) fn called(&self, method: Method, seconds: f64, failure: Option<&Failure>) {
        let label = MethodLabel { method: method.name() };
        self.counts.calls.get_or_create(&label).inc();
        self.counts.call_seconds.0.get_or_create(&label).observe(seconds);
        if let Some(failure) = failure {
            self.counts.failures.get_or_create(&CodeLabel { code: code(failure.code) }).inc();
        }
    }
}

fn code(code: FailureCode) -> &'static str {
    match code {
        FailureCode::InvalidRequest => "invalid_request",
        FailureCode::NotServed => "not_served",
        FailureCode::TapeExpired => "tape_expired",
        FailureCode::Overloaded => "overloaded",
        FailureCode::ShuttingDown => "shutting_down",
        FailureCode::ComputeFailed => "compute_failed",
        FailureCode::Unreadable => "unreadable",
        FailureCode::NotRelayed => "not_relayed",
        _ => "other",
    }
}
