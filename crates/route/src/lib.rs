//! Routing of micro-batches to the servers of a swarm, as a pure state machine in virtual time.
//!
//! A [`Router`] records servers and the results of calls to them, and plans routes. It opens no connections and reads no
//! clock: the caller passes the time since a moment of its choice. All results are deterministic. Above it, `remote` makes
//! the calls; beneath it, there is `core` alone.
//!
//! Invariants:
//!
//! - A route covers the requested blocks exactly once, in order.
//! - A server that failed is in no route until it has answered again. Its probes are exponentially spaced. Only a call of the
//!   kind that failed, not a probe, ends the growth of their intervals.
//! - A quarantined server is in no route, ever again.
//! - A server's own statement of its speed counts only until it is measured.
//!
//! ```
//! use std::time::Duration;
//!
//! use sepal_core::Span;
//! use sepal_route::{Router, Server};
//!
//! let mut router = Router::new();
//! let a = router.add(Server::new(Span::new(0, 20)?));
//! let b = router.add(Server::new(Span::new(10, 30)?));
//! let plan = router.plan(Span::new(0, 30)?, &[128])?; // one micro-batch of 128 tokens
//! let route = &plan.routes[0];
//! assert_eq!((route[0].server, route[1].server), (a, b));
//!
//! router.mark_failed(b, Duration::ZERO);
//! assert!(router.plan(Span::new(0, 30)?, &[128]).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;
use std::time::Duration;

use sepal_core::{MAX_BLOCKS, Span};

use crate::health::Health;
use crate::plan::{Candidate, TimedHop, backward_duration, search};
use crate::speed::Speed;

mod balance;
mod health;
mod plan;
mod speed;

pub use balance::{BALANCE_QUALITY, ServerThroughput, better_span, weakest_span};
pub use health::{FIRST_BAN, LONGEST_BAN};
pub use speed::{Pass, Timing, Work};

/// Returns the number of spans that hold each block of a model. A model of more than [`MAX_BLOCKS`] blocks, which only a
/// lying peer states, is cut there.
pub fn coverage(spans: &[Span], n_blocks: usize) -> Vec<usize> {
    let n_blocks = n_blocks.min(MAX_BLOCKS);
    (0..n_blocks).map(|block_idx| spans.iter().filter(|span| span.contains(block_idx)).count()).collect()
}

/// Returns the contiguous blocks that none of the spans holds.
pub fn uncovered_spans(spans: &[Span], n_blocks: usize) -> Vec<Span> {
    let coverage = coverage(spans, n_blocks);
    let mut uncovered: Vec<Span> = Vec::new();
    for block_idx in (0..coverage.len()).filter(|&block_idx| coverage[block_idx] == 0) {
        let start = uncovered.pop_if(|span| span.end() == block_idx).map_or(block_idx, Span::start);
        uncovered.extend(Span::new(start, block_idx + 1));
    }
    uncovered
}

/// Assumed cost in seconds of a hop in a plan with the fewest hops.
const FEWEST_HOPS_COST: f64 = 1e6;

/// Index of a server in its router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerId(pub usize);

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "server {}", self.0)
    }
}

/// Blocks of a route that one server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// Server that runs them.
    pub server: ServerId,
    /// All or some of the server's blocks.
    pub span: Span,
}

/// Server at its first connection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Server {
    /// Blocks that it holds.
    pub span: Span,
    /// Duration of an empty call.
    pub round_trip: Duration,
    /// Seconds per token and block of a forward pass, as the server states. It counts until the first measurement.
    pub stated_rate: Option<f64>,
    /// Capacity for tapes in tokens times blocks. Forward passes beyond it are computed twice.
    pub tape_token_blocks: Option<u64>,
}

impl Server {
    /// Server of which only the blocks are state.
    pub fn new(span: Span) -> Self {
        Self { span, round_trip: Duration::ZERO, stated_rate: None, tape_token_blocks: None }
    }
}

/// Routes of the micro-batches of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Route of each micro-batch, in the requested order.
    pub routes: Vec<Vec<Hop>>,
    /// Expected duration of all forward and backward passes.
    pub duration: Duration,
}

/// Call in flight; see [`Router::start_call`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Call {
    server: ServerId,
    work: Work,
    /// Expected seconds of the client's earlier calls that the server has yet to compute.
    ahead: f64,
    /// Seconds that the server had computed for the client before this call.
    computed_before: f64,
    /// Expected seconds of this call's computation.
    expected: f64,
}

