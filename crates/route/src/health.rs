use std::time::Duration;

/// First ban of a server. It doubles with each failure in a row.
pub const FIRST_BAN: Duration = Duration::from_millis(250);
/// Longest ban of a server.
pub const LONGEST_BAN: Duration = Duration::from_secs(60);

/// Availability of a server, from the results of the calls to it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Health {
    failures: u32,
    /// Time of the next probe; `None` while the server is available.
    probe_at: Option<Duration>,
}

impl Health {
    pub(crate) fn is_available(self) -> bool {
        self.probe_at.is_none()
    }

    pub(crate) fn probe_at(self) -> Option<Duration> {
        self.probe_at
    }

    /// Forgets the failures after a successful call. A banned server stays banned, because the call may be its last.
    pub(crate) fn mark_succeeded(&mut self) {
        if self.is_available() {
            self.failures = 0;
        }
    }

    /// Ends the ban. The failures count until a call succeeds.
    pub(crate) fn mark_returned(&mut self) {
        self.probe_at = None;
    }

    /// Bans the server. Failures of calls that were in flight together count once.
    pub(crate) fn mark_failed(&mut self, now: Duration) {
        if self.probe_at.is_some_and(|probe_at| now < probe_at) {
            return;
        }
        let ban = FIRST_BAN.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(LONGEST_BAN);
        self.probe_at = Some(now + ban);
        self.failures += 1;
    }
}
