//! Search for connections without progress.
//!
//! A waiting client sends nothing for hours, so silence alone ends no connection that holds state of a client. Keepalive of the
//! transport ends it if the client is gone.

use std::time::Duration;

use sepal_connections::End;

/// Interval of the checks of a connection.
pub(super) const TICK: Duration = Duration::from_secs(5);
/// Checks until the first complete message, 10 s.
const FIRST_MESSAGE_TICKS: u32 = 2;
/// Checks in which a message must arrive by at least `MIN_BYTES`, 30 s.
const RECEIVE_TICKS: u32 = 6;
/// Checks in which answers must be read by at least `MIN_BYTES`, 2 min: a client may be suspended for a while.
const SEND_TICKS: u32 = 24;
const MIN_BYTES: u64 = 16 << 10;
/// Checks after which a connection that holds nothing is ended, 10 min.
const IDLE_TICKS: u32 = 120;

/// Counters of a connection at one check.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Observed {
    pub(super) n_messages: u64,
    /// True while a message has arrived in part.
    pub(super) is_receiving: bool,
    pub(super) received_bytes: u64,
    /// True while answers wait to be written.
    pub(super) is_sending: bool,
    pub(super) sent_bytes: u64,
    /// True if the connection holds no state of its client.
    pub(super) is_empty: bool,
}

/// Finds connections without progress, from their counters at regular checks.
#[derive(Debug, Default)]
pub(super) struct Watchdog {
    last: Observed,
    n_checks: u32,
    receiving: Window,
    sending: Window,
    idle_ticks: u32,
}

/// Checks since a transfer began or last had enough progress.
#[derive(Debug, Default)]
struct Window {
    n_ticks: u32,
    bytes: u64,
}

impl Window {
    fn restart(&mut self, bytes: u64) {
        *self = Self { n_ticks: 0, bytes };
    }

    /// True if fewer than the minimum of bytes were transferred in `limit` checks.
    fn is_slow(&mut self, bytes: u64, limit: u32) -> bool {
        self.n_ticks += 1;
        if self.n_ticks < limit {
            return false;
        }
        let is_slow = bytes.saturating_sub(self.bytes) < MIN_BYTES;
        self.restart(bytes);
        is_slow
    }
}

impl Watchdog {
    pub(super) fn has_new_messages(&self, now: &Observed) -> bool {
        now.n_messages != self.last.n_messages
    }

    pub(super) fn check(&mut self, now: Observed) -> Option<End> {
        let is_same_message = !self.has_new_messages(&now);
        let last = std::mem::replace(&mut self.last, now);
        self.n_checks = self.n_checks.saturating_add(1);
        if now.n_messages == 0 && self.n_checks >= FIRST_MESSAGE_TICKS {
            return Some(End::Silent);
        }
        if !(now.is_receiving && last.is_receiving && is_same_message) {
            self.receiving.restart(now.received_bytes);
        } else if self.receiving.is_slow(now.received_bytes, RECEIVE_TICKS) {
            return Some(End::Slow);
        }
        if !(now.is_sending && last.is_sending) {
            self.sending.restart(now.sent_bytes);
        } else if self.sending.is_slow(now.sent_bytes, SEND_TICKS) {
            return Some(End::Unread);
        }
        self.idle_ticks = if now.is_empty && is_same_message { self.idle_ticks + 1 } else { 0 };
        (self.idle_ticks >= IDLE_TICKS).then_some(End::Idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: u32 = 10_000;

    /// Returns the number of the check that ends a connection, and the reason.
    fn check(observed: impl Fn(u64) -> Observed) -> Option<(u32, End)> {
        let mut watchdog = Watchdog::default();
        (1..=MANY).find_map(|tick| watchdog.check(observed(u64::from(tick))).map(|end| (tick, end)))
    }

    #[test]
    fn silent_connection_is_ended_after_ten_seconds() {
        assert_eq!(check(|_| Observed { is_empty: true, ..Observed::default() }), Some((2, End::Silent)));
        let dripping =
            |tick: u64| Observed { is_receiving: true, received_bytes: 100_000 * tick, ..Observed::default() };
        assert_eq!(check(dripping), Some((2, End::Silent)), "no complete message");
    }

    #[test]
    fn waiting_client_with_state_is_never_ended() {
        assert_eq!(check(|_| Observed { n_messages: 3, ..Observed::default() }), None);
    }

    #[test]
    fn unused_connection_without_state_is_ended_after_ten_minutes() {
        let unused = |_: u64| Observed { n_messages: 3, is_empty: true, ..Observed::default() };
        assert_eq!(check(unused), Some((121, End::Idle)));
        let used = |tick: u64| Observed { n_messages: 1 + tick / 100, is_empty: true, ..Observed::default() };
        assert_eq!(check(used), None);
    }

    #[test]
    fn dripping_message_is_ended_and_a_slow_one_is_not() {
        let message = |rate: u64| {
            move |tick: u64| Observed {
                n_messages: 1,
                is_receiving: true,
                received_bytes: rate * tick,
                ..Observed::default()
            }
        };
        assert_eq!(check(message(1000)), Some((7, End::Slow)));
        assert_eq!(check(message(MIN_BYTES.div_ceil(u64::from(RECEIVE_TICKS - 1)))), None);
    }

    #[test]
    fn small_messages_in_parts_are_not_dripping() {
        let small =
            |tick: u64| Observed { n_messages: tick, is_receiving: true, received_bytes: tick, ..Observed::default() };
        assert_eq!(check(small), None);
    }

    #[test]
    fn unread_answers_end_the_connection_and_slowly_read_ones_do_not() {
        let answer = |rate: u64| {
            move |tick: u64| Observed {
                n_messages: 1,
                is_sending: true,
                sent_bytes: rate * tick,
                ..Observed::default()
            }
        };
        assert_eq!(check(answer(100)), Some((25, End::Unread)));
        assert_eq!(check(answer(MIN_BYTES.div_ceil(u64::from(SEND_TICKS - 1)))), None);
    }
}
