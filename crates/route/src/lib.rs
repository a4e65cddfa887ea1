//! Which server serves which span: a pure state machine in virtual time.
//!
//! A [`Router`] is told of servers and of what became of the calls to them, and answers with routes.
//! It opens no connection, reads no clock (it is told the time since a moment of the caller's
//! choice where it matters) and is deterministic.
//!
//! Invariants: a route covers the blocks asked for exactly once, in order; a server that failed is
//! in no route from the very next plan until it has answered again, and the times at which it is asked
//! grow apart exponentially; what a server says of its own speed counts only until it is measured.
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

use sepal_core::Span;

use crate::health::Health;
use crate::plan::{Candidate, Timed, search, way_back};
use crate::speed::Speed;

mod balance;
mod health;
mod plan;
mod speed;

pub use balance::{BALANCE_QUALITY, ServerThroughput, better_span, weakest_span};
pub use health::{FIRST_BAN, LONGEST_BAN};
pub use speed::{Pass, Timing, Work};

/// How many of the spans hold each block of a model.
pub fn coverage(spans: &[Span], n_blocks: usize) -> Vec<usize> {
    (0..n_blocks).map(|block_idx| spans.iter().filter(|span| span.contains(block_idx)).count()).collect()
}

/// The runs of blocks that none of the spans holds.
pub fn uncovered_spans(spans: &[Span], n_blocks: usize) -> Vec<Span> {
    let coverage = coverage(spans, n_blocks);
    let mut holes: Vec<Span> = Vec::new();
    for block_idx in (0..n_blocks).filter(|&block_idx| coverage[block_idx] == 0) {
        let start = holes.pop_if(|hole| hole.end() == block_idx).map_or(block_idx, Span::start);
        holes.extend(Span::new(start, block_idx + 1));
    }
    holes
}

/// Seconds that a hop is taken to cost in a plan with as few of them as there can be.
const AT_ANY_COST: f64 = 1e6;

/// A server's place in its router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerId(pub usize);

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "server {}", self.0)
    }
}

/// One step of a route: these blocks on this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// Who.
    pub server: ServerId,
    /// What; all or part of what the server holds.
    pub span: Span,
}

/// A server as it is met.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Server {
    /// The blocks that it holds.
    pub span: Span,
    /// What an empty call took.
    pub round_trip: Duration,
    /// Seconds per token and block of a forward, as the server says; it counts until it is measured.
    pub stated_rate: Option<f64>,
    /// Tokens times blocks whose graphs it can keep; what goes beyond is computed twice.
    pub tape_token_blocks: Option<u64>,
}

impl Server {
    /// A server of which no more is known than what it holds.
    pub fn new(span: Span) -> Self {
        Self { span, round_trip: Duration::ZERO, stated_rate: None, tape_token_blocks: None }
    }
}

/// Where the micro-batches of a step go.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// A route for each micro-batch, in the order asked.
    pub routes: Vec<Vec<Hop>>,
    /// When the last of them is expected to have gone there and back, from now.
    pub done: Duration,
}

/// A call under way, see [`Router::start_call`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Call {
    server: ServerId,
    work: Work,
    /// Seconds of our own earlier calls that the server has yet to compute, as expected.
    ahead: f64,
    /// What the server had computed for us when this began.
    computed_before: f64,
    /// Seconds that this one is expected to compute.
    expected: f64,
}

/// No route.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// No server holds these blocks at all.
    #[error("no server holds blocks {missing}")]
    Uncovered {
        /// The first run of blocks that nobody holds.
        missing: Span,
    },
    /// Servers hold the block, but all of them have failed.
    #[error("every server that holds block {block_idx} has failed")]
    Banned {
        /// The first block without a server.
        block_idx: usize,
        /// When the first of them is to be asked again.
        probe_at: Duration,
    },
}

/// What is known of one server.
#[derive(Debug, Clone)]
struct Known {
    server: Server,
    health: Health,
    speed: Speed,
    /// Seconds of computation that it was given and has not answered.
    outstanding: f64,
    /// Seconds of computation that it answered.
    computed: f64,
}

/// The servers of one model, and which of them may be used.
#[derive(Debug, Clone, Default)]
pub struct Router {
    servers: Vec<Known>,
    changes: u64,
}

