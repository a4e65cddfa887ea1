//! Checks of micro-batches: of a forward call and its backward call together, once both are answered.

use std::cell::RefCell;
use std::rc::Rc;

use super::chain::Chain;
use super::trial::{Finding, LegCheck, RANDOM_CHECKERS, RelayCheck};
use crate::servers::Servers;

/// Check of a micro-batch.
pub(super) enum Check {
    Hop(Box<HopCheck>),
    Relay(Box<RelayCheck>),
}

/// Check of the calls of a micro-batch to one server.
pub(super) struct HopCheck {
    /// `None` if the backward call alone was chosen.
    pub(super) forward: Option<LegCheck>,
    /// `None` if there was no backward call.
    pub(super) backward: Option<LegCheck>,
}

/// Check of a forward call that waits for the backward call, so that one repetition checks both. If it is dropped before, the
/// forward call is checked alone.
pub(crate) struct PendingCheck {
    check: Option<Check>,
    unpaired: Rc<RefCell<Vec<Check>>>,
}

impl Check {
    pub(super) async fn run(self, servers: Rc<Servers>) -> Finding {
        match self {
            Self::Hop(check) => check.run(servers).await,
            Self::Relay(check) => check.run(servers).await,
        }
    }
}

impl HopCheck {
    /// Makes the calls again elsewhere and compares the results.
    async fn run(self, servers: Rc<Servers>) -> Finding {
        let legs: Vec<&LegCheck> = self.forward.iter().chain(&self.backward).collect();
        let Some(last) = legs.last() else { return Finding::Passed };
        let server = last.hop.server;
        if servers.router().is_quarantined(server) {
            return Finding::Passed;
        }
        // A micro-batch counts once.
        let unsigned = legs.iter().find(|leg| !leg.accused.is_signed());
        if let Some(finding) = unsigned.and_then(|leg| leg.blame_receipt(&servers)) {
            return finding;
        }
        let repeated = Chain::repeat_elsewhere(&servers, &last.call, &[server], RANDOM_CHECKERS).await;
        let Some((checkers, repetition)) = repeated else { return Finding::Passed };
        servers.shared.router.usage()[server.0].checks += legs.len() as u64;
        for (leg, repeated) in [(self.forward, Some(repetition.forward)), (self.backward, repetition.backward)] {
            let (Some(leg), Some(repeated)) = (leg, repeated) else { continue };
            match leg.settle(&servers, &checkers, repeated).await {
                None | Some(Finding::Passed) => {}
                Some(finding) => return finding,
            }
        }
        Finding::Passed
    }
}

impl PendingCheck {
    pub(super) fn new(check: Check, unpaired: &Rc<RefCell<Vec<Check>>>) -> Self {
        Self { check: Some(check), unpaired: Rc::clone(unpaired) }
    }

    /// Returns the check, to which the answer to the backward call is added.
    pub(super) fn take(mut self) -> Option<Check> {
        self.check.take()
    }
}

impl Drop for PendingCheck {
    fn drop(&mut self) {
        if let Some(check) = self.check.take() {
            self.unpaired.borrow_mut().push(check);
        }
    }
}