/// Error of a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum RouteError {
    /// No server holds these blocks.
    #[error("no server holds blocks {missing}")]
    Uncovered { missing: Span },
    /// All servers that hold the block have failed; `probe_at` is the time of the first probe of one of them.
    #[error("every server that holds block {block_idx} has failed")]
    Banned { block_idx: usize, probe_at: Duration },
}

#[derive(Debug, Clone)]
struct ServerState {
    server: Server,
    health: Health,
    speed: Speed,
    /// Expected seconds of computation of its calls in flight.
    outstanding: f64,
    /// Seconds of computation of its answered calls.
    computed: f64,
}

/// Servers of one model with their speed and availability.
#[derive(Debug, Clone, Default)]
pub struct Router {
    servers: Vec<ServerState>,
    changes: u64,
}

impl Router {
    /// Creates a router without servers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of servers.
    pub fn len(&self) -> usize {
        self.servers.len()
    }

    /// True if there are no servers.
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// Number of times that a server arrived, failed or returned.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Adds a server.
    pub fn add(&mut self, server: Server) -> ServerId {
        self.changes += 1;
        let speed = Speed::new(server.round_trip, server.stated_rate);
        self.servers.push(ServerState { server, health: Health::default(), speed, outstanding: 0.0, computed: 0.0 });
        ServerId(self.servers.len() - 1)
    }

    /// Makes a server that failed available again, with the blocks that it holds now. If it fails before a call
    /// [finishes](Self::finish_call), its next ban is longer. After a failed backward pass, that is a backward pass.
    pub fn mark_returned(&mut self, server: ServerId, span: Span) {
        self.changes += 1;
        let state = &mut self.servers[server.0];
        state.server.span = span;
        state.health.mark_returned();
    }

    /// Records the start of a call. It adds to the server's load until it is [finished](Self::finish_call) or
    /// [abandoned](Self::abandon_call).
    pub fn start_call(&mut self, server: ServerId, work: Work) -> Call {
        let fallback = self.typical_rate();
        let state = &mut self.servers[server.0];
        let estimate = state.speed.rate(fallback) * (work.tokens * work.blocks) as f64;
        let expected = state.speed.compute(work).unwrap_or(estimate);
        let ahead = state.outstanding;
        state.outstanding += expected;
        Call { server, work, ahead, computed_before: state.computed, expected }
    }

    /// Records the answer to a call: updates the server's speed and, if it is available, forgets its failures. Calls are
    /// recorded in the order of their answers.
    pub fn finish_call(&mut self, call: Call, timing: Timing) {
        self.abandon_call(call);
        let state = &mut self.servers[call.server.0];
        state.health.mark_succeeded(call.work.pass);
        // A server computes in the order of arrival: its answers since the start of this call were queued ahead of it.
        state.speed.add(call.work, timing, state.computed - call.computed_before);
        state.computed += timing.computed.min(timing.total).as_secs_f64();
    }

    /// Records the end of a call without an answer. [`mark_failed`](Self::mark_failed) follows if the server is the cause.
    pub fn abandon_call(&mut self, call: Call) {
        let state = &mut self.servers[call.server.0];
        state.outstanding = (state.outstanding - call.expected).max(0.0);
    }

    /// Bans a server from all routes until it [returns](Self::mark_returned). Failures before its next probe, as those of
    /// calls that were in flight together, count once.
    pub fn mark_failed(&mut self, server: ServerId, now: Duration) {
        self.changes += u64::from(self.is_available(server));
        self.servers[server.0].health.mark_failed(now);
    }

    /// Bans a server that took too long, and assumes that it is slower until the next measurement.
    pub fn mark_late(&mut self, server: ServerId, now: Duration) {
        self.servers[server.0].speed.mark_late();
        self.mark_failed(server, now);
    }

    /// Bans a server from all routes for good: it neither returns nor is it probed. If no other server holds its blocks, plans
    /// report them as [uncovered](RouteError::Uncovered).
    pub fn quarantine(&mut self, server: ServerId) {
        self.changes += u64::from(self.is_available(server));
        self.servers[server.0].health.quarantine();
    }

