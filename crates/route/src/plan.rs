//! Search of the chain of servers that completes a micro-batch first.

use sepal_core::Span;

use crate::{Hop, ServerId};

/// Server in a search. Times are seconds from now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) server: ServerId,
    /// Part of the requested blocks that it holds.
    pub(crate) span: Span,
    /// Time at which it has completed its queue.
    pub(crate) free: f64,
    /// Duration of a call beside its computation.
    pub(crate) overhead: f64,
    pub(crate) per_block: f64,
}

/// Chain of hops and the time at which it completes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TimedRoute {
    pub(crate) hops: Vec<TimedHop>,
    pub(crate) completion: f64,
}

/// Hop with its times in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct TimedHop {
    pub(crate) hop: Hop,
    /// Time at which the server is free again.
    pub(crate) free: f64,
    pub(crate) compute: f64,
    /// Duration of the call beside its computation.
    pub(crate) overhead: f64,
}

/// Server that holds the current block of a search.
#[derive(Debug, Clone, Copy)]
struct ActiveServer {
    candidate: Candidate,
    visit: Option<Visit>,
}

/// Stay of the micro-batch on a server.
#[derive(Debug, Clone, Copy)]
struct Visit {
    /// Time at which the server completes the last block so far.
    completion: f64,
    start: usize,
    /// Number of hops, including this one.
    hops: usize,
}

impl Visit {
    fn cost(&self, per_hop: f64) -> f64 {
        self.completion + per_hop * self.hops as f64
    }
}

/// Earliest arrival at a boundary between blocks.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    visit: Visit,
    candidate: Candidate,
}

/// Returns the chain that completes a micro-batch through `span` first, or the first block without a candidate.
///
/// The search goes from block to block. A boundary is reached either by the server that already has the micro-batch or by
/// one that takes it over once it has arrived and the server is free. An earlier arrival never leads to a later
/// completion, so the earliest arrival at each boundary is sufficient (Dijkstra's argument on a line). Among equals, a
/// server keeps the micro-batch, or the first in order takes it. Chains are compared as if each hop took `per_hop`
/// seconds more than it does.
pub(crate) fn search(candidates: &[Candidate], span: Span, per_hop: f64) -> Result<TimedRoute, usize> {
    let mut starting: Vec<Vec<usize>> = vec![Vec::new(); span.len()];
    for (i, candidate) in candidates.iter().enumerate() {
        starting[candidate.span.start() - span.start()].push(i);
    }
    let mut active: Vec<ActiveServer> = Vec::new();
    let mut arrivals: Vec<Arrival> = Vec::with_capacity(span.len());
    for (block_idx, starting) in span.blocks().zip(&starting) {
        active.retain(|server| server.candidate.span.contains(block_idx));
        active.extend(starting.iter().map(|&i| ActiveServer { candidate: candidates[i], visit: None }));
        let (previous, hops) = arrivals.last().map_or((0.0, 0), |last| (last.visit.completion, last.visit.hops));
        let mut best: Option<Arrival> = None;
        for ActiveServer { candidate, visit } in &mut active {
            let candidate = *candidate;
            let transfer = candidate.overhead / 2.0;
            let completion = (previous + transfer).max(candidate.free) + transfer;
            let new_visit = Visit { completion, start: block_idx, hops: hops + 1 };
            let cheapest = visit.filter(|visit| visit.cost(per_hop) <= new_visit.cost(per_hop)).unwrap_or(new_visit);
            let next = Visit { completion: cheapest.completion + candidate.per_block, ..cheapest };
            *visit = Some(next);
            let key = |visit: Visit, candidate: Candidate| (visit.cost(per_hop), visit.start, candidate.server);
            if best.is_none_or(|best| key(next, candidate) < key(best.visit, best.candidate)) {
                best = Some(Arrival { visit: next, candidate });
            }
        }
        arrivals.push(best.ok_or(block_idx)?);
    }
    let completion = arrivals.last().map_or(0.0, |last| last.visit.completion);
    Ok(TimedRoute { completion, hops: trace_hops(&arrivals, span) })
}

/// Returns the hops that lead to the last arrival.
fn trace_hops(arrivals: &[Arrival], span: Span) -> Vec<TimedHop> {
    let mut hops = Vec::new();
    let mut end = span.end();
    while let Ok(remaining) = Span::new(span.start(), end) {
        let Arrival { visit: Visit { completion, start, .. }, candidate } = arrivals[remaining.len() - 1];
        let Ok(span) = Span::new(start, end) else { break };
        let Candidate { server, overhead, per_block, .. } = candidate;
        let (free, compute) = (completion - overhead / 2.0, per_block * span.len() as f64);
        hops.push(TimedHop { hop: Hop { server, span }, free, compute, overhead });
        end = start;
    }
    hops.reverse();
    hops
}

