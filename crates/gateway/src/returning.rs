//! Pause before a batch, for the next requests of clients that were just answered.
//!
//! A client that sends one request after another is back within milliseconds. A batch that started at once would be computed
//! with the other half of the clients only, and each client would wait for two batches.

use std::time::{Duration, Instant};

/// Part of the last batch's duration that the next one waits at most, so that a pause in vain costs little.
const BATCH_PART: u32 = 20;
const MAX_PAUSE: Duration = Duration::from_millis(20);

/// Clients that were answered by the last batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReturningClients {
    /// Number of requests, of all so far, with which all of them are back.
    n_requests: u64,
    until: Instant,
}

impl ReturningClients {
    /// Clients of `n_answered` requests, which a batch of this duration has completed when there had been `n_requests`.
    pub(crate) fn new(n_answered: usize, n_requests: u64, batch: Duration, now: Instant) -> Self {
        Self { n_requests: n_requests + n_answered as u64, until: now + (batch / BATCH_PART).min(MAX_PAUSE) }
    }

    /// Longest time for which the next batch waits, when there have been `n_requests`; none if it starts at once.
    pub(crate) fn pause(&self, n_requests: u64, now: Instant) -> Option<Duration> {
        let remaining = self.until.saturating_duration_since(now);
        (n_requests < self.n_requests && !remaining.is_zero()).then_some(remaining)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_waits_until_the_answered_clients_are_back() {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        let returning = ReturningClients::new(3, 10, ms(100), now);
        assert_eq!(returning.pause(10, now), Some(ms(5)));
        assert_eq!(returning.pause(12, now + ms(2)), Some(ms(3)));
        assert_eq!(returning.pause(13, now + ms(2)), None, "all of them are back");
        assert_eq!(returning.pause(12, now + ms(5)), None, "the time is up");
    }

    #[test]
    fn pause_is_short_beside_the_batch() {
        let now = Instant::now();
        let pause = |batch, n_answered| ReturningClients::new(n_answered, 1, batch, now).pause(1, now);
        assert_eq!(pause(Duration::from_secs(9), 1), Some(MAX_PAUSE));
        assert_eq!(pause(Duration::from_micros(200), 1), Some(Duration::from_micros(10)));
        assert_eq!(pause(Duration::from_secs(9), 0), None, "no request was completed");
    }
}
