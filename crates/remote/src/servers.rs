//! The servers of one model: which of them work, what became of calls to them, and their return.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sepal_core::Span;
use sepal_route::{Call, Hop, RouteError, Router, Server, ServerId, Timing, Work};
use sepal_swarm::{Endpoint, RemoteOptions, Sighting};
use sepal_wire::{Retry, ServerInfo};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::{CallError, RemoteError};
use crate::peer::Peer;
use crate::relay::Rests;

/// The wait before the same server is asked again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// How often the same server is asked again before another is.
const MOST_PAUSES: u32 = 6;

/// A router that the thread that trains makes plans with, and the thread that speaks with servers tells what happens.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedRouter {
    router: Arc<Mutex<Router>>,
    /// By [`ServerId`].
    uses: Arc<Mutex<Vec<ServerUsage>>>,
}

/// What was made of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUsage {
    /// Its address, or what stands for it.
    pub server: String,
    /// The blocks that it held when it was met.
    pub span: Span,
    /// Calls that it answered.
    pub calls: u64,
    /// Calls that it failed, and which were made again, there or elsewhere.
    pub failures: u64,
}

impl SharedRouter {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Router> {
        // A panic elsewhere leaves it usable: every change to it is whole.
        self.router.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn uses(&self) -> MutexGuard<'_, Vec<ServerUsage>> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The servers of one model, as the thread that speaks with them sees them.
#[derive(Debug)]
pub(crate) struct Servers {
    /// By [`ServerId`], with what each said when it was met.
    peers: RefCell<Vec<Rc<Peer>>>,
    infos: RefCell<Vec<ServerInfo>>,
    /// Servers that were found, met or not, by name.
    found: RefCell<HashMap<String, Rc<Peer>>>,
    router: SharedRouter,
    started: Instant,
    options: RemoteOptions,
    /// Told when a server has come or come back.
    came: Notify,
    rests: Rests,
    relays: Arc<AtomicU64>,
}

/// Shared with the tasks of one thread.
pub(crate) type SharedServers = Rc<Servers>;

/// Failures in a row of one piece of work.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    since: Option<Instant>,
    here: u32,
    last: Option<String>,
}

impl Servers {
    pub(crate) fn new(router: SharedRouter, options: RemoteOptions, relays: Arc<AtomicU64>) -> SharedServers {
        Rc::new(Self {
            peers: RefCell::default(),
            infos: RefCell::default(),
            found: RefCell::default(),
            router,
            started: Instant::now(),
            options,
            came: Notify::new(),
            rests: Rests::default(),
            relays,
        })
    }

    pub(crate) fn options(&self) -> &RemoteOptions {
        &self.options
    }

    pub(crate) fn router(&self) -> MutexGuard<'_, Router> {
        self.router.lock()
    }

    pub(crate) fn shared_router(&self) -> &SharedRouter {
        &self.router
    }

