//! Counts of connections, and log lines at a bounded rate.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::register::Refusal;

/// Minimum interval between two log lines.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Reason for which this side ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum End {
    /// A new connection took its place.
    Replaced,
    /// No complete message arrived in time.
    Silent,
    /// A message arrived too slowly.
    Slow,
    /// The peer did not read its answers.
    Unread,
    /// It held nothing and was not used for a long time.
    Idle,
    /// Its messages exceeded its memory, or it had too many calls.
    Overload,
    /// The peer did not prove that it may connect.
    NotAdmitted,
    /// The secret with which the peer connected was revoked.
    Revoked,
}

impl End {
    /// Name of the reason as a label of a metric.
    pub fn name(self) -> &'static str {
        match self {
            End::Replaced => "replaced",
            End::Silent => "silent",
            End::Slow => "slow",
            End::Unread => "unread",
            End::Idle => "idle",
            End::Overload => "overload",
            End::NotAdmitted => "not_admitted",
            End::Revoked => "revoked",
        }
    }

    /// Reason in words, for the log and for the peer.
    pub fn detail(self) -> &'static str {
        match self {
            End::Replaced => "another connection took its place, as all were open and this one was not in use",
            End::Silent => "no complete message arrived in time",
            End::Slow => "a message arrived too slowly",
            End::Unread => "answers were not read in time",
            End::Idle => "it was not used for a long time",
            End::Overload => "its messages or calls exceeded their limit",
            End::NotAdmitted => "the peer did not prove that it may connect",
            End::Revoked => "the secret with which the peer connected was revoked",
        }
    }
}

/// Counts of the connections of a port. Clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct ConnectionMetrics {
    open: Gauge,
    refused: Family<ReasonLabel, Counter>,
    ended: Family<ReasonLabel, Counter>,
    log: Arc<Mutex<LogState>>,
}

#[derive(Debug, Default)]
struct LogState {
    last: Option<Instant>,
    /// Events since the last line.
    n_silent: u64,
}

impl ConnectionMetrics {
    /// Creates counts on the page of `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("connections", "Open connections", metrics.open.clone());
        let help = "Connections that were refused, as all were in use";
        registry.register("connections_refused", help, metrics.refused.clone());
        let help = "Connections that this side ended";
        registry.register("connections_ended", help, metrics.ended.clone());
        metrics
    }

    /// Sets the number of open connections.
    pub fn set_open(&self, n: usize) {
        self.open.set(i64::try_from(n).unwrap_or(i64::MAX));
    }

    /// Counts and logs a refused connection.
    pub fn record_refusal(&self, refusal: Refusal, peer: Option<IpAddr>) {
        self.refused.get_or_create(&ReasonLabel { reason: refusal.name() }).inc();
        self.log(peer, |peer, more| match refusal {
            Refusal::Total => tracing::warn!("refused a connection{peer}: all connections are in use{more}"),
            Refusal::Address => {
                tracing::warn!("refused a connection{peer}: all connections of this address are in use{more}");
            }
        });
    }

    /// Counts and logs a connection that this side ended.
    pub fn record_end(&self, end: End, peer: Option<IpAddr>) {
        self.ended.get_or_create(&ReasonLabel { reason: end.name() }).inc();
        if end != End::Idle {
            self.log(peer, |peer, more| tracing::warn!("closed a connection{peer}: {}{more}", end.detail()));
        }
    }

    /// Calls `line` with texts about the peer and the events without a line; not more often than the interval.
    fn log(&self, peer: Option<IpAddr>, line: impl FnOnce(String, String)) {
        let mut state = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| last.elapsed() < LOG_INTERVAL) {
            state.n_silent += 1;
            return;
        }
        let n_silent = std::mem::take(&mut state.n_silent);
        state.last = Some(Instant::now());
        drop(state);
        let peer = peer.map(|peer| format!(" of {peer}")).unwrap_or_default();
        let more =
            if n_silent > 0 { format!(" ({n_silent} more connections since the last line)") } else { String::new() };
        line(peer, more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_of_many_refusals_are_bounded_and_all_are_counted() {
        let metrics = ConnectionMetrics::register(&mut Registry::default());
        let mut n_lines = 0;
        for _ in 0..100 {
            metrics.record_refusal(Refusal::Total, None);
            metrics.log(None, |_, _| n_lines += 1);
        }
        assert_eq!(n_lines, 0, "the first refusal has a line");
        assert_eq!(metrics.refused.get_or_create(&ReasonLabel { reason: "total" }).get(), 100);
    }
}
