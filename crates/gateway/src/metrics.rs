use std::fmt::Write;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry, Unit};
use sepal_connections::ConnectionMetrics;

use crate::name::ModelName;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    /// Name of the model; empty for a request that chose none.
    model: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: String,
}

type Histograms = Family<ModelLabel, Histogram, fn() -> Histogram>;

#[derive(Debug)]
pub(crate) struct GatewayMetrics {
    registry: Registry,
    families: Families,
    models: Gauge,
    refused_loads: Counter,
    connections: ConnectionMetrics,
}

#[derive(Debug, Clone)]
struct Families {
    requests: Family<RequestLabels, Counter>,
    request_seconds: Histograms,
    rows: Family<ModelLabel, Counter>,
    batch_rows: Histograms,
    batch_seconds: Histograms,
    failed_batches: Family<ModelLabel, Counter>,
    waiting_rows: Family<ModelLabel, Gauge>,
    open_requests: Family<ModelLabel, Gauge>,
    ready: Family<ModelLabel, Gauge>,
}

/// Metrics of one model.
#[derive(Debug)]
pub(crate) struct ModelMetrics {
    label: ModelLabel,
    families: Families,
}

impl Default for GatewayMetrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("sepal_task");
        let families = Families {
            requests: register(
                &mut registry,
                "requests",
                "Requests for predictions by model and status",
                Family::default(),
            ),
            request_seconds: register_seconds(&mut registry, "request", "Time from a request's head to its answer"),
            rows: register(&mut registry, "rows", "Predicted rows", Family::default()),
            batch_rows: register(&mut registry, "batch_rows", "Rows per batch", histograms(row_buckets)),
            batch_seconds: register_seconds(&mut registry, "batch", "Computing time of a batch"),
            failed_batches: register(&mut registry, "failed_batches", "Failed batches", Family::default()),
            waiting_rows: register(&mut registry, "waiting_rows", "Rows that wait", Family::default()),
            open_requests: register(&mut registry, "open_requests", "Requests in progress", Family::default()),
            ready: register(&mut registry, "ready", "1 if predictions are available, else 0", Family::default()),
        };
        let models =
            register(&mut registry, "models", "Models, those that are being loaded included", Gauge::default());
        let refused_loads = register(
            &mut registry,
            "refused_loads",
            "Requests of administrators to load a model that were refused or failed",
            Counter::default(),
        );
        let connections = ConnectionMetrics::register(&mut registry);
        Self { registry, families, models, refused_loads, connections }
    }
}

fn row_buckets() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 9))
}

fn second_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

fn register<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

fn register_seconds(registry: &mut Registry, name: &str, help: &str) -> Histograms {
    let histograms = histograms(second_buckets);
    registry.register_with_unit(name, help, Unit::Seconds, histograms.clone());
    histograms
}

fn histograms(new: fn() -> Histogram) -> Histograms {
    Family::new_with_constructor(new)
}

impl GatewayMetrics {
    /// Returns the metrics of the model of this name.
    pub(crate) fn of_model(&self, name: &ModelName) -> ModelMetrics {
        let label = ModelLabel { model: name.to_string() };
        ModelMetrics { label, families: self.families.clone() }
    }

    /// Counts of connections.
    pub(crate) fn connections(&self) -> &ConnectionMetrics {
        &self.connections
    }

    /// Records a request that chose no model.
    pub(crate) fn record_request(&self, status: u16) {
        self.families.requests.get_or_create(&RequestLabels { model: String::new(), status }).inc();
    }

    /// Records a request to load a model that was refused or failed.
    pub(crate) fn record_refused_load(&self) {
        self.refused_loads.inc();
    }

    /// Sets the number of models.
    pub(crate) fn set_models(&self, n_models: usize) {
        self.models.set(i64::try_from(n_models).unwrap_or(i64::MAX));
    }

    /// Returns the text format of OpenMetrics, which Prometheus reads.
    pub(crate) fn to_text(&self) -> String {
        let mut page = String::new();
        if text::encode(&mut page, &self.registry).is_err() {
            // Writing to a string does not fail.
            let _ = write!(page, "# EOF");
        }
        page
    }
}

impl ModelMetrics {
    pub(crate) fn record_request(&self, status: u16, duration: Duration) {
        let labels = RequestLabels { model: self.label.model.clone(), status };
        self.families.requests.get_or_create(&labels).inc();
        self.families.request_seconds.get_or_create(&self.label).observe(duration.as_secs_f64());
    }

    pub(crate) fn record_batch(&self, rows: usize, duration: Duration) {
        self.families.rows.get_or_create(&self.label).inc_by(rows as u64);
        self.families.batch_rows.get_or_create(&self.label).observe(rows as f64);
        self.families.batch_seconds.get_or_create(&self.label).observe(duration.as_secs_f64());
    }

    pub(crate) fn record_failure(&self) {
        self.families.failed_batches.get_or_create(&self.label).inc();
    }

    /// Sets the values that describe the present.
    pub(crate) fn set_gauges(&self, is_ready: bool, waiting_rows: usize, open_requests: usize) {
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.families.ready.get_or_create(&self.label).set(is_ready.into());
        self.families.waiting_rows.get_or_create(&self.label).set(gauge(waiting_rows));
        self.families.open_requests.get_or_create(&self.label).set(gauge(open_requests));
    }

    /// Removes the values that describe the present from the page; counts stay.
    pub(crate) fn remove_gauges(&self) {
        for family in [&self.families.waiting_rows, &self.families.open_requests, &self.families.ready] {
            family.remove(&self.label);
        }
    }
}
