//! Retry budgets of micro-batches and backoff of relays.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use sepal_core::Span;
use sepal_route::{Hop, ServerId};
use sepal_wire::Retry;
use tokio::time::Instant;

use crate::error::RemoteError;

/// Delay before the first retry on the same server. It doubles.
const FIRST_DELAY: Duration = Duration::from_millis(20);
/// Maximum number of retries on the same server.
const MAX_RETRIES: u32 = 6;
/// First backoff of a relay between two servers. It doubles.
const FIRST_RELAY_BACKOFF: Duration = Duration::from_secs(1);
/// Longest backoff of a relay.
const MAX_RELAY_BACKOFF: Duration = Duration::from_mins(1);

/// Time and retries that consecutive failures of one micro-batch have used.
#[derive(Debug, Default)]
pub(crate) struct RetryBudget {
    since: Option<Instant>,
    retries: u32,
    last_failure: Option<String>,
}

impl RetryBudget {
    /// Restores the budget after a successful call.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn record(&mut self, failure: String) {
        self.since.get_or_insert_with(Instant::now);
        self.last_failure = Some(failure);
    }

    /// Returns the part of `wait` that is left. The time starts with the first failure or call of this.
    pub(crate) fn remaining(&mut self, wait: Duration) -> Duration {
        wait.saturating_sub(self.since.get_or_insert_with(Instant::now).elapsed())
    }

    /// Returns the delay before a retry on the same server; `None` if another server is needed.
    pub(crate) fn next_delay(&mut self, retry: Retry) -> Option<Duration> {
        if retry == Retry::Here && self.retries < MAX_RETRIES {
            self.retries += 1;
            return Some(FIRST_DELAY * 2_u32.pow(self.retries - 1));
        }
        self.retries = 0;
        None
    }

    /// Error if the failures have lasted for `wait`.
    pub(crate) fn check(&mut self, wait: Duration, span: Span) -> Result<(), RemoteError> {
        let waited = self.since.map_or(Duration::ZERO, |since| since.elapsed());
        if waited < wait {
            return Ok(());
        }
        let last = self.last_failure.take().unwrap_or_else(|| "failed for another micro-batch".into());
        Err(RemoteError::NoServer { span, waited, last })
    }
}

/// Backoff of relays, by sender and receiver.
#[derive(Debug, Default)]
pub(crate) struct RelayBackoff(RefCell<HashMap<(ServerId, ServerId), Backoff>>);

#[derive(Debug, Clone, Copy)]
struct Backoff {
    until: Instant,
    next: Duration,
}

impl RelayBackoff {
    /// True if a pair of neighbours of the route failed recently.
    pub(crate) fn is_active(&self, route: &[Hop]) -> bool {
        let now = Instant::now();
        pairs(route).any(|pair| self.0.borrow().get(&pair).is_some_and(|backoff| now < backoff.until))
    }

    pub(crate) fn record_failure(&self, route: &[Hop]) {
        let now = Instant::now();
        for pair in pairs(route) {
            let mut backoffs = self.0.borrow_mut();
            let backoff = backoffs.entry(pair).or_insert(Backoff { until: now, next: FIRST_RELAY_BACKOFF });
            // Micro-batches that fail together count once.
            if backoff.until <= now {
                *backoff = Backoff { until: now + backoff.next, next: (2 * backoff.next).min(MAX_RELAY_BACKOFF) };
            }
        }
    }

    pub(crate) fn record_success(&self, route: &[Hop]) {
        pairs(route).for_each(|pair| {
            self.0.borrow_mut().remove(&pair);
        });
    }
}

fn pairs(route: &[Hop]) -> impl Iterator<Item = (ServerId, ServerId)> {
    route.windows(2).map(|pair| (pair[0].server, pair[1].server))
}
