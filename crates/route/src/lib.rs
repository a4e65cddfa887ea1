//! Which server serves which span: a pure state machine in virtual time.
//!
//! A [`Router`] is told of servers and of what became of the calls to them, and answers with routes.
//! It opens no connection, reads no clock (every call is given the time) and is deterministic.
//!
//! Invariants: a route covers the blocks asked for exactly once, in order; a server that failed is
//! in no route until its ban ends, and the ban counts from the very next plan; bans of a server
//! that goes on failing grow exponentially.
//!
//! ```
//! use sepal_core::Span;
//! use sepal_route::Router;
//!
//! let mut router = Router::new();
//! let a = router.add(Span::new(0, 20)?);
//! let b = router.add(Span::new(10, 30)?);
//! let route = router.plan(Span::new(0, 30)?, 0, 0)?;
//! assert_eq!(route[0].server, a);
//! assert_eq!((route[1].server, route[1].span), (b, Span::new(20, 30)?));
//!
//! router.failed(b, 0);
//! assert!(router.plan(Span::new(0, 30)?, 0, 0).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;

use sepal_core::Span;

/// The first ban, in milliseconds; it doubles with each failure in a row.
pub const FIRST_BAN_MS: u64 = 1_000;
/// The longest ban, in milliseconds.
pub const LONGEST_BAN_MS: u64 = 60_000;

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

#[derive(Debug, Clone)]
struct Server {
    span: Span,
    failures: u32,
    banned_until_ms: u64,
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
    /// Servers hold the block, but all of them failed a short while ago.
    #[error("every server that holds block {block_idx} has failed")]
    Banned {
        /// The first block without a server.
        block_idx: usize,
        /// When the first of them may be tried again.
        retry_at_ms: u64,
    },
}

/// The servers of one model, and which of them may be used.
#[derive(Debug, Clone, Default)]
pub struct Router {
    servers: Vec<Server>,
}

impl Router {
    /// A router that knows no server.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a server that holds `span`.
    pub fn add(&mut self, span: Span) -> ServerId {
        self.servers.push(Server { span, failures: 0, banned_until_ms: 0 });
        ServerId(self.servers.len() - 1)
    }

    /// A server answered: its failures are forgotten.
    pub fn succeeded(&mut self, server: ServerId) {
        self.servers[server.0].failures = 0;
        self.servers[server.0].banned_until_ms = 0;
    }

    /// A server failed: it is in no route until its ban ends. Failures reported while it is banned
    /// (of calls that were under way together) count once.
    pub fn failed(&mut self, server: ServerId, now_ms: u64) {
        let server = &mut self.servers[server.0];
        if server.banned_until_ms > now_ms {
            return;
        }
        let ban = FIRST_BAN_MS.checked_shl(server.failures).unwrap_or(LONGEST_BAN_MS).min(LONGEST_BAN_MS);
        server.banned_until_ms = now_ms + ban;
        server.failures += 1;
    }

    /// A route through `span`.
    ///
    /// At each block the server that reaches furthest is taken, which makes the fewest hops; of
    /// several that reach as far, `turn` (the index of a micro-batch, say) chooses, so that replicas
    /// share the work.
    ///
    /// # Errors
    /// [`RouteError`] with the first block that has no server.
    pub fn plan(&self, span: Span, turn: usize, now_ms: u64) -> Result<Vec<Hop>, RouteError> {
        let mut hops = Vec::new();
        let mut at = span.start();
        while at < span.end() {
            let server = self.choose(at, span.end(), turn, now_ms).ok_or_else(|| self.why_not(at, span.end()))?;
            let end = self.servers[server.0].span.end().min(span.end());
            let Ok(part) = Span::new(at, end) else { return Err(self.why_not(at, span.end())) };
            hops.push(Hop { server, span: part });
            at = end;
        }
        Ok(hops)
    }

    fn choose(&self, block_idx: usize, end: usize, turn: usize, now_ms: u64) -> Option<ServerId> {
        let usable = |server: &Server| server.span.contains(block_idx) && server.banned_until_ms <= now_ms;
        let reach = |server: &Server| server.span.end().min(end);
        let furthest = self.servers.iter().filter(|server| usable(server)).map(reach).max()?;
        let best: Vec<ServerId> = (0..self.servers.len())
            .filter(|&i| usable(&self.servers[i]) && reach(&self.servers[i]) == furthest)
            .map(ServerId)
            .collect();
        Some(best[turn % best.len()])
    }

