//! How long a call is waited for: as long as its server is there and works on it.

use std::future::Future;
use std::time::Duration;

use sepal_wire::ServerInfo;
use tokio::time::Instant;

use crate::error::CallError;

/// When a server is first asked whether it is there, if such a call was never measured.
const UNMEASURED: Duration = Duration::from_secs(1);
/// How often it is asked after that.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a connection to an idle server may be silent before the call counts as lost. The system may hold a few
/// megabytes that it has yet to send.
const SILENCE: Duration = Duration::from_secs(4);
/// How long a server that answers may go without finishing any computation before it counts as hung. Another client's
/// call may be much longer than ours.
const STALLED: Duration = Duration::from_secs(60);

/// What may be known of a server beside the call that is waited for.
pub(crate) trait Pulse {
    /// What the server says of itself now, on a connection of its own.
    fn ask(&self) -> impl Future<Output = Result<ServerInfo, CallError>>;

    /// Bytes that the connection of the call has moved so far.
    fn moved(&self) -> u64;
}

/// A count, and since when it has not changed while it was looked at.
#[derive(Debug, Default)]
struct Unchanged(Option<(u64, Instant)>);

impl Unchanged {
    /// Takes in what the count is now; says for how long it has been that.
    fn look(&mut self, count: u64) -> Duration {
        match self.0 {
            Some((before, since)) if before == count => since.elapsed(),
            _ => {
                self.0 = Some((count, Instant::now()));
                Duration::ZERO
            }
        }
    }
}

/// Ends when a call that has begun now is to be given up, and says why.
///
/// The server is asked when the call is late by its measured speed, and from then on every second. One that does not
/// answer has hung, if nothing moves on the call's connection either (else the link is full of our own). One that does
/// answer is waited for, but for three cases: it has nothing in its queue and nothing moves on the call's connection (so
/// that the call or its answer was lost), it has finished no computation for a while (unless such a call was never
/// measured there: it may take its time), or `limit` is over.
pub(crate) async fn give_up(pulse: &impl Pulse, late_after: Option<Duration>, limit: Duration) -> CallError {
    let begun = Instant::now();
    let mut pause = late_after.unwrap_or(UNMEASURED);
    let (mut completed, mut moved) = (Unchanged::default(), Unchanged::default());
    loop {
        tokio::time::sleep(pause.min(limit.saturating_sub(begun.elapsed()))).await;
        pause = AGAIN;
        let after = begun.elapsed();
        if after >= limit {
            return CallError::Timeout(limit);
        }
        let before = pulse.moved();
        let load = match pulse.ask().await {
            Ok(info) => info.load,
            Err(error) if pulse.moved() == before => return CallError::Hung { after, error: Box::new(error) },
            Err(_) => continue,
        };
        if load.queue > 0 {
            moved = Unchanged::default();
            if completed.look(load.completed) >= STALLED && late_after.is_some() {
                return CallError::Stalled { after };
            }
        } else if moved.look(pulse.moved()) >= SILENCE {
            return CallError::Lost { after };
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use sepal_core::{DType, Span};
    use sepal_wire::{Limits, Load};

    use super::*;

    /// What a server of one block says of itself.
    pub(crate) fn info(load: Load) -> ServerInfo {
        ServerInfo {
            protocol: sepal_wire::PROTOCOL,
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
        }
    }

    /// A server that says this of its load, or nothing, each time it is asked; and whether bytes still move.
    struct Fake(Option<fn(u64) -> Load>, Cell<u64>, bool);

    /// Answers so many times and then no more.
    struct Dying {
        fake: Fake,
        answers: u64,
    }

    impl Pulse for Dying {
        fn moved(&self) -> u64 {
            self.fake.moved()
        }

        async fn ask(&self) -> Result<ServerInfo, CallError> {
            let info = self.fake.ask().await?;
            if self.fake.1.get() > self.answers {
                Err(CallError::Timeout(Duration::from_millis(500)))
            } else {
                Ok(info)
            }
        }
    }

    impl Pulse for Fake {
        fn moved(&self) -> u64 {
            if self.2 { self.1.get() } else { 0 }
        }

        async fn ask(&self) -> Result<ServerInfo, CallError> {
            self.1.set(self.1.get() + 1);
            let load = self.0.ok_or(CallError::Timeout(Duration::from_millis(500)))?;
            Ok(info(load(self.1.get())))
        }
    }

    /// Why and when a call to such a server is given up, in virtual time.
    fn check(fake: Fake, late_ms: Option<u64>, expected: &str, after_ms: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let (error, took) = runtime.expect("a runtime").block_on(async {
            let begun = Instant::now();
            let late_after = late_ms.map(Duration::from_millis);
            (give_up(&fake, late_after, Duration::from_secs(100)).await, begun.elapsed())
        });
        assert!(error.to_string().starts_with(expected), "{error}");
        assert!(took.abs_diff(Duration::from_millis(after_ms)) < Duration::from_millis(10), "{took:?}");
    }

    fn fake(load: Option<fn(u64) -> Load>, moves: bool) -> Fake {
        Fake(load, Cell::new(0), moves)
    }

    #[test]
    fn a_server_that_is_silent_has_hung() {
        check(fake(None, false), Some(700), "it does not answer", 700);
        check(fake(None, false), None, "it does not answer", 1_000);
        check(fake(None, true), Some(700), "no answer within 100 s", 100_000);
    }

    #[test]
    fn a_server_that_was_busy_and_then_hangs_is_noticed_soon() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            for late_after in [None, Some(Duration::from_millis(700))] {
                let begun = Instant::now();
                let fake =
                    Fake(Some(|asked| Load { queue: 1, completed: asked, ..Load::default() }), Cell::new(0), false);
                let dying = Dying { fake, answers: 5 };
                let error = give_up(&dying, late_after, Duration::from_secs(100)).await;
                assert!(matches!(error, CallError::Hung { .. }), "{error}");
                assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
            }
        });
    }

    #[test]
    fn a_call_that_an_idle_server_does_not_have_is_lost_unless_it_is_still_on_its_way() {
        check(fake(Some(|_| Load::default()), false), Some(700), "it is idle", 4_700);
        check(fake(Some(|_| Load::default()), false), None, "it is idle", 5_000);
        check(fake(Some(|_| Load::default()), true), Some(700), "no answer within 100 s", 100_000);
    }

    #[test]
    fn a_busy_server_is_waited_for_as_long_as_it_gets_things_done() {
        let stuck = |_| Load { queue: 1, completed: 9, ..Load::default() };
        check(fake(Some(stuck), false), Some(700), "it has finished nothing", 60_700);
        check(fake(Some(stuck), false), None, "no answer within 100 s", 100_000);
        let busy = |asked| Load { queue: 2, completed: asked, ..Load::default() };
        check(fake(Some(busy), false), Some(700), "no answer within 100 s", 100_000);
    }
}
