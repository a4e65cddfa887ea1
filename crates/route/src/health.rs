use std::time::Duration;

/// The first ban; it doubles with each failure in a row.
pub const FIRST_BAN: Duration = Duration::from_millis(250);
/// The longest ban.
pub const LONGEST_BAN: Duration = Duration::from_secs(60);

/// Whether a server may be used, from what became of the calls to it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Health {
    failures: u32,
    /// When to ask it again; `None` while it is well.
    probe_at: Option<Duration>,
}

impl Health {
    pub(crate) fn is_available(self) -> bool {
        self.probe_at.is_none()
    }

    pub(crate) fn probe_at(self) -> Option<Duration> {
        self.probe_at
    }

    /// The server has done what it was asked: its failures are forgotten. One that was left stays so: what it finishes
    /// may be the last.
    pub(crate) fn mark_succeeded(&mut self) {
        if self.is_available() {
            self.failures = 0;
        }
    }

    /// The server says that it is there. Its failures count until it has done something well.
    pub(crate) fn mark_returned(&mut self) {
        self.probe_at = None;
    }

    /// The server failed. Failures of calls that were under way together count once.
    pub(crate) fn mark_failed(&mut self, now: Duration) {
        if self.probe_at.is_some_and(|probe_at| now < probe_at) {
            return;
        }
        let ban = FIRST_BAN.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(LONGEST_BAN);
        self.probe_at = Some(now + ban);
        self.failures += 1;
    }
}
