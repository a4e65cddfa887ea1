use std::rc::Rc;
use std::time::Duration;

use sepal_core::Span;
use sepal_route::{Hop, Pass, ServerId};
use sepal_wire::{Failure, Retry};

use super::registry::Servers;
use crate::error::{CallError, Refusal, RemoteError};
use crate::retry::{Doubt, DoubtfulAnswer, RetryBudget};
use crate::shared::ServerUsage;

impl Servers {
    /// Prepares the next attempt after a failed call: waits before a retry on the same server, takes the server out of all
    /// routes until it has answered again, or avoids it until another server has answered a call that it refused.
    ///
    /// # Errors
    /// [`RemoteError::Refused`] if the call must not be repeated; [`RemoteError::NoServer`] if the budget is used up.
    pub(crate) async fn handle_failure(
        self: &Rc<Self>,
        hop: Hop,
        error: CallError,
        budget: &mut RetryBudget,
    ) -> Result<(), RemoteError> {
        let server = hop.server;
        budget.start();
        if matches!(error, CallError::Disconnected) {
            self.check_budget(budget, hop.span)?;
            // The failure of the call that is the cause is handled first.
            tokio::task::yield_now().await;
            return Ok(());
        }
        self.peer(server).set_last_failure(&error);
        if let CallError::Failure(failure) = &error
            && failure.retry == Retry::Never
        {
            return self.handle_refusal(hop, failure.clone(), budget);
        }
        self.shared.router.usage()[server.0].failures += 1;
        self.check_budget(budget, hop.span)?;
        if self.is_retried_here(hop)
            && let Some(delay) = budget.next_delay(server, error.retry())
        {
            tracing::debug!(server = %self.label(server), span = %hop.span, %error, "retrying on the same server");
            tokio::time::sleep(delay).await;
            return Ok(());
        }
        // Another call's failure may be the cause of this one and is handled first.
        tokio::task::yield_now().await;
        self.fail(hop, &error, budget.pass());
        Ok(())
    }

    /// Records a refused call. It is made again: by another server if any is known to hold its blocks, else by the same one on
    /// a new connection.
    fn handle_refusal(
        self: &Rc<Self>,
        hop: Hop,
        failure: Failure,
        budget: &mut RetryBudget,
    ) -> Result<(), RemoteError> {
        let server = self.label(hop.server);
        tracing::debug!(%server, span = %hop.span, %failure, "a server refused a call");
        let error = CallError::Failure(failure.clone());
        let answer = DoubtfulAnswer::Refusal(Refusal { server, failure });
        if let Some(confirmed) = budget.doubt(Doubt { hop, answer }) {
            return Err(confirmed);
        }
        self.check_budget(budget, hop.span)?;
        if self.has_replicas(hop, budget) {
            budget.exclude(hop.server);
        } else {
            self.fail(hop, &error, budget.pass());
            self.peer(hop.server).disconnect();
        }
        Ok(())
    }

    /// Records non-finite numbers, of `block_idx` if that is known. The call is made again by another server.
    ///
    /// # Errors
    /// [`RemoteError::NonFinite`] if another server returned such numbers as well or none is available.
    pub(crate) fn handle_non_finite(
        self: &Rc<Self>,
        hop: Hop,
        block_idx: Option<usize>,
        what: &'static str,
        budget: &mut RetryBudget,
    ) -> Result<(), RemoteError> {
        let block = block_idx.and_then(|block_idx| Span::new(block_idx, block_idx + 1).ok());
        let span = block.filter(|&block| hop.span.covers(block)).unwrap_or(hop.span);
        let server = self.label(hop.server);
        let error = RemoteError::NonFinite { server: server.clone(), span, what };
        if let Some(confirmed) = budget.doubt(Doubt { hop, answer: DoubtfulAnswer::NonFinite(server, span, what) }) {
            return Err(confirmed);
        }
        budget.exclude(hop.server);
        if self.router().plan_avoiding(hop.span, &[1], budget.excluded()).is_err() {
            return Err(error);
        }
        budget.set_undecided(error);
        Ok(())
    }

    /// Bans the servers whose doubtful answers the success of others contradicts; not `successful`, which has corrected
    /// itself.
    pub(crate) fn settle(
        self: &Rc<Self>,
        budget: &mut RetryBudget,
        successful: Option<ServerId>,
        is_contradicted: impl FnMut(&Doubt) -> bool,
    ) {
        for Doubt { hop, answer } in budget.settle(is_contradicted) {
            if successful == Some(hop.server) {
                continue;
            }
            let error = match answer {
                DoubtfulAnswer::Refusal(Refusal { failure, .. }) => CallError::WrongRefusal(failure),
                DoubtfulAnswer::NonFinite(_, _, what) => CallError::WrongNonFinite(what),
            };
            self.shared.router.usage()[hop.server.0].failures += 1;
            self.peer(hop.server).set_last_failure(&error);
            self.fail(hop, &error, budget.pass());
        }
    }

