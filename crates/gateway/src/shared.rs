//! State that the worker's thread and the HTTP thread share.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::oneshot;

use crate::classifier::{ClassifierInfo, Row};
use crate::metrics::GatewayMetrics;
use crate::options::Options;
use crate::queue::{JobResult, Queue, Refusal};

/// Weight of the newest batch in the mean time of a row.
const WEIGHT: f64 = 0.2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Health {
    Loading,
    Ready,
    Unavailable,
    Stopping,
}

/// Public documents of a classifier that has answered once.
#[derive(Debug)]
pub(crate) struct Documents {
    pub(crate) info: ClassifierInfo,
    pub(crate) openapi: String,
    pub(crate) page: String,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) metrics: GatewayMetrics,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) queue: Queue,
    health: Health,
    since: Instant,
    documents: Option<Arc<Documents>>,
    pub(crate) is_stopping: bool,
    /// True once the HTTP thread has ended.
    pub(crate) is_closed: bool,
    /// Mean seconds of a row; 0 before the first.
    row_seconds: f64,
}

impl Shared {
    pub(crate) fn new(options: Options) -> Self {
        let state = State {
            queue: Queue::default(),
            health: Health::Loading,
            since: Instant::now(),
            documents: None,
            is_stopping: false,
            is_closed: false,
            row_seconds: 0.0,
        };
        Self { options, metrics: GatewayMetrics::default(), state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is atomic, so a panic elsewhere leaves the state usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wait<'a>(&self, state: MutexGuard<'a, State>, timeout: Option<Duration>) -> MutexGuard<'a, State> {
        match timeout {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => self.changed.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0,
        }
    }

    pub(crate) fn health(&self) -> (Health, Duration) {
        let state = self.lock();
        (if state.is_stopping { Health::Stopping } else { state.health }, state.since.elapsed())
    }

    pub(crate) fn documents(&self) -> Option<Arc<Documents>> {
        self.lock().documents.clone()
    }

    pub(crate) fn publish(&self, documents: Documents) {
        self.lock().documents = Some(Arc::new(documents));
        self.set_health(Health::Ready);
    }

    /// Sets the availability. Unavailability refuses all waiting requests.
    pub(crate) fn set_health(&self, health: Health) {
        let mut state = self.lock();
        if state.health != health {
            (state.health, state.since) = (health, Instant::now());
        }
        if health != Health::Ready {
            state.queue.refuse_all(Refusal::Unavailable);
        }
        self.metrics.set_ready(health == Health::Ready);
    }

    /// Adds a request, unless predictions are unavailable. Requests are accepted until the HTTP thread ends.
    pub(crate) fn push(&self, rows: Vec<Row>) -> Result<oneshot::Receiver<JobResult>, Refusal> {
        let mut state = self.lock();
        if state.health != Health::Ready || state.is_closed {
            return Err(Refusal::Unavailable);
        }
        let receiver = state.queue.push(rows);
        self.changed.notify_all();
        Ok(receiver)
    }

    pub(crate) fn backlog(&self) -> Duration {
        let state = self.lock();
        let seconds = state.row_seconds * state.queue.waiting_rows() as f64;
        Duration::from_secs_f64(seconds.clamp(1.0, 60.0))
    }

    pub(crate) fn record_batch(&self, rows: usize, duration: Duration) {
        self.metrics.record_batch(rows, duration);
        let mut state = self.lock();
        let current = duration.as_secs_f64() / rows.max(1) as f64;
        state.row_seconds =
            if state.row_seconds == 0.0 { current } else { state.row_seconds + WEIGHT * (current - state.row_seconds) };
    }

    pub(crate) fn stop(&self) {
        self.lock().is_stopping = true;
        self.changed.notify_all();
    }

    /// Ends the queue after the HTTP thread has ended.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        (state.is_stopping, state.is_closed) = (true, true);
        state.queue.refuse_all(Refusal::Unavailable);
        self.changed.notify_all();
    }

    /// Refuses all requests after the worker has ended.
    pub(crate) fn end_worker(&self) {
        let mut state = self.lock();
        state.health = Health::Stopping;
        state.queue.refuse_all(Refusal::Unavailable);
        self.metrics.set_ready(false);
    }
}

impl State {
    pub(crate) fn is_ready(&self) -> bool {
        self.health == Health::Ready
    }
}