    /// True if the server is [quarantined](Self::quarantine).
    pub fn is_quarantined(&self, server: ServerId) -> bool {
        self.servers[server.0].health.is_quarantined()
    }

    /// Bans a server for long because a call took all of its time, `waited`: the time that is lost by such calls stays below
    /// a tenth.
    pub fn mark_timed_out(&mut self, server: ServerId, now: Duration, waited: Duration) {
        self.changes += u64::from(self.is_available(server));
        let state = &mut self.servers[server.0];
        state.speed.mark_late();
        state.health.mark_timed_out(now, waited);
    }

    /// Lets the failures of a server count until a call of this kind succeeds. [`mark_failed`](Self::mark_failed) or a like
    /// method follows.
    pub fn expect_success(&mut self, server: ServerId, pass: Pass) {
        self.servers[server.0].health.expect_success(pass);
    }

    /// Number of bans of a server since the last call that ended their growth.
    pub fn failures(&self, server: ServerId) -> u32 {
        self.servers[server.0].health.failures()
    }

    /// Blocks that a server holds.
    pub fn span(&self, server: ServerId) -> Span {
        self.servers[server.0].server.span
    }

    /// Servers outside of `excluded`, banned but not quarantined, that hold some of the blocks of `span`.
    pub fn holders(&self, span: Span, excluded: &[ServerId]) -> Vec<ServerId> {
        let holds = |server: &ServerId| {
            let held = self.span(*server);
            !excluded.contains(server)
                && !self.is_quarantined(*server)
                && held.start() < span.end()
                && span.start() < held.end()
        };
        (0..self.servers.len()).map(ServerId).filter(holds).collect()
    }

    /// True if known servers outside of `excluded`, banned or not, hold all blocks of `span`.
    pub fn has_replicas(&self, span: Span, excluded: &[ServerId]) -> bool {
        let holders = self.holders(span, excluded);
        span.blocks().all(|block_idx| holders.iter().any(|&holder| self.span(holder).contains(block_idx)))
    }

    /// True if routes may use the server.
    pub fn is_available(&self, server: ServerId) -> bool {
        self.servers[server.0].health.is_available()
    }

    /// Time of the next probe of a banned server; `None` while it is available, and once it is quarantined.
    pub fn probe_at(&self, server: ServerId) -> Option<Duration> {
        self.servers[server.0].health.probe_at()
    }

    /// Assumes that a server is slower until the next measurement, because a replica has overtaken it.
    pub fn mark_straggler(&mut self, server: ServerId) {
        self.servers[server.0].speed.mark_late();
    }

    /// Time after which a call is worth hedging; `None` if such work was never measured.
    pub fn hedge_after(&self, server: ServerId, work: Work) -> Option<Duration> {
        let state = &self.servers[server.0];
        state.speed.hedge_after(work, state.outstanding)
    }

    /// Time from its start after which the call is late; `None` if such work was never measured there.
    pub fn late_after(&self, call: &Call) -> Option<Duration> {
        self.servers[call.server.0].speed.late_after(call.work, call.ahead)
    }

    /// Time after which a call that starts now is late; `None` if such work was never measured there.
    pub fn late_after_now(&self, server: ServerId, work: Work) -> Option<Duration> {
        let state = &self.servers[server.0];
        state.speed.late_after(work, state.outstanding)
    }

    /// Plans routes through `span` for micro-batches of `tokens` positions each, including the prefix.
    ///
    /// The largest micro-batch is placed first, each on the route that completes first in view of the plan so far.
    /// Replicas thus share the work in proportion to their speed, the servers of a chain work at the same time, and hops
    /// are only made if they save time. Leaving a busy server in mid-span may save time forward and cost it backward.
    /// Therefore a second plan has the fewest possible hops, and the plan with the shorter total duration is returned.
    ///
    /// # Errors
    /// [`RouteError`] with the first block that has no server.
    pub fn plan(&self, span: Span, tokens: &[usize]) -> Result<Plan, RouteError> {
        self.plan_avoiding(span, tokens, &[])
    }

    /// Plans routes like [`plan`](Self::plan), without the servers of `excluded`.
    ///
    /// # Errors
    /// [`RouteError`] with the first block that has no server.
    pub fn plan_avoiding(&self, span: Span, tokens: &[usize], excluded: &[ServerId]) -> Result<Plan, RouteError> {
        let fastest = self.plan_with(span, tokens, excluded, 0.0)?;
        let fewest_hops = self.plan_with(span, tokens, excluded, FEWEST_HOPS_COST)?;
        Ok(if fewest_hops.duration <= fastest.duration { fewest_hops } else { fastest })
    }