    /// True if every server of the route can be replaced now.
    pub(crate) fn is_replaceable(&self, route: &[Hop]) -> bool {
        let router = self.router();
        route.iter().all(|hop| router.plan_avoiding(hop.span, &[1], &[hop.server]).is_ok())
    }

    /// Error if the failures have lasted for too long.
    pub(super) fn check_budget(&self, budget: &RetryBudget, span: Span) -> Result<(), RemoteError> {
        let Some(waited) = budget.exhausted_after(self.options().wait()) else { return Ok(()) };
        let doubtful = budget.undecided().or_else(|| budget.doubtful_error(span));
        Err(doubtful.unwrap_or_else(|| RemoteError::NoServer { span, waited, failures: self.last_failures(span) }))
    }

    /// Returns the last failure of each server that holds blocks of `span`.
    fn last_failures(&self, span: Span) -> Vec<String> {
        let holders = self.router().holders(span, &[]);
        let peers = holders.into_iter().map(|server| self.peer(server));
        let failed = peers.filter_map(|peer| Some(format!("server {}: {}", peer.endpoint, peer.last_failure()?)));
        let failed: Vec<String> = failed.collect();
        let holds = |usage: &&ServerUsage| usage.span.start() < span.end() && span.start() < usage.span.end();
        let usage = self.shared.router.usage();
        let liars = usage.iter().filter(|usage| usage.quarantined).filter(holds);
        let liars = liars.map(|usage| format!("server {}: its results were wrong", usage.server));
        failed.into_iter().chain(liars).collect()
    }

    /// True if another server is known to hold the blocks of a hop. It may be banned.
    fn has_replicas(&self, hop: Hop, budget: &RetryBudget) -> bool {
        let excluded = [budget.excluded(), &[hop.server]].concat();
        self.router().has_replicas(hop.span, &excluded)
    }

    /// True unless the server has failed since its last success and another one is available.
    fn is_retried_here(&self, hop: Hop) -> bool {
        let failures = self.router().failures(hop.server);
        failures == 0 || !self.is_replaceable(&[hop])
    }

    /// Takes a server out of all routes and starts reconnecting. Its calls in flight end, unless it still answers with
    /// failures: then they may finish.
    pub(crate) fn fail(self: &Rc<Self>, hop: Hop, error: &CallError, pass: Pass) {
        let (server, now) = (hop.server, self.started.elapsed());
        if !self.router().is_available(server) {
            return;
        }
        tracing::warn!(server = %self.label(server), span = %hop.span, %error, "a server failed");
        self.router().expect_success(server, pass);
        let is_replaceable = self.is_replaceable(&[hop]);
        match error {
            // The only server of a block is tried again soon.
            CallError::Timeout(waited) if is_replaceable => self.router().mark_timed_out(server, now, *waited),
            _ if error.is_late() => self.router().mark_late(server, now),
            _ => self.router().mark_failed(server, now),
        }
        if !matches!(error, CallError::Failure(_)) {
            self.peer(server).disconnect();
        }
        // There is one such task per server: only an available server is disconnected, and this task makes it available.
        tokio::task::spawn_local(Rc::clone(self).reconnect(server));
    }

    async fn reconnect(self: Rc<Self>, server: ServerId) {
        let peer = self.peer(server);
        loop {
            let Some(probe_at) = self.router().probe_at(server) else { return };
            peer.until_probe(self.started + probe_at).await;
            match peer.connect().await {
                Ok(info) => {
                    // It may have another key now.
                    self.quarantine_banned();
                    if self.router().is_quarantined(server) {
                        return;
                    }
                    tracing::info!(server = %peer.endpoint, span = %info.span, "a server has returned");
                    self.router().mark_returned(server, info.span);
                    self.arrivals.notify_waiters();
                    return;
                }
                Err(error) => {
                    tracing::debug!(server = %peer.endpoint, %error, "a server is still unreachable");
                    self.router().mark_failed(server, self.started.elapsed());
                }
            }
        }
    }

    /// Probes the servers of a block that would stay banned for longer than `wait`.
    pub(super) fn probe_early(&self, block: Span, wait: Duration) {
        let until = self.started.elapsed() + wait;
        let mut holders = self.router().holders(block, &[]);
        {
            let router = self.router();
            holders.retain(|&server| router.probe_at(server).is_some_and(|probe_at| probe_at > until));
        }
        for server in holders {
            self.peer(server).sighted.notify_waiters();
        }
    }
}
