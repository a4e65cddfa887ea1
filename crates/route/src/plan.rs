//! The chain of servers that would be done with a micro-batch first.

use sepal_core::Span;

use crate::{Hop, ServerId};

/// A server as one search sees it. Times are seconds from now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) server: ServerId,
    /// The part of what it holds that is asked for.
    pub(crate) span: Span,
    /// When it has done what it was given.
    pub(crate) free: f64,
    /// What a call takes beside its computation.
    pub(crate) overhead: f64,
    /// What one block takes.
    pub(crate) per_block: f64,
}

/// A chain and when it would be done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    pub(crate) hops: Vec<Timed>,
    pub(crate) done: f64,
}

/// A hop and its times, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Timed {
    pub(crate) hop: Hop,
    /// When the server would be free again.
    pub(crate) free: f64,
    /// What it computes.
    pub(crate) computes: f64,
    /// What the call takes beside that.
    pub(crate) overhead: f64,
}

/// A server that the micro-batch may be on at the block that is looked at.
#[derive(Debug, Clone, Copy)]
struct Active {
    candidate: Candidate,
    run: Option<Run>,
}

/// A micro-batch on a server.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// When the server has done the block before.
    at: f64,
    /// Since which block it has the micro-batch.
    start: usize,
    /// Hops up to here, this one included.
    hops: usize,
}

impl Run {
    fn cost(&self, per_hop: f64) -> f64 {
        self.at + per_hop * self.hops as f64
    }
}

/// How a boundary between blocks is reached first.
#[derive(Debug, Clone, Copy)]
struct Reached {
    run: Run,
    by: Candidate,
}

/// The earliest end of a micro-batch through `span`, or the first block that no candidate holds.
///
/// Block by block: a boundary is reached either by the server that had the micro-batch already, or by one that takes
/// it over, as soon as it is there and the server is free. Arriving earlier never ends later, so the earliest arrival
/// at each boundary is all that needs to be known of it (Dijkstra's argument on a line). Of equals the server that has
/// the micro-batch keeps it, else the first in order is taken. Ways are compared as if each hop took `per_hop` seconds
/// more than it does.
pub(crate) fn search(candidates: &[Candidate], span: Span, per_hop: f64) -> Result<Found, usize> {
    let mut starting: Vec<Vec<usize>> = vec![Vec::new(); span.len()];
    for (i, candidate) in candidates.iter().enumerate() {
        starting[candidate.span.start() - span.start()].push(i);
    }
    let mut active: Vec<Active> = Vec::new();
    let mut reached: Vec<Reached> = Vec::with_capacity(span.len());
    for (block_idx, starting) in span.blocks().zip(&starting) {
        active.retain(|server| server.candidate.span.contains(block_idx));
        active.extend(starting.iter().map(|&i| Active { candidate: candidates[i], run: None }));
        let (here, hops) = reached.last().map_or((0.0, 0), |reached| (reached.run.at, reached.run.hops));
        let mut best: Option<Reached> = None;
        for Active { candidate, run } in &mut active {
            let by = *candidate;
            let under_way = by.overhead / 2.0;
            let at = (here + under_way).max(by.free) + under_way;
            let taken_over = Run { at, start: block_idx, hops: hops + 1 };
            let kept = run.filter(|kept| kept.cost(per_hop) <= taken_over.cost(per_hop)).unwrap_or(taken_over);
            let now = Run { at: kept.at + by.per_block, ..kept };
            *run = Some(now);
            let key = |run: Run, by: Candidate| (run.cost(per_hop), run.start, by.server);
            if best.is_none_or(|best| key(now, by) < key(best.run, best.by)) {
                best = Some(Reached { run: now, by });
            }
        }
        reached.push(best.ok_or(block_idx)?);
    }
    Ok(Found { done: reached.last().map_or(0.0, |reached| reached.run.at), hops: walk_back(&reached, span) })
}

fn walk_back(reached: &[Reached], span: Span) -> Vec<Timed> {
    let mut hops = Vec::new();
    let mut end = span.end();
    while let Ok(rest) = Span::new(span.start(), end) {
        let Reached { run: Run { at, start, .. }, by } = reached[rest.len() - 1];
        let Ok(part) = Span::new(start, end) else { break };
        let Candidate { server, overhead, per_block, .. } = by;
        let (free, computes) = (at - overhead / 2.0, per_block * part.len() as f64);
        hops.push(Timed { hop: Hop { server, span: part }, free, computes, overhead });
        end = start;
    }
    hops.reverse();
    hops
}