    fn plan_with(&self, span: Span, tokens: &[usize], excluded: &[ServerId], per_hop: f64) -> Result<Plan, RouteError> {
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(tokens[i]));
        let mut load = Load::new(self);
        let mut routes = vec![Vec::new(); tokens.len()];
        let mut forward = 0.0_f64;
        for i in order {
            let candidates = self.candidates(span, tokens[i], excluded, &load);
            let route = search(&candidates, span, per_hop).map_err(|block_idx| self.no_route(block_idx, span.end()))?;
            load.add(&route.hops, tokens[i]);
            forward = forward.max(route.completion);
            routes[i] = route.hops;
        }
        let seconds = forward + backward_duration(&routes, self.servers.len());
        let routes = routes.iter().map(|route| route.iter().map(|timed| timed.hop).collect()).collect();
        Ok(Plan { routes, duration: Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX) })
    }

    fn candidates(&self, span: Span, tokens: usize, excluded: &[ServerId], load: &Load) -> Vec<Candidate> {
        let candidate = |(i, state): (usize, &ServerState)| {
            let server = ServerId(i);
            let (start, end) = (state.server.span.start().max(span.start()), state.server.span.end().min(span.end()));
            let part = Span::new(start, end).ok()?;
            (state.health.is_available() && !excluded.contains(&server)).then(|| Candidate {
                server,
                span: part,
                free: load.busy[i],
                overhead: state.speed.overhead(tokens),
                per_block: load.per_block(self, server, tokens),
            })
        };
        self.servers.iter().enumerate().filter_map(candidate).collect()
    }

    /// Returns the median of the known rates, which is assumed for unknown ones.
    fn typical_rate(&self) -> Option<f64> {
        let mut rates: Vec<f64> = self.servers.iter().filter_map(|state| state.speed.known_rate()).collect();
        let middle = rates.len() / 2;
        (!rates.is_empty()).then(|| *rates.select_nth_unstable_by(middle, f64::total_cmp).1)
    }

    fn no_route(&self, block_idx: usize, end: usize) -> RouteError {
        let usable = || self.servers.iter().filter(|state| !state.health.is_quarantined());
        let holders = |block_idx: usize| usable().filter(move |state| state.server.span.contains(block_idx));
        // An available but excluded server can be probed at once.
        if let Some(probe_at) = holders(block_idx).map(|state| state.health.probe_at().unwrap_or_default()).min() {
            return RouteError::Banned { block_idx, probe_at };
        }
        let missing_end = (block_idx..end).find(|&block_idx| holders(block_idx).next().is_some()).unwrap_or(end);
        match Span::new(block_idx, missing_end) {
            Ok(missing) => RouteError::Uncovered { missing },
            Err(_) => RouteError::Banned { block_idx, probe_at: Duration::ZERO },
        }
    }
}

/// Load of the servers while a plan is made.
struct Load {
    /// Seconds until each server is free.
    busy: Vec<f64>,
    /// Size of each server's planned tapes in tokens times blocks.
    tapes: Vec<u64>,
    typical_rate: Option<f64>,
}

impl Load {
    fn new(router: &Router) -> Self {
        Self {
            busy: router.servers.iter().map(|state| state.outstanding).collect(),
            tapes: vec![0; router.servers.len()],
            typical_rate: router.typical_rate(),
        }
    }

    /// Seconds of one block. Work whose tapes do not fit is computed forward twice and backward: half as much again.
    fn per_block(&self, router: &Router, server: ServerId, tokens: usize) -> f64 {
        let ServerState { server: described, speed, .. } = &router.servers[server.0];
        let fits = described.tape_token_blocks.is_none_or(|room| self.tapes[server.0] + tokens as u64 <= room);
        speed.rate(self.typical_rate) * tokens as f64 * if fits { 1.0 } else { 1.5 }
    }

    fn add(&mut self, hops: &[TimedHop], tokens: usize) {
        for &TimedHop { hop, free, .. } in hops {
            self.busy[hop.server.0] = free;
            self.tapes[hop.server.0] += (tokens * hop.span.len()) as u64;
        }
    }
}