    fn why_not(&self, block_idx: usize, end: usize) -> RouteError {
        let holders = |block_idx: usize| self.servers.iter().filter(move |server| server.span.contains(block_idx));
        if let Some(retry_at_ms) = holders(block_idx).map(|server| server.banned_until_ms).min() {
            return RouteError::Banned { block_idx, retry_at_ms };
        }
        let missing_end = (block_idx..end).find(|&at| holders(at).next().is_some()).unwrap_or(end);
        match Span::new(block_idx, missing_end) {
            Ok(missing) => RouteError::Uncovered { missing },
            Err(_) => RouteError::Banned { block_idx, retry_at_ms: 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn span(start: usize, end: usize) -> Span {
        Span::new(start, end).expect("a span")
    }

    #[test]
    fn replicas_take_turns() {
        let mut router = Router::new();
        let (a, b) = (router.add(span(0, 4)), router.add(span(0, 4)));
        let used: Vec<ServerId> =
            (0..4).map(|turn| router.plan(span(0, 4), turn, 0).expect("a route")[0].server).collect();
        assert_eq!(used, [a, b, a, b]);
    }

    #[test]
    fn a_ban_counts_at_once_and_grows() {
        let mut router = Router::new();
        let (a, b) = (router.add(span(0, 4)), router.add(span(0, 4)));
        router.failed(a, 10);
        for turn in 0..8 {
            assert_eq!(router.plan(span(0, 4), turn, 10).expect("a route")[0].server, b);
        }
        router.failed(b, 20);
        router.failed(b, 30);
        let error = router.plan(span(0, 4), 0, 40).expect_err("both are banned");
        assert_eq!(error, RouteError::Banned { block_idx: 0, retry_at_ms: 10 + FIRST_BAN_MS });
        assert_eq!(router.plan(span(0, 4), 0, 10 + FIRST_BAN_MS).expect("a route")[0].server, a);
        router.failed(a, 5_000);
        router.failed(b, 5_000);
        let error = router.plan(span(0, 4), 0, 5_000).expect_err("both are banned again");
        assert_eq!(error, RouteError::Banned { block_idx: 0, retry_at_ms: 5_000 + 2 * FIRST_BAN_MS });
        router.succeeded(a);
        assert_eq!(router.plan(span(0, 4), 1, 5_000).expect("a route")[0].server, a);
    }

    #[test]
    fn holes_are_named() {
        let mut router = Router::new();
        router.add(span(0, 10));
        router.add(span(20, 30));
        let error = router.plan(span(0, 30), 0, 0).expect_err("a hole");
        assert_eq!(error, RouteError::Uncovered { missing: span(10, 20) });
    }

    proptest! {
        #[test]
        fn a_route_covers_its_span_exactly_once(
            servers in prop::collection::vec((0_usize..20, 1_usize..12), 1..12),
            dead in prop::collection::vec(0_usize..12, 0..6),
            turn in 0_usize..9,
        ) {
            let mut router = Router::new();
            for &(start, len) in &servers {
                router.add(span(start, start + len));
            }
            for &server in dead.iter().filter(|&&server| server < servers.len()) {
                router.failed(ServerId(server), 0);
            }
            match router.plan(span(0, 20), turn, 0) {
                Ok(route) => {
                    let mut at = 0;
                    for hop in &route {
                        prop_assert_eq!(hop.span.start(), at);
                        prop_assert!(router.servers[hop.server.0].span.covers(hop.span));
                        prop_assert!(!dead.contains(&hop.server.0));
                        at = hop.span.end();
                    }
                    prop_assert_eq!(at, 20);
                }
                Err(RouteError::Uncovered { missing }) => {
                    prop_assert!(servers.iter().all(|&(start, len)| !span(start, start + len).contains(missing.start())));
                }
                Err(RouteError::Banned { block_idx, .. }) => {
                    prop_assert!(servers.iter().enumerate().all(|(i, &(start, len))| dead.contains(&i)
                        || !span(start, start + len).contains(block_idx)));
                }
            }
        }
    }
}
