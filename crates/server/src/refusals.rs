//! Refusals of calls and tensors: counted by reason, and logged at a bounded rate.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use sepal_wire::Failure;

use crate::lock::lock;

/// Time after a log line in which refusals for the same reason are only counted.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Limit that a call or a tensor exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    /// Rows of a batch.
    Rows,
    /// Positions of a batch.
    Tokens,
    /// Positions of a row.
    RowTokens,
    /// Estimated memory of a computation.
    CallBytes,
    /// Calls of all connections.
    Calls,
    /// Calls of one connection.
    ConnectionCalls,
    /// Memory of all connections.
    ServerBytes,
    /// Memory of one connection that exists between its calls.
    ConnectionBytes,
    /// Memory of the connections of one network.
    NetworkBytes,
    /// Inputs, results and messages of all connections.
    TransientBytes,
    /// Inputs, results and messages of one connection.
    ConnectionTransientBytes,
    /// Tunables and cached prefixes.
    TunableBytes,
    /// Tensors of other servers that wait for their calls.
    Mailbox,
    /// Time for which a call waits for a tensor of another server.
    Wait,
    /// Tensors that are malformed or have too many dimensions.
    Malformed,
    /// Rights of the client.
    Rights,
}

impl Reason {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Reason::Rows => "rows",
            Reason::Tokens => "tokens",
            Reason::RowTokens => "row_tokens",
            Reason::CallBytes => "call_bytes",
            Reason::Calls => "calls",
            Reason::ConnectionCalls => "connection_calls",
            Reason::ServerBytes => "server_bytes",
            Reason::ConnectionBytes => "connection_bytes",
            Reason::NetworkBytes => "network_bytes",
            Reason::TransientBytes => "transient_bytes",
            Reason::ConnectionTransientBytes => "connection_transient_bytes",
            Reason::TunableBytes => "tunable_bytes",
            Reason::Mailbox => "mailbox",
            Reason::Wait => "wait",
            Reason::Malformed => "malformed",
            Reason::Rights => "rights",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabel {
    reason: &'static str,
}

/// Counters and log of refusals.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    counters: Family<ReasonLabel, Counter>,
    logs: Mutex<HashMap<Reason, LogLimiter>>,
}

impl Refusals {
    /// Counts a refusal, and logs it unless one with the same reason was logged recently. Returns its failure.
    pub(crate) fn refuse(&self, reason: Reason, failure: Failure) -> Failure {
        self.counters.get_or_create(&ReasonLabel { reason: reason.name() }).inc();
        let line = lock(&self.logs).entry(reason).or_default().record(Instant::now());
        if let Some(suppressed) = line {
            tracing::warn!(reason = reason.name(), suppressed, "refused: {failure}");
        }
        failure
    }

    /// Counters by reason, for a registry of metrics.
    pub(crate) fn counters(&self) -> Family<ReasonLabel, Counter> {
        self.counters.clone()
    }

    #[cfg(test)]
    pub(crate) fn count(&self, reason: Reason) -> u64 {
        self.counters.get_or_create(&ReasonLabel { reason: reason.name() }).get()
    }
}

/// Limit on the rate of log lines of one kind.
#[derive(Debug, Default)]
struct LogLimiter {
    last: Option<Instant>,
    suppressed: u64,
}

impl LogLimiter {
    /// Returns the number of events since the last line if this one is logged.
    fn record(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.duration_since(last) < LOG_INTERVAL) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use sepal_wire::FailureCode;

    use super::*;

    #[test]
    fn log_lines_of_one_kind_are_limited_and_count_the_others() {
        let (mut limiter, start) = (LogLimiter::default(), Instant::now());
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(limiter.record(start), Some(0));
        assert_eq!((limiter.record(after(1)), limiter.record(after(9))), (None, None));
        assert_eq!((limiter.record(after(10)), limiter.record(after(11))), (Some(2), None));
    }

    #[test]
    fn refusals_are_counted_by_reason() {
        let refusals = Refusals::default();
        for _ in 0..3 {
            let failure = refusals.refuse(Reason::Calls, Failure::new(FailureCode::Overloaded, "full"));
            assert_eq!((failure.code, failure.message.as_str()), (FailureCode::Overloaded, "full"));
        }
        assert_eq!((refusals.count(Reason::Calls), refusals.count(Reason::Rows)), (3, 0));
    }
}
