use std::future::Future;
use std::time::Duration;

use sepal_wire::ServerInfo;
use tokio::time::Instant;

use crate::error::CallError;

/// Delay of the first probe if such a call was never measured.
const UNMEASURED_DELAY: Duration = Duration::from_secs(1);
/// Interval of the probes after the first.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum silence of a connection to an idle server before the call counts as lost. The operating system may hold a few
/// megabytes that it has yet to send.
const MAX_SILENCE: Duration = Duration::from_secs(4);
/// Maximum time without a completed computation before a busy server counts as stalled. Another client's call may take
/// much longer than ours.
const MAX_STALL: Duration = Duration::from_secs(60);

/// Source of information about a server during a call to it.
pub(crate) trait Liveness {
    /// Asks the server for its description, on a connection of its own.
    fn probe(&self) -> impl Future<Output = Result<ServerInfo, CallError>>;

    /// Bytes that the connection of the call has moved so far.
    fn bytes_moved(&self) -> u64;
}

/// Counter with the time since which its value has not changed.
#[derive(Debug, Default)]
struct Unchanged(Option<(u64, Instant)>);

impl Unchanged {
    /// Records the counter's value. Returns the time since which it has not changed.
    fn record(&mut self, count: u64) -> Duration {
        match self.0 {
            Some((previous, since)) if previous == count => since.elapsed(),
            _ => {
                self.0 = Some((count, Instant::now()));
                Duration::ZERO
            }
        }
    }
}

/// Completes once a call that starts now is overdue, with the reason.
///
/// The server is probed when the call is late by its measured speed, and then every second. If it does not answer, it
/// hangs, unless bytes still move on the call's connection (our own traffic then fills the link). If it answers, the
/// call goes on, with three exceptions:
///
/// - The server's queue is empty and no bytes move on the call's connection: the call or its answer was lost.
/// - The server has completed no computation for a while. This does not apply if such a call was never measured there,
///   because it may take long.
/// - `timeout` has passed.
pub(crate) async fn until_overdue(
    liveness: &impl Liveness,
    late_after: Option<Duration>,
    timeout: Duration,
) -> CallError {
    let started = Instant::now();
    let mut delay = late_after.unwrap_or(UNMEASURED_DELAY);
    let (mut completed, mut moved) = (Unchanged::default(), Unchanged::default());
    loop {
        tokio::time::sleep(delay.min(timeout.saturating_sub(started.elapsed()))).await;
        delay = PROBE_INTERVAL;
        let after = started.elapsed();
        if after >= timeout {
            return CallError::Timeout(timeout);
        }
        let moved_before = liveness.bytes_moved();
        let load = match liveness.probe().await {
            Ok(info) => info.load,
            Err(error) if liveness.bytes_moved() == moved_before => {
                return CallError::Hung { after, error: Box::new(error) };
            }
            Err(_) => continue,
        };
        if load.queue > 0 {
            moved = Unchanged::default();
            if completed.record(load.completed) >= MAX_STALL && late_after.is_some() {
                return CallError::Stalled { after };
            }
        } else if moved.record(liveness.bytes_moved()) >= MAX_SILENCE {
            return CallError::Lost { after };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use sepal_core::{DType, Span};
    use sepal_wire::{Limits, Load};

    use super::*;

    fn info(load: Load) -> ServerInfo {
        ServerInfo {
            protocol: sepal_wire::PROTOCOL,
            oldest_protocol: sepal_wire::OLDEST_CLIENT,
            tunables: Vec::new(),
            software: String::new(),
            model_digest: String::new(),
            family: String::new(),
            n_blocks: 1,
            hidden: 1,
            span: Span::new(0, 1).expect("a span"),
            compute_dtype: DType::F32,
            weights: String::new(),
            limits: Limits::default(),
            load,
            tape_token_bytes: 0,
            draining: false,
            name: None,
            key: None,
            receipts: 0,
        }
    }

    /// Simulated server.
    struct FakeServer {
        /// Load by the number of the probe; `None` if the server never answers.
        load: Option<fn(u64) -> Load>,
        /// True if bytes move between probes.
        moves: bool,
        /// Number of probes that are answered before the server hangs.
        answers: u64,
        probes: Cell<u64>,
    }

    impl FakeServer {
        fn new(load: Option<fn(u64) -> Load>, moves: bool) -> Self {
            Self { load, moves, answers: u64::MAX, probes: Cell::new(0) }
        }
    }

    impl Liveness for FakeServer {
        fn bytes_moved(&self) -> u64 {
            if self.moves { self.probes.get() } else { 0 }
        }

        async fn probe(&self) -> Result<ServerInfo, CallError> {
            let probes = self.probes.get() + 1;
            self.probes.set(probes);
            let load = self.load.filter(|_| probes <= self.answers);
            let load = load.ok_or(CallError::Timeout(Duration::from_millis(500)))?;
            Ok(info(load(probes)))
        }
    }

    /// Returns the reason why a call is overdue and its duration, in virtual time.
    fn overdue(server: &FakeServer, late_after: Option<Duration>) -> (CallError, Duration) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let started = Instant::now();
            (until_overdue(server, late_after, Duration::from_secs(100)).await, started.elapsed())
        })
    }

    fn check(server: &FakeServer, late_ms: Option<u64>, expected: &str, after_ms: u64) {
        let (error, elapsed) = overdue(server, late_ms.map(Duration::from_millis));
        assert!(error.to_string().starts_with(expected), "{error}");
        assert!(elapsed.abs_diff(Duration::from_millis(after_ms)) < Duration::from_millis(10), "{elapsed:?}");
    }

    #[test]
    fn silent_server_hangs() {
        check(&FakeServer::new(None, false), Some(700), "the server does not answer", 700);
        check(&FakeServer::new(None, false), None, "the server does not answer", 1_000);
        check(&FakeServer::new(None, true), Some(700), "no answer within 100 s", 100_000);
    }

    #[test]
    fn busy_server_that_stops_answering_is_detected_soon() {
        let load: fn(u64) -> Load = |probes| Load { queue: 1, completed: probes, ..Load::default() };
        for late_after in [None, Some(Duration::from_millis(700))] {
            let server = FakeServer { answers: 5, ..FakeServer::new(Some(load), false) };
            let (error, elapsed) = overdue(&server, late_after);
            assert!(matches!(error, CallError::Hung { .. }), "{error}");
            assert!(elapsed < Duration::from_secs(7), "{elapsed:?}");
        }
    }

    #[test]
    fn idle_server_has_lost_the_call_unless_bytes_move() {
        check(&FakeServer::new(Some(|_| Load::default()), false), Some(700), "the server is idle", 4_700);
        check(&FakeServer::new(Some(|_| Load::default()), false), None, "the server is idle", 5_000);
        check(&FakeServer::new(Some(|_| Load::default()), true), Some(700), "no answer within 100 s", 100_000);
    }

    #[test]
    fn busy_server_is_waited_for_while_it_completes_computations() {
        let stalled: fn(u64) -> Load = |_| Load { queue: 1, completed: 9, ..Load::default() };
        check(&FakeServer::new(Some(stalled), false), Some(700), "the server has completed nothing", 60_700);
        check(&FakeServer::new(Some(stalled), false), None, "no answer within 100 s", 100_000);
        let busy: fn(u64) -> Load = |probes| Load { queue: 2, completed: probes, ..Load::default() };
        check(&FakeServer::new(Some(busy), false), Some(700), "no answer within 100 s", 100_000);
    }
}