    /// A micro-batch has gone through servers that handed it on to each other.
    pub(crate) fn count_relay(&self) {
        self.relays.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn rests(&self) -> &Rests {
        &self.rests
    }

    pub(crate) fn peer(&self, server: ServerId) -> Rc<Peer> {
        Rc::clone(&self.peers.borrow()[server.0])
    }

    pub(crate) fn label(&self, server: ServerId) -> String {
        self.peer(server).endpoint.to_string()
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes in a server that was met.
    pub(crate) fn add(&self, peer: Rc<Peer>, info: &ServerInfo) {
        let room = info.limits.tape_budget_bytes.checked_div(info.tape_token_bytes.into());
        let server = Server {
            span: info.span,
            round_trip: peer.round_trip(),
            stated_rate: Some(info.load.rate),
            tape_token_blocks: room,
        };
        self.router().add(server);
        let server = peer.endpoint.to_string();
        self.router.uses().push(ServerUsage { server, span: info.span, calls: 0, failures: 0 });
        peer.is_met.set(true);
        self.peers.borrow_mut().push(peer);
        self.infos.borrow_mut().push(info.clone());
        self.came.notify_waiters();
    }

    /// What servers said when they were met.
    pub(crate) fn infos(&self) -> Vec<ServerInfo> {
        self.infos.borrow().clone()
    }

    /// The first of the blocks `whole` that no server has, if there are such.
    pub(crate) fn hole(&self, whole: Span) -> Result<Option<Span>, RemoteError> {
        match self.router().plan(whole, &[1]) {
            Ok(_) => Ok(None),
            Err(error) => missing(error).map(Some),
        }
    }

    /// Told when a server has come or come back.
    pub(crate) fn came(&self) -> &Notify {
        &self.came
    }

    /// Something was heard of a server, perhaps for the first time; `meet` makes what it is met with.
    pub(crate) fn sighted(self: &Rc<Self>, sighting: Sighting, meet: impl FnOnce(Endpoint) -> Peer) {
        let name = match &sighting {
            Sighting::Present(endpoint) => endpoint.to_string(),
            Sighting::Gone(name) => name.clone(),
        };
        let known = self.found.borrow().get(&name).cloned();
        match (known, sighting) {
            (Some(peer), Sighting::Present(_)) => {
                peer.is_gone.set(false);
                peer.heard.notify_waiters();
            }
            (Some(peer), Sighting::Gone(_)) => {
                peer.is_gone.set(true);
                if !peer.is_met.get() {
                    self.found.borrow_mut().remove(&name);
                    peer.heard.notify_waiters();
                }
            }
            (None, Sighting::Present(endpoint)) => {
                let peer = Rc::new(meet(endpoint));
                self.found.borrow_mut().insert(name, Rc::clone(&peer));
                tokio::task::spawn_local(Rc::clone(self).expect(peer, Duration::ZERO));
            }
            (None, Sighting::Gone(_)) => {}
        }
    }

    /// Goes on trying to meet a server, for the first time after `pause`.
    pub(crate) async fn expect(self: Rc<Self>, peer: Rc<Peer>, mut pause: Duration) {
        loop {
            peer.until_due(Instant::now() + pause).await;
            if peer.is_gone.get() {
                return;
            }
            match peer.meet().await {
                // It may have been said to be gone while it was asked; whoever is heard of again is met anew.
                Ok(_) if peer.is_gone.get() => return,
                Ok(info) => {
                    tracing::info!(server = %peer.endpoint, span = %info.span, "a server has come");
                    return self.add(peer, &info);
                }
                Err(CallError::Unusable(error)) => {
                    // Whoever starts with another model there is heard of again.
                    tracing::warn!(%error, "a server is not used");
                    self.found.borrow_mut().retain(|_, known| !Rc::ptr_eq(known, &peer));
                    return;
                }
                Err(error) => tracing::debug!(server = %peer.endpoint, %error, "still not there"),
            }
            pause = (2 * pause).clamp(sepal_route::FIRST_BAN, sepal_route::LONGEST_BAN);
        }
    }

    /// Makes a call and tells the router what became of it.
    pub(crate) async fn measured<T>(
        &self,
        server: ServerId,
        work: Work,
        call: impl Future<Output = Result<(T, sepal_wire::Timing), CallError>>,
    ) -> Result<T, CallError> {
        let under_way = UnderWay::new(&self.router, server, work);
        let late_after = self.router().late_after(&under_way.call);
        let (value, there) = self.peer(server).patiently(late_after, call).await?;
        under_way.finished(there, None);
        Ok(value)
    }

    /// A route through `rest`; waits for servers to come back if there is none.
    pub(crate) async fn route(
        &self,
        rest: Span,
        tokens: usize,
        trouble: &mut Trouble,
    ) -> Result<Vec<Hop>, RemoteError> {
        loop {
            let mut came = std::pin::pin!(self.came.notified());
            came.as_mut().enable();
            let planned = self.router().plan(rest, &[tokens]);
            let missing = match planned {
                Ok(plan) => return Ok(plan.routes.concat()),
                Err(error) => missing(error)?,
            };
            let since = *trouble.since.get_or_insert_with(Instant::now);
            let left = self.options.wait().saturating_sub(since.elapsed());
            let wait_ms = left.as_millis() as u64;
            tracing::warn!("no server is left for block {}; waiting {wait_ms} ms for one", missing.start());
            // Whether one came or the time is over is seen in what follows.
            let _ = tokio::time::timeout(left, came).await;
            trouble.check(self.options.wait(), rest)?;
        }
    }

    /// What follows from a failed call: an error if it must not be repeated, a pause if the same
    /// server may be asked again, else the server is left until it has answered again.
    pub(crate) async fn judge(
        self: &Rc<Self>,
        hop: Hop,
        error: CallError,
        trouble: &mut Trouble,
    ) -> Result<(), RemoteError> {
        let server = self.label(hop.server);
        let retry = match error {
            CallError::Failure(failure) if failure.retry == Retry::Never => {
                return Err(RemoteError::Refused { server, span: hop.span, failure });
            }
            ref other => other.retry(),
        };
        if !matches!(error, CallError::Left) {
            self.router.uses()[hop.server.0].failures += 1;
        }
        trouble.since.get_or_insert_with(Instant::now);
        trouble.last = Some(format!("server {server}: {error}"));
        trouble.check(self.options.wait(), hop.span)?;
        if retry == Retry::Here && trouble.here < MOST_PAUSES {
            tracing::debug!(%server, span = %hop.span, %error, "asking again");
            tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(trouble.here)).await;
            trouble.here += 1;
            return Ok(());
        }
        trouble.here = 0;
        // Another call's failure may be what ended this one: let it be dealt with first.
        tokio::task::yield_now().await;
        if !matches!(error, CallError::Left) && self.router().is_available(hop.server) {
            tracing::warn!(%server, span = %hop.span, %error, "a server failed");
            self.leave(hop.server, &error);
        }
        Ok(())
    }

    /// Takes a server out of all routes and has it asked whether it is back. Calls that are under way end with it,
    /// unless it is still there and only says no: it may finish what it has.
    fn leave(self: &Rc<Self>, server: ServerId, error: &CallError) {
        let now = self.now();
        match error.is_late() {
            true => self.router().mark_late(server, now),
            false => self.router().mark_failed(server, now),
        }
        if !matches!(error, CallError::Failure(_)) {
            self.peer(server).leave();
        }
        // `judge` leaves a server only while it is well, and it is well again only when this has ended.
        tokio::task::spawn_local(Rc::clone(self).revive(server));
    }

    async fn revive(self: Rc<Self>, server: ServerId) {
        let peer = self.peer(server);
        loop {
            let Some(probe_at) = self.router().probe_at(server) else { return };
            peer.until_due(self.started + probe_at).await;
            match peer.meet().await {
                Ok(info) => {
                    tracing::info!(server = %peer.endpoint, span = %info.span, "a server is back");
                    self.router().mark_returned(server, info.span);
                    self.came.notify_waiters();
                    return;
                }
                Err(error) => {
                    tracing::debug!(server = %peer.endpoint, %error, "not back");
                    self.router().mark_failed(server, self.now());
                }
            }
        }
    }
}

/// The blocks that there is no route through.
fn missing(error: RouteError) -> Result<Span, RemoteError> {
    match error {
        RouteError::Uncovered { missing } => Ok(missing),
        RouteError::Banned { block_idx, .. } => Span::new(block_idx, block_idx + 1).map_err(RemoteError::local),
        error => Err(RemoteError::local(error)),
    }
}

impl Trouble {
    /// A call went well: what failed before counts no longer.
    pub(crate) fn over(&mut self) {
        *self = Self::default();
    }