/// When the last of some micro-batches has gone its way back, each hop as long as on the way there: every server does
/// one thing at a time, what is there first.
pub(crate) fn way_back(routes: &[Vec<Timed>], n_servers: usize) -> f64 {
    let mut free = vec![0.0_f64; n_servers];
    // When each micro-batch is ready for its next hop, and how many hops it has before it.
    let mut ready: Vec<(f64, usize)> = routes.iter().map(|route| (0.0, route.len())).collect();
    loop {
        let waiting = (0..ready.len()).filter(|&i| ready[i].1 > 0);
        let Some(next) = waiting.min_by(|&a, &b| ready[a].0.total_cmp(&ready[b].0)) else { break };
        let (at, left) = ready[next];
        let Timed { hop, computes, overhead, .. } = routes[next][left - 1];
        let done = (at + overhead / 2.0).max(free[hop.server.0]) + computes;
        free[hop.server.0] = done;
        ready[next] = (done + overhead / 2.0, left - 1);
    }
    ready.iter().map(|&(at, _)| at).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(server: usize, start: usize, end: usize, overhead: f64, per_block: f64) -> Candidate {
        let span = Span::new(start, end).expect("a span");
        Candidate { server: ServerId(server), span, free: 0.0, overhead, per_block }
    }

    fn check(candidates: &[Candidate], expected: &[(usize, &str)], done: f64) {
        let found = search(candidates, "0:10".parse().expect("a span"), 0.0).expect("a chain");
        let hops: Vec<(usize, String)> =
            found.hops.iter().map(|Timed { hop, .. }| (hop.server.0, hop.span.to_string())).collect();
        let expected: Vec<(usize, String)> = expected.iter().map(|&(id, span)| (id, span.to_owned())).collect();
        assert_eq!(hops, expected);
        assert!((found.done - done).abs() < 1e-9, "{} is not {done}", found.done);
    }

    #[test]
    fn fewer_hops_if_they_cost_more_than_the_computation() {
        let slow_whole = candidate(0, 0, 10, 1.0, 1.0);
        check(&[slow_whole, candidate(1, 0, 5, 1.0, 0.9), candidate(2, 5, 10, 1.0, 0.9)], &[(0, "0:10")], 11.0);
        let fast_halves = [slow_whole, candidate(1, 0, 5, 1.0, 0.1), candidate(2, 5, 10, 1.0, 0.1)];
        check(&fast_halves, &[(1, "0:5"), (2, "5:10")], 3.0);
    }

    #[test]
    fn a_server_is_used_in_part_and_left_where_a_faster_one_begins() {
        check(&[candidate(0, 0, 8, 0.1, 1.0), candidate(1, 3, 10, 0.1, 0.5)], &[(0, "0:3"), (1, "3:10")], 6.7);
    }

    #[test]
    fn a_busy_server_is_waited_for_as_long_as_that_is_sooner() {
        let mut busy = candidate(0, 0, 10, 0.1, 0.1);
        let slow = candidate(1, 0, 10, 0.1, 0.3);
        busy.free = 1.0;
        // The slow one makes a start in the meantime.
        check(&[busy, slow], &[(1, "0:3"), (0, "3:10")], 1.8);
        busy.free = 4.0;
        check(&[busy, slow], &[(1, "0:10")], 3.1);
    }

    #[test]
    fn equals_are_taken_in_order() {
        check(&[candidate(3, 0, 10, 0.1, 0.1), candidate(2, 0, 10, 0.1, 0.1)], &[(2, "0:10")], 1.1);
    }

    #[test]
    fn a_hole_is_found() {
        let candidates = [candidate(0, 0, 4, 0.1, 0.1), candidate(1, 6, 10, 0.1, 0.1)];
        assert_eq!(search(&candidates, "0:10".parse().expect("a span"), 0.0), Err(4));
    }

    #[test]
    fn the_way_back_is_the_way_there_reversed() {
        let hop = |server: usize, computes: f64| {
            let hop = Hop { server: ServerId(server), span: "0:1".parse().expect("a span") };
            Timed { hop, free: 0.0, computes, overhead: 0.2 }
        };
        assert_eq!(way_back(&[], 2), 0.0);
        assert!((way_back(&[vec![hop(0, 1.0), hop(1, 3.0)]], 2) - 4.4).abs() < 1e-9);
        // Server 1 does both last hops first, one after the other, and server 0 waits for them.
        let both = [vec![hop(0, 1.0), hop(1, 3.0)], vec![hop(0, 1.0), hop(1, 3.0)]];
        assert!((way_back(&both, 2) - 7.4).abs() < 1e-9);
    }
}