impl Router {
    /// A router that knows no server.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many servers it knows.
    pub fn len(&self) -> usize {
        self.servers.len()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// How often a server has come, gone or come back.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Adds a server.
    pub fn add(&mut self, server: Server) -> ServerId {
        self.changes += 1;
        let speed = Speed::new(server.round_trip, server.stated_rate);
        self.servers.push(Known { server, health: Health::default(), speed, outstanding: 0.0, computed: 0.0 });
        ServerId(self.servers.len() - 1)
    }

    /// A server that had failed says that it is there: it is used again, for the blocks that it holds now. If it fails
    /// before a call [`finish_call`](Self::finish_call), it is left for longer than before.
    pub fn mark_returned(&mut self, server: ServerId, span: Span) {
        self.changes += 1;
        let known = &mut self.servers[server.0];
        known.server.span = span;
        known.health.mark_returned();
    }

    /// A call goes out: until it is [`finish_call`](Self::finish_call) or [`abandon_call`](Self::abandon_call), the server is
    /// busy with it.
    pub fn start_call(&mut self, server: ServerId, work: Work) -> Call {
        let fallback = self.typical_rate();
        let known = &mut self.servers[server.0];
        let estimate = known.speed.rate(fallback) * (work.tokens * work.blocks) as f64;
        let expected = known.speed.compute(work).unwrap_or(estimate);
        let ahead = known.outstanding;
        known.outstanding += expected;
        Call { server, work, ahead, computed_before: known.computed, expected }
    }

    /// The server answered: its speed is known better and, if it is well, its failures are forgotten. To be told in the
    /// order in which answers come.
    pub fn finish_call(&mut self, call: Call, timing: Timing) {
        self.abandon_call(call);
        let known = &mut self.servers[call.server.0];
        known.health.mark_succeeded();
        // A server works in the order in which things come: what it has answered us since was ahead of this call.
        known.speed.add(call.work, timing, known.computed - call.computed_before);
        known.computed += timing.computed.min(timing.total).as_secs_f64();
    }

    /// The call has ended without an answer that counts; follow with [`mark_failed`](Self::mark_failed) if the server is to blame.
    pub fn abandon_call(&mut self, call: Call) {
        let known = &mut self.servers[call.server.0];
        known.outstanding = (known.outstanding - call.expected).max(0.0);
    }

    /// A server failed: it is in no route until it has answered again. Failures before it is to be asked
    /// (of calls that were under way together) count once.
    pub fn mark_failed(&mut self, server: ServerId, now: Duration) {
        self.changes += u64::from(self.is_available(server));
        self.servers[server.0].health.mark_failed(now);
    }

    /// The server took too long: it failed, and is taken to be slower until it is measured again.
    pub fn mark_late(&mut self, server: ServerId, now: Duration) {
        self.servers[server.0].speed.mark_late();
        self.mark_failed(server, now);
    }

    /// Whether routes may use the server.
    pub fn is_available(&self, server: ServerId) -> bool {
        self.servers[server.0].health.is_available()
    }

    /// When a server that failed is to be asked whether it is back; `None` while it is well.
    pub fn probe_at(&self, server: ServerId) -> Option<Duration> {
        self.servers[server.0].health.probe_at()
    }

    /// Another server was faster with a call that this one had first: it is taken to be slower until it is measured.
    pub fn mark_straggler(&mut self, server: ServerId) {
        self.servers[server.0].speed.mark_late();
    }

    /// After what time an answer that is not there is worth asking another server, too; `None` if such work was
    /// never measured.
    pub fn hedge_after(&self, server: ServerId, work: Work) -> Option<Duration> {
        let known = &self.servers[server.0];
        known.speed.hedge_after(work, known.outstanding)
    }

    /// When the call is late, from its start, by what the server was measured at; `None` if such a call was never
    /// measured there.
    pub fn late_after(&self, call: &Call) -> Option<Duration> {
        self.servers[call.server.0].speed.late_after(call.work, call.ahead)
    }

    /// When a call that would begin now would be late, from its start; `None` if such a call was never measured there.
    pub fn late_after_now(&self, server: ServerId, work: Work) -> Option<Duration> {
        let known = &self.servers[server.0];
        known.speed.late_after(work, known.outstanding)
    }

    /// Routes through `span` for micro-batches of `tokens` positions each, the prefix included.
    ///
    /// The largest micro-batch is placed first, each where it would be done first in view of all that the servers
    /// were given already. So replicas share the work in proportion to their speed, the servers of a chain work at
    /// the same time, and a hop is only made where it gains more than it costs. What is gained by leaving a busy server
    /// in mid-span on the way there may be lost on the way back, so a plan with as few hops as there can be is made as
    /// well, and the one that is done first there and back is taken.
    ///
    /// # Errors
    /// [`RouteError`] with the first block that has no server.
    pub fn plan(&self, span: Span, tokens: &[usize]) -> Result<Plan, RouteError> {
        self.plan_avoiding(span, tokens, &[])
    }

    /// As [`plan`](Self::plan), without the servers of `avoid`.
    ///
    /// # Errors
    /// As there.
    pub fn plan_avoiding(&self, span: Span, tokens: &[usize], avoid: &[ServerId]) -> Result<Plan, RouteError> {
        let free = self.plan_with(span, tokens, avoid, 0.0)?;
        let whole = self.plan_with(span, tokens, avoid, AT_ANY_COST)?;
        Ok(if whole.done <= free.done { whole } else { free })
    }

    fn plan_with(&self, span: Span, tokens: &[usize], avoid: &[ServerId], per_hop: f64) -> Result<Plan, RouteError> {
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(tokens[i]));
        let mut load = Load::new(self);
        let mut routes = vec![Vec::new(); tokens.len()];
        let mut there = 0.0_f64;
        for i in order {
            let candidates = self.candidates(span, tokens[i], avoid, &load);
            let found = search(&candidates, span, per_hop).map_err(|block_idx| self.why_not(block_idx, span.end()))?;
            load.give(&found.hops, tokens[i]);
            there = there.max(found.done);
            routes[i] = found.hops;
        }
        let done = there + way_back(&routes, self.servers.len());
        let routes = routes.iter().map(|route| route.iter().map(|timed| timed.hop).collect()).collect();
        Ok(Plan { routes, done: Duration::try_from_secs_f64(done).unwrap_or(Duration::MAX) })
    }