    /// Whether it has gone on for too long.
    fn check(&mut self, wait: Duration, span: Span) -> Result<(), RemoteError> {
        let waited = self.since.map_or(Duration::ZERO, |since| since.elapsed());
        if waited < wait {
            return Ok(());
        }
        let last = self.last.take().unwrap_or_else(|| "failed for another micro-batch".into());
        Err(RemoteError::NoServer { span, waited, last })
    }
}

/// A call that the router knows of; it is told if the call is dropped.
pub(crate) struct UnderWay<'a> {
    router: &'a SharedRouter,
    server: ServerId,
    call: Call,
    begun: Instant,
    is_over: bool,
}

impl<'a> UnderWay<'a> {
    pub(crate) fn new(router: &'a SharedRouter, server: ServerId, work: Work) -> Self {
        let call = router.lock().start_call(server, work);
        Self { router, server, call, begun: Instant::now(), is_over: false }
    }

    /// The answer is there; beside waiting and computing it took the rest of the time, or `on_the_way` if that is known.
    pub(crate) fn finished(mut self, there: sepal_wire::Timing, on_the_way: Option<Duration>) {
        self.is_over = true;
        let sepal_wire::Timing { queued, computed } = there;
        let total = on_the_way.map_or(self.begun.elapsed(), |on_the_way| queued + computed + on_the_way);
        self.router.lock().finish_call(self.call, Timing { total, queued, computed });
        self.router.uses()[self.server.0].calls += 1;
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.router.lock().abandon_call(self.call);
        }
    }
}
