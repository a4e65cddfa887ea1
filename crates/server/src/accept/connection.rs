//! One connection, as the limits of a server see it.

use std::cell::Cell;

use sepal_connections::{End, Standing, Tracked, check_regularly};
use sepal_wire::Parts;
use tokio::time::Instant;

use super::watchdog::{Observed, TICK, Watchdog};

pub(super) struct Connection {
    parts: Parts,
    /// Number of handles of the parts without those of sessions, tunables, tapes and calls.
    n_own_handles: Cell<usize>,
    end: Cell<Option<End>>,
    accepted_at: Instant,
    /// Time of the last check that found a new message.
    used_at: Cell<Instant>,
}

impl Connection {
    pub(super) fn new(parts: Parts) -> Self {
        let now = Instant::now();
        Self {
            parts,
            n_own_handles: Cell::new(usize::MAX),
            end: Cell::new(None),
            accepted_at: now,
            used_at: Cell::new(now),
        }
    }

    pub(super) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Records that nothing but the bootstrap capability exists yet.
    pub(super) fn begin_calls(&self) {
        self.n_own_handles.set(self.parts.n_handles());
    }

    /// True if the client holds no capability but the first, and no call is in progress.
    fn is_empty(&self) -> bool {
        self.parts.n_handles() <= self.n_own_handles.get()
    }

    /// Ends the connection. Only the first reason counts.
    pub(super) fn end(&self, end: End) {
        if self.end.get().is_none() {
            self.end.set(Some(end));
            let error = if end == End::Revoked { capnp::Error::failed } else { capnp::Error::overloaded };
            self.parts.activity().close(error(end.detail().to_owned()));
        }
    }

    /// Reason for which this side has ended the connection.
    pub(super) fn ended(&self) -> Option<End> {
        let overload = self.parts.activity().is_overloaded().then_some(End::Overload);
        self.end.get().or(overload)
    }

    /// Returns once this side has ended the connection, for lack of progress or for another reason.
    pub(super) async fn watch(&self) {
        let mut watchdog = Watchdog::default();
        let check = || {
            let observed = self.observe();
            if watchdog.has_new_messages(&observed) {
                self.used_at.set(Instant::now());
            }
            watchdog.check(observed)
        };
        tokio::select! {
            end = check_regularly(TICK, check) => self.end(end),
            _ = self.parts.activity().closed() => {}
        }
    }

    fn observe(&self) -> Observed {
        let activity = self.parts.activity();
        Observed {
            n_messages: activity.received_messages(),
            is_receiving: activity.is_receiving(),
            received_bytes: activity.received_bytes(),
            is_sending: activity.queued_messages() > 0,
            sent_bytes: activity.sent_bytes(),
            is_empty: self.is_empty(),
        }
    }
}

impl Tracked for Connection {
    fn standing(&self) -> Standing {
        if self.parts.activity().received_messages() == 0 {
            Standing::Unproven(self.accepted_at.elapsed())
        } else if self.is_empty() {
            Standing::Idle(self.used_at.get().elapsed())
        } else {
            Standing::InUse
        }
    }

    fn replace(&self) {
        self.end(End::Replaced);
    }
}
