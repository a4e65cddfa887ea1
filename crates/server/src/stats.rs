//! Statistics of a server, readable from any thread.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use sepal_connections::ConnectionMetrics;
use sepal_swarm::Traffic;
use sepal_wire::{Failure, FailureCode, Load, ServerInfo, Timing};

use crate::engine::EngineCounters;
use crate::ledger::{Kind, Ledger};
use crate::lock::lock;
use crate::tapes::TapeStore;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Forward,
    Backward,
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

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// Description, load and metrics of a running server.
#[derive(Debug)]
pub struct ServerStats {
    /// Description with the load at the start.
    description: ServerInfo,
    counters: EngineCounters,
    ledger: Ledger,
    tapes: Arc<Mutex<TapeStore>>,
    /// Number of tensors in flight to other servers.
    pub(crate) transfers: AtomicU32,
    /// Bits of [`Load::rate`].
    rate: AtomicU64,
    pub(crate) draining: AtomicBool,
    /// Number of signed receipts.
    pub(crate) receipts: AtomicU64,
    pub(crate) traffic: Traffic,
    pub(crate) connections: ConnectionMetrics,
    registry: Registry,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Metrics {
    calls: Family<MethodLabel, Counter>,
    tokens: Family<MethodLabel, Counter>,
    failures: Family<CodeLabel, Counter>,
    call_seconds: Histograms,
    queued_seconds: Histograms,
    compute_seconds: Histograms,
    sent: Counter,
    received: Counter,
    receipts: Counter,
    queue: Gauge,
    tapes: Gauge,
    tape_bytes: Gauge,
    tunable_bytes: Gauge,
    memory: Family<KindLabel, Gauge>,
}

#[derive(Debug)]
struct Histograms(Family<MethodLabel, Histogram, fn() -> Histogram>);

impl Default for Histograms {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 16))))
    }
}

impl ServerStats {
    pub(crate) fn new(
        description: ServerInfo,
        counters: EngineCounters,
        tapes: Arc<Mutex<TapeStore>>,
        ledger: Ledger,
    ) -> Self {
        let metrics = Metrics::default();
        let mut registry = Registry::with_prefix("sepal");
        let seconds = |registry: &mut Registry, name: &str, help: &str, histograms: &Histograms| {
            registry.register_with_unit(name, help, Unit::Seconds, histograms.0.clone());
        };
        registry.register("calls", "Calls that were answered", metrics.calls.clone());
        registry.register("tokens", "Positions that were computed, prefixes included", metrics.tokens.clone());
        registry.register("failures", "Calls that were answered with a failure", metrics.failures.clone());
        seconds(&mut registry, "call", "Time from a call's arrival to its answer", &metrics.call_seconds);
        seconds(&mut registry, "queued", "Time of a call in the queue", &metrics.queued_seconds);
        seconds(&mut registry, "compute", "Computing time of a call", &metrics.compute_seconds);
        registry.register_with_unit("sent", "Sent to clients", Unit::Bytes, metrics.sent.clone());
        registry.register_with_unit("received", "Received from clients", Unit::Bytes, metrics.received.clone());
        registry.register("receipts", "Receipts that were signed", metrics.receipts.clone());
        registry.register("queue", "Calls that wait or run", metrics.queue.clone());
        registry.register("tapes", "Tapes that wait for their backward pass", metrics.tapes.clone());
        registry.register_with_unit("tape", "Estimated memory of tapes", Unit::Bytes, metrics.tape_bytes.clone());
        let help = "Memory of tunables and cached prefixes";
        registry.register_with_unit("tunables", help, Unit::Bytes, metrics.tunable_bytes.clone());
        let help = "Memory of clients, estimated for the computation that runs";
        registry.register_with_unit("memory", help, Unit::Bytes, metrics.memory.clone());
        let help = "Calls, tensors and messages that were refused for a limit";
        registry.register("refusals", help, ledger.refusals().counters());
        let tape_budget: Gauge = Gauge::default();
        tape_budget.set(description.limits.tape_budget_bytes.try_into().unwrap_or(i64::MAX));
        registry.register_with_unit("tape_budget", "Maximum memory of tapes", Unit::Bytes, tape_budget);
        let blocks: Gauge = Gauge::default();
        blocks.set(description.span.len().try_into().unwrap_or(i64::MAX));
        registry.register("blocks", "Blocks that the server holds", blocks);
        let (transfers, rate, draining, receipts, traffic) = Default::default();
        let connections = ConnectionMetrics::register(&mut registry);
        Self {
            description,
            counters,
            tapes,
            ledger,
            transfers,
            rate,
            draining,
            receipts,
            traffic,
            connections,
            registry,
            metrics,
        }
    }

