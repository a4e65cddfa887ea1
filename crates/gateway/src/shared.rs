//! What the thread that computes and the one that speaks with clients both see.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::about::{About, Row};
use crate::counts::Counts;
use crate::options::Options;
use crate::queue::{Outcome, Queue, Refusal};

/// Weight of the newest batch in the mean time of a row.
const WEIGHT: f64 = 0.2;

/// Whether predictions can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// Not yet.
    Loading,
    Ready,
    /// Not at the moment; it is tried again.
    Unavailable,
    /// Not any more.
    Stopping,
}

/// What is shown of a classifier that has answered once.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) about: About,
    pub(crate) openapi: String,
    pub(crate) page: String,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) counts: Counts,
    state: Mutex<State>,
    /// Told when there is something to do for the thread that computes.
    changed: Condvar,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) queue: Queue,
    health: Health,
    since: Instant,
    shown: Option<Arc<Shown>>,
    stopping: bool,
    /// Clients are not spoken with any more.
    pub(crate) closed: bool,
    /// Mean seconds of a row; 0 before the first.
    row_seconds: f64,
}

impl Shared {
    pub(crate) fn new(options: Options) -> Self {
        let state = State {
            queue: Queue::default(),
            health: Health::Loading,
            since: Instant::now(),
            shown: None,
            stopping: false,
            closed: false,
            row_seconds: 0.0,
        };
        Self { options, counts: Counts::default(), state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is whole, so that it stays usable after a panic elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something has changed, or for so long.
    pub(crate) fn wait<'a>(&self, state: MutexGuard<'a, State>, most: Option<Duration>) -> MutexGuard<'a, State> {
        match most {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(most) => self.changed.wait_timeout(state, most).unwrap_or_else(PoisonError::into_inner).0,
        }
    }

    /// Whether predictions can be had, and since when that is so.
    pub(crate) fn health(&self) -> (Health, Duration) {
        let state = self.lock();
        (if state.stopping { Health::Stopping } else { state.health }, state.since.elapsed())
    }

    /// What is known once the classifier has answered.
    pub(crate) fn shown(&self) -> Option<Arc<Shown>> {
        self.lock().shown.clone()
    }

    pub(crate) fn show(&self, shown: Shown) {
        self.lock().shown = Some(Arc::new(shown));
        self.set(Health::Ready);
    }

    /// From now on that is so. Whoever waits for what cannot be had is told.
    pub(crate) fn set(&self, health: Health) {
        let mut state = self.lock();
        if state.health != health {
            (state.health, state.since) = (health, Instant::now());
        }
        if health != Health::Ready {
            state.queue.refuse_all(Refusal::Unavailable);
        }
        self.counts.ready(health == Health::Ready);
    }

    /// Takes in a request, unless it cannot be answered. One that came before the stop is finished.
    pub(crate) fn push(&self, rows: Vec<Row>) -> Result<oneshot::Receiver<Outcome>, Refusal> {
        let mut state = self.lock();
        if state.health != Health::Ready || state.closed {
            return Err(Refusal::Unavailable);
        }
        let outcome = state.queue.push(rows);
        self.changed.notify_all();
        Ok(outcome)
    }

    /// How soon those that wait now will be done.
    pub(crate) fn backlog(&self) -> Duration {
        let state = self.lock();
        let seconds = state.row_seconds * state.queue.waiting_rows() as f64;
        Duration::from_secs_f64(seconds.clamp(1.0, 60.0))
    }

    pub(crate) fn computed(&self, rows: usize, took: Duration) {
        self.counts.computed(rows, took);
        let mut state = self.lock();
        let now = took.as_secs_f64() / rows.max(1) as f64;
        state.row_seconds =
            if state.row_seconds == 0.0 { now } else { state.row_seconds + WEIGHT * (now - state.row_seconds) };
    }

    /// No new connections from now on.
    pub(crate) fn stop(&self) {
        self.lock().stopping = true;
        self.changed.notify_all();
    }

    /// Nobody asks any more.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        (state.stopping, state.closed) = (true, true);
        state.queue.refuse_all(Refusal::Unavailable);
        self.changed.notify_all();
    }

    /// Nobody computes any more.
    pub(crate) fn leave(&self) {
        let mut state = self.lock();
        state.health = Health::Stopping;
        state.queue.refuse_all(Refusal::Unavailable);
        self.counts.ready(false);
    }
}

impl State {
    pub(crate) fn is_ready(&self) -> bool {
        self.health == Health::Ready
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping
    }
}
