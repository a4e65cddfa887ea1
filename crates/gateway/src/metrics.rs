//! Metrics of a gateway.

use std::fmt::Write;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: u16,
}

#[derive(Debug)]
pub(crate) struct GatewayMetrics {
    registry: Registry,
    requests: Family<StatusLabel, Counter>,
    request_seconds: Histogram,
    rows: Counter,
    batch_rows: Histogram,
    batch_seconds: Histogram,
    failed_batches: Counter,
    waiting_rows: Gauge,
    ready: Gauge,
}

impl Default for GatewayMetrics {
    fn default() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 16));
        let metrics = Self {
            registry: Registry::with_prefix("sepal_task"),
            requests: Family::default(),
            request_seconds: seconds(),
            rows: Counter::default(),
            batch_rows: Histogram::new(exponential_buckets(1.0, 2.0, 9)),
            batch_seconds: seconds(),
            failed_batches: Counter::default(),
            waiting_rows: Gauge::default(),
            ready: Gauge::default(),
        };
        metrics.registered()
    }
}

impl GatewayMetrics {
    fn registered(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register("requests", "Requests for predictions by status", self.requests.clone());
        let help = "Time from a request's head to its answer";
        registry.register_with_unit("request", help, Unit::Seconds, self.request_seconds.clone());
        registry.register("rows", "Predicted rows", self.rows.clone());
        registry.register("batch_rows", "Rows per batch", self.batch_rows.clone());
        let help = "Computing time of a batch";
        registry.register_with_unit("batch", help, Unit::Seconds, self.batch_seconds.clone());
        registry.register("failed_batches", "Failed batches", self.failed_batches.clone());
        registry.register("waiting_rows", "Rows that wait", self.waiting_rows.clone());
        registry.register("ready", "1 if predictions are available, else 0", self.ready.clone());
        self
    }

    pub(crate) fn record_request(&self, status: u16, duration: Duration) {
        self.requests.get_or_create(&StatusLabel { status }).inc();
        self.request_seconds.observe(duration.as_secs_f64());
    }

    pub(crate) fn record_batch(&self, rows: usize, duration: Duration) {
        self.rows.inc_by(rows as u64);
        self.batch_rows.observe(rows as f64);
        self.batch_seconds.observe(duration.as_secs_f64());
    }

    pub(crate) fn record_failure(&self) {
        self.failed_batches.inc();
    }

    pub(crate) fn set_ready(&self, is_ready: bool) {
        self.ready.set(is_ready.into());
    }

    /// Returns the text format of OpenMetrics, which Prometheus reads.
    pub(crate) fn to_text(&self, waiting_rows: usize) -> String {
        self.waiting_rows.set(i64::try_from(waiting_rows).unwrap_or(i64::MAX));
        let mut page = String::new();
        if text::encode(&mut page, &self.registry).is_err() {
            // Writing to a string does not fail.
            let _ = write!(page, "# EOF");
        }
        page
    }
}