    /// Current description of the server.
    pub fn info(&self) -> ServerInfo {
        let (tapes, tape_bytes) = lock(&self.tapes).load();
        let load = Load {
            queue: self.counters.queue.load(Ordering::Relaxed) + self.transfers.load(Ordering::Relaxed),
            tapes,
            tape_bytes,
            completed: self.counters.completed.load(Ordering::Relaxed),
            rate: f64::from_bits(self.rate.load(Ordering::Relaxed)),
        };
        let (draining, receipts) = (self.draining.load(Ordering::Relaxed), self.receipts.load(Ordering::Relaxed));
        ServerInfo { load, draining, receipts, ..self.description.clone() }
    }

    /// True if the compute thread has ended by a panic, so that the server stops.
    pub fn has_failed(&self) -> bool {
        self.counters.failed.load(Ordering::Relaxed)
    }

    /// Metrics in the text format of OpenMetrics, which Prometheus reads.
    pub fn metrics(&self) -> String {
        let (info, metrics) = (self.info(), &self.metrics);
        let narrow = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        metrics.queue.set(info.load.queue.into());
        metrics.tapes.set(info.load.tapes.into());
        metrics.tape_bytes.set(narrow(info.load.tape_bytes));
        metrics.tunable_bytes.set(narrow(self.ledger.used(&Kind::TUNABLES)));
        for kind in Kind::ALL {
            let bytes = narrow(self.ledger.used(&[kind]));
            metrics.memory.get_or_create(&KindLabel { kind: kind.name() }).set(bytes);
        }
        metrics.sent.inner().store(self.traffic.up(), Ordering::Relaxed);
        metrics.received.inner().store(self.traffic.down(), Ordering::Relaxed);
        metrics.receipts.inner().store(info.receipts, Ordering::Relaxed);
        let mut page = String::new();
        if text::encode(&mut page, &self.registry).is_err() {
            // Writing to a string does not fail.
            let _ = write!(page, "# EOF");
        }
        page
    }

    pub(crate) fn record_computation(&self, method: Method, tokens: usize, blocks: usize, timing: Timing) {
        const WEIGHT: f64 = 0.3;
        let label = MethodLabel { method: method.name() };
        self.metrics.tokens.get_or_create(&label).inc_by(tokens as u64);
        self.metrics.queued_seconds.0.get_or_create(&label).observe(timing.queued.as_secs_f64());
        self.metrics.compute_seconds.0.get_or_create(&label).observe(timing.computed.as_secs_f64());
        if method == Method::Forward {
            let current = timing.computed.as_secs_f64() / (tokens * blocks).max(1) as f64;
            let rate = f64::from_bits(self.rate.load(Ordering::Relaxed));
            let mean = if rate == 0.0 { current } else { rate + WEIGHT * (current - rate) };
            self.rate.store(mean.to_bits(), Ordering::Relaxed);
        }
    }

    pub(crate) fn record_call(&self, method: Method, seconds: f64, failure: Option<&Failure>) {
        let label = MethodLabel { method: method.name() };
        self.metrics.calls.get_or_create(&label).inc();
        self.metrics.call_seconds.0.get_or_create(&label).observe(seconds);
        if let Some(failure) = failure {
            self.metrics.failures.get_or_create(&CodeLabel { code: code_name(failure.code) }).inc();
        }
    }
}

fn code_name(code: FailureCode) -> &'static str {
    match code {
        FailureCode::InvalidRequest => "invalid_request",
        FailureCode::NotServed => "not_served",
        FailureCode::TapeExpired => "tape_expired",
        FailureCode::Overloaded => "overloaded",
        FailureCode::ShuttingDown => "shutting_down",
        FailureCode::ComputeFailed => "compute_failed",
        FailureCode::Unreadable => "unreadable",
        FailureCode::NotRelayed => "not_relayed",
        FailureCode::NoMemory => "no_memory",
        FailureCode::NotPermitted => "not_permitted",
        _ => "other",
    }
}
