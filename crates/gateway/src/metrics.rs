use std::fmt::Write;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry, Unit};

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
        let mut registry = Registry::with_prefix("sepal_task");
        let batch_buckets = exponential_buckets(1.0, 2.0, 9);
        Self {
            requests: register(&mut registry, "requests", "Requests for predictions by status", Family::default()),
            request_seconds: register_seconds(&mut registry, "request", "Time from a request's head to its answer"),
            rows: register(&mut registry, "rows", "Predicted rows", Counter::default()),
            batch_rows: register(&mut registry, "batch_rows", "Rows per batch", Histogram::new(batch_buckets)),
            batch_seconds: register_seconds(&mut registry, "batch", "Computing time of a batch"),
            failed_batches: register(&mut registry, "failed_batches", "Failed batches", Counter::default()),
            waiting_rows: register(&mut registry, "waiting_rows", "Rows that wait", Gauge::default()),
            ready: register(&mut registry, "ready", "1 if predictions are available, else 0", Gauge::default()),
            registry,
        }
    }
}

fn register<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

fn register_seconds(registry: &mut Registry, name: &str, help: &str) -> Histogram {
    let histogram = Histogram::new(exponential_buckets(0.001, 2.0, 16));
    registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
    histogram
}

impl GatewayMetrics {
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
