use std::time::Duration;

use crate::speed::Pass;

/// First ban of a server. It doubles with each failure in a row.
pub const FIRST_BAN: Duration = Duration::from_millis(250);
/// Longest ban of a server that did not time out.
pub const LONGEST_BAN: Duration = Duration::from_secs(60);
/// Least ratio of the ban after a timeout to the time that was lost by it.
const TIMEOUT_FACTOR: u32 = 10;

/// Availability of a server, from the results of the calls to it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Health {
    failures: u32,
    /// True if one of the failures is that of a backward pass. Forward passes then prove nothing.
    has_failed_backward: bool,
    /// Time of the next probe; `None` while the server is available.
    probe_at: Option<Duration>,
    is_quarantined: bool,
}

impl Health {
    pub(crate) fn is_available(self) -> bool {
        self.probe_at.is_none() && !self.is_quarantined
    }

    pub(crate) fn is_quarantined(self) -> bool {
        self.is_quarantined
    }

    /// Bans the server for good.
    pub(crate) fn quarantine(&mut self) {
        self.is_quarantined = true;
        self.probe_at = None;
    }

    pub(crate) fn probe_at(self) -> Option<Duration> {
        self.probe_at
    }

    pub(crate) fn failures(self) -> u32 {
        self.failures
    }

    /// Forgets the failures after a successful call of the kind that failed. A banned server stays banned, because the call
    /// may be its last.
    pub(crate) fn mark_succeeded(&mut self, pass: Pass) {
        if self.is_available() && !(self.has_failed_backward && pass == Pass::Forward) {
            *self = Self::default();
        }
    }

    /// Lets the failures count until a call of this kind succeeds.
    pub(crate) fn expect_success(&mut self, pass: Pass) {
        self.has_failed_backward |= pass != Pass::Forward;
    }

    /// Ends the ban. The failures count until a call succeeds.
    pub(crate) fn mark_returned(&mut self) {
        self.probe_at = None;
    }

    /// Bans the server. Failures of calls that were in flight together count once.
    pub(crate) fn mark_failed(&mut self, now: Duration) {
        self.ban(now, Duration::ZERO);
    }

    /// Bans the server for long, because a call took all of its time, `waited`.
    pub(crate) fn mark_timed_out(&mut self, now: Duration, waited: Duration) {
        self.ban(now, LONGEST_BAN.max(waited.saturating_mul(TIMEOUT_FACTOR)));
    }

    fn ban(&mut self, now: Duration, shortest: Duration) {
        if self.is_quarantined || self.probe_at.is_some_and(|probe_at| now < probe_at) {
            return;
        }
        let ban = FIRST_BAN.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(LONGEST_BAN);
        self.probe_at = Some(now + ban.max(shortest));
        self.failures = self.failures.saturating_add(1);
    }
}
