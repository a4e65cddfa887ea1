use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::rc::Rc;
use std::sync::MutexGuard;

use sepal_core::Span;
use sepal_route::{Hop, RouteError, Router, Server, ServerId, Work};
use sepal_swarm::{Endpoint, RemoteOptions};
use sepal_wire::{ServerInfo, Timing};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::connection::Peer;
use crate::error::{CallError, RemoteError};
use crate::retry::{RelayBackoff, RetryBudget};
use crate::shared::{InFlightCall, ServerUsage, SharedState};
use crate::verify::Verifier;

/// Servers of one model, shared by the tasks of the RPC thread.
pub(crate) struct Servers {
    pub(crate) shared: SharedState,
    /// Blocks that servers run.
    pub(crate) span: Span,
    /// By [`ServerId`].
    peers: RefCell<Vec<Rc<Peer>>>,
    /// Descriptions at the first connection, by [`ServerId`].
    infos: RefCell<Vec<ServerInfo>>,
    /// Discovered servers by name, registered or not.
    pub(super) discovered: RefCell<HashMap<String, Rc<Peer>>>,
    /// Reasons for discovered servers that are not used.
    pub(super) unusable: RefCell<BTreeSet<String>>,
    /// Start of the router's time.
    pub(super) started: Instant,
    /// Notified when a server has arrived or returned.
    pub(super) arrivals: Notify,
    pub(crate) relay_backoff: RelayBackoff,
    pub(crate) verifier: Verifier,
}

impl Servers {
    pub(super) fn new(shared: SharedState) -> Result<Rc<Self>, RemoteError> {
        Ok(Rc::new(Self {
            span: shared.expected.remote_span(&shared.options)?,
            peers: RefCell::default(),
            infos: RefCell::default(),
            discovered: RefCell::default(),
            started: Instant::now(),
            arrivals: Notify::new(),
            relay_backoff: RelayBackoff::default(),
            verifier: Verifier::new(shared.options.verify),
            unusable: RefCell::default(),
            shared,
        }))
    }

    pub(crate) fn options(&self) -> &RemoteOptions {
        &self.shared.options
    }

    pub(crate) fn router(&self) -> MutexGuard<'_, Router> {
        self.shared.router.lock()
    }

    pub(crate) fn peer(&self, server: ServerId) -> Rc<Peer> {
        Rc::clone(&self.peers.borrow()[server.0])
    }

    pub(crate) fn label(&self, server: ServerId) -> String {
        self.peer(server).endpoint.to_string()
    }

    /// Descriptions of the servers at their first connection.
    pub(crate) fn infos(&self) -> Vec<ServerInfo> {
        self.infos.borrow().clone()
    }

    pub(super) fn new_peer(&self, endpoint: Endpoint) -> Rc<Peer> {
        Rc::new(Peer::new(endpoint, self.shared.clone()))
    }

    /// Adds a connected server to the router.
    pub(super) fn register(&self, peer: Rc<Peer>, info: &ServerInfo) {
        self.router().add(Server {
            span: info.span,
            round_trip: peer.round_trip(),
            stated_rate: Some(info.load.rate),
            tape_token_blocks: info.limits.tape_budget_bytes.checked_div(info.tape_token_bytes.into()),
        });
        let server = peer.endpoint.to_string();
        self.shared.router.usage().push(ServerUsage::new(server, info.span));
        peer.is_registered.set(true);
        self.peers.borrow_mut().push(peer);
        self.infos.borrow_mut().push(info.clone());
        self.quarantine_banned();
        self.arrivals.notify_waiters();
    }

    /// Takes the servers that state a banned key out of all routes for good.
    pub(crate) fn quarantine_banned(&self) {
        for (i, peer) in self.peers.borrow().iter().enumerate() {
            let server = ServerId(i);
            if !self.verifier.is_banned(peer.key()) || self.router().is_quarantined(server) {
                continue;
            }
            self.router().quarantine(server);
            self.shared.router.usage()[i].quarantined = true;
            peer.disconnect();
            tracing::warn!(server = %peer.endpoint, "a server is not used: one with this key gave wrong results");
        }
    }

    /// Returns the first blocks that no server holds, if there are any.
    pub(super) fn uncovered(&self) -> Result<Option<Span>, RemoteError> {
        match self.router().plan(self.span, &[1]) {
            Ok(_) => Ok(None),
            Err(error) => uncovered_span(error).map(Some),
        }
    }

    /// Makes a call under its deadline and records its timing.
    pub(crate) async fn timed_call<T>(
        &self,
        server: ServerId,
        work: Work,
        call: impl Future<Output = Result<(T, Timing), CallError>>,
    ) -> Result<T, CallError> {
        let in_flight = InFlightCall::new(&self.shared.router, server, work);
        let late_after = in_flight.late_after();
        let (value, timing) = self.peer(server).with_deadline(late_after, call).await?;
        in_flight.finish(timing, None);
        Ok(value)
    }

    /// Returns a route through `span`. Waits for servers to return if there is none.
    pub(crate) async fn wait_for_route(
        &self,
        span: Span,
        tokens: usize,
        budget: &mut RetryBudget,
    ) -> Result<Vec<Hop>, RemoteError> {
        loop {
            let mut arrival = std::pin::pin!(self.arrivals.notified());
            arrival.as_mut().enable();
            let planned = self.router().plan_avoiding(span, &[tokens], budget.excluded());
            let missing = match planned {
                Ok(plan) => return Ok(plan.routes.concat()),
                Err(error) => uncovered_span(error)?,
            };
            if let Some(error) = budget.undecided() {
                return Err(error);
            }
            let wait = self.options().wait();
            let remaining = budget.remaining(wait);
            tracing::warn!(
                "no server is left for block {}; waiting {} ms for one",
                missing.start(),
                remaining.as_millis()
            );
            self.probe_early(missing, remaining);
            // The next iteration finds out if a server has arrived or the time is over.
            let _ = tokio::time::timeout(remaining, arrival).await;
            self.check_budget(budget, span)?;
        }
    }
}

/// Returns the blocks without a route.
fn uncovered_span(error: RouteError) -> Result<Span, RemoteError> {
    match error {
        RouteError::Uncovered { missing } => Ok(missing),
        RouteError::Banned { block_idx, .. } => Span::new(block_idx, block_idx + 1).map_err(RemoteError::local),
        error => Err(RemoteError::local(error)),
    }
}