/// Returns the duration of the backward passes of all routes. A hop takes as long as forward, and each server computes
/// one micro-batch at a time, in the order of arrival.
pub(crate) fn backward_duration(routes: &[Vec<TimedHop>], n_servers: usize) -> f64 {
    let mut free = vec![0.0_f64; n_servers];
    // Time at which each micro-batch is ready for its next hop, and the number of hops that are left.
    let mut ready: Vec<(f64, usize)> = routes.iter().map(|route| (0.0, route.len())).collect();
    loop {
        let waiting = (0..ready.len()).filter(|&i| ready[i].1 > 0);
        let Some(next) = waiting.min_by(|&a, &b| ready[a].0.total_cmp(&ready[b].0)) else { break };
        let (time, hops_left) = ready[next];
        let TimedHop { hop, compute, overhead, .. } = routes[next][hops_left - 1];
        let computed = (time + overhead / 2.0).max(free[hop.server.0]) + compute;
        free[hop.server.0] = computed;
        ready[next] = (computed + overhead / 2.0, hops_left - 1);
    }
    ready.iter().map(|&(time, _)| time).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(server: usize, start: usize, end: usize, overhead: f64, per_block: f64) -> Candidate {
        let span = Span::new(start, end).expect("a span");
        Candidate { server: ServerId(server), span, free: 0.0, overhead, per_block }
    }

    fn check(candidates: &[Candidate], expected: &[(usize, &str)], completion: f64) {
        let found = search(candidates, "0:10".parse().expect("a span"), 0.0).expect("a chain");
        let hops: Vec<(usize, String)> =
            found.hops.iter().map(|TimedHop { hop, .. }| (hop.server.0, hop.span.to_string())).collect();
        let expected: Vec<(usize, String)> = expected.iter().map(|&(id, span)| (id, span.to_owned())).collect();
        assert_eq!(hops, expected);
        assert!((found.completion - completion).abs() < 1e-9, "{} is not {completion}", found.completion);
    }

    #[test]
    fn hops_are_made_only_if_they_save_time() {
        let slow_whole = candidate(0, 0, 10, 1.0, 1.0);
        check(&[slow_whole, candidate(1, 0, 5, 1.0, 0.9), candidate(2, 5, 10, 1.0, 0.9)], &[(0, "0:10")], 11.0);
        let fast_halves = [slow_whole, candidate(1, 0, 5, 1.0, 0.1), candidate(2, 5, 10, 1.0, 0.1)];
        check(&fast_halves, &[(1, "0:5"), (2, "5:10")], 3.0);
    }

    #[test]
    fn faster_server_takes_over_in_mid_span() {
        check(&[candidate(0, 0, 8, 0.1, 1.0), candidate(1, 3, 10, 0.1, 0.5)], &[(0, "0:3"), (1, "3:10")], 6.7);
    }

    #[test]
    fn busy_server_is_waited_for_if_that_is_sooner() {
        let mut busy = candidate(0, 0, 10, 0.1, 0.1);
        let slow = candidate(1, 0, 10, 0.1, 0.3);
        busy.free = 1.0;
        // The slow server starts in the meantime.
        check(&[busy, slow], &[(1, "0:3"), (0, "3:10")], 1.8);
        busy.free = 4.0;
        check(&[busy, slow], &[(1, "0:10")], 3.1);
    }

    #[test]
    fn equal_servers_are_used_in_order() {
        check(&[candidate(3, 0, 10, 0.1, 0.1), candidate(2, 0, 10, 0.1, 0.1)], &[(2, "0:10")], 1.1);
    }

    #[test]
    fn block_without_server_is_an_error() {
        let candidates = [candidate(0, 0, 4, 0.1, 0.1), candidate(1, 6, 10, 0.1, 0.1)];
        assert_eq!(search(&candidates, "0:10".parse().expect("a span"), 0.0), Err(4));
    }

    #[test]
    fn backward_pass_visits_hops_in_reverse() {
        let hop = |server: usize, compute: f64| {
            let hop = Hop { server: ServerId(server), span: "0:1".parse().expect("a span") };
            TimedHop { hop, free: 0.0, compute, overhead: 0.2 }
        };
        assert_eq!(backward_duration(&[], 2), 0.0);
        assert!((backward_duration(&[vec![hop(0, 1.0), hop(1, 3.0)]], 2) - 4.4).abs() < 1e-9);
        // Server 1 computes both last hops first, and server 0 waits for them.
        let both = [vec![hop(0, 1.0), hop(1, 3.0)], vec![hop(0, 1.0), hop(1, 3.0)]];
        assert!((backward_duration(&both, 2) - 7.4).abs() < 1e-9);
    }
}