    fn candidates(&self, span: Span, tokens: usize, avoid: &[ServerId], load: &Load) -> Vec<Candidate> {
        let candidate = |(i, known): (usize, &Known)| {
            let server = ServerId(i);
            let (start, end) = (known.server.span.start().max(span.start()), known.server.span.end().min(span.end()));
            let part = Span::new(start, end).ok()?;
            (known.health.is_available() && !avoid.contains(&server)).then(|| Candidate {
                server,
                span: part,
                free: load.busy[i],
                overhead: known.speed.overhead(tokens),
                per_block: load.per_block(self, server, tokens),
            })
        };
        self.servers.iter().enumerate().filter_map(candidate).collect()
    }

    /// The median of the speeds that are known, for servers of which none is.
    fn typical_rate(&self) -> Option<f64> {
        let mut rates: Vec<f64> = self.servers.iter().filter_map(|known| known.speed.known_rate()).collect();
        let middle = rates.len() / 2;
        (!rates.is_empty()).then(|| *rates.select_nth_unstable_by(middle, f64::total_cmp).1)
    }

    fn why_not(&self, block_idx: usize, end: usize) -> RouteError {
        let holders = |block_idx: usize| self.servers.iter().filter(move |known| known.server.span.contains(block_idx));
        // A server that is well but to be avoided can be asked at once.
        if let Some(probe_at) = holders(block_idx).map(|known| known.health.probe_at().unwrap_or_default()).min() {
            return RouteError::Banned { block_idx, probe_at };
        }
        let missing_end = (block_idx..end).find(|&at| holders(at).next().is_some()).unwrap_or(end);
        match Span::new(block_idx, missing_end) {
            Ok(missing) => RouteError::Uncovered { missing },
            Err(_) => RouteError::Banned { block_idx, probe_at: Duration::ZERO },
        }
    }
}

/// What servers have to do while a plan is made.
struct Load {
    /// Seconds until each is free.
    busy: Vec<f64>,
    /// Tokens times blocks that the plan has each keep.
    kept: Vec<u64>,
    fallback: Option<f64>,
}

impl Load {
    fn new(router: &Router) -> Self {
        Self {
            busy: router.servers.iter().map(|known| known.outstanding).collect(),
            kept: vec![0; router.servers.len()],
            fallback: router.typical_rate(),
        }
    }

    /// Seconds of one block. Work whose graphs do not fit is done forward, again forward, and backward: half as much
    /// again.
    fn per_block(&self, router: &Router, server: ServerId, tokens: usize) -> f64 {
        let Known { server: described, speed, .. } = &router.servers[server.0];
        let fits = described.tape_token_blocks.is_none_or(|room| self.kept[server.0] + tokens as u64 <= room);
        speed.rate(self.fallback) * tokens as f64 * if fits { 1.0 } else { 1.5 }
    }

    fn give(&mut self, hops: &[Timed], tokens: usize) {
        for &Timed { hop, free, .. } in hops {
            self.busy[hop.server.0] = free;
            self.kept[hop.server.0] += (tokens * hop.span.len()) as u64;
        }
    }
}
