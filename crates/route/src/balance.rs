//! Choice of the blocks that a server should hold, after Petals' block selection.
//!
//! The throughput of a swarm is that of its weakest block. A new server therefore takes the weakest blocks, and a running
//! server moves if the swarm gains enough.

use sepal_core::Span;

/// Ratio of the weakest block's throughput to that after rebalancing, below which a server moves.
pub const BALANCE_QUALITY: f64 = 0.75;
/// Throughput that counts as none, relative to the largest.
const EPSILON: f64 = 1e-3;
/// Maximum number of simulated rounds of moves.
const MAX_ROUNDS: usize = 50;

/// Throughput that one server adds to its blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ServerThroughput {
    /// Blocks of the server.
    pub span: Span,
    /// Tokens per second through all of them.
    pub throughput: f64,
}

impl ServerThroughput {
    /// Throughput of a server that takes `rate` seconds per token and block, or `typical` if it is unmeasured (`rate` 0).
    pub fn new(span: Span, rate: f64, typical: f64) -> Self {
        let rate = if rate.is_finite() && rate > 0.0 { rate } else { typical };
        Self { span, throughput: 1.0 / (rate * span.len() as f64) }
    }
}

/// Returns the weakest span of `len` blocks: the first in the order of the throughput of their weakest block, then of
/// their second weakest, and so on. Returns all blocks if the model has no more.
pub fn weakest_span(servers: &[ServerThroughput], n_blocks: usize, len: usize) -> Option<Span> {
    weakest(&block_throughputs(servers, n_blocks), len)
}

/// Returns the span that the server of `own` should move to, if the throughput of the weakest block is less than
/// `balance_quality` of that after this server and then the others have moved to the weakest blocks. A server that alone
/// holds some blocks stays.
pub fn better_span(
    own: ServerThroughput,
    others: &[ServerThroughput],
    n_blocks: usize,
    balance_quality: f64,
) -> Option<Span> {
    let all: Vec<ServerThroughput> = others.iter().copied().chain([own]).collect();
    let now = least(&block_throughputs(&all, n_blocks));
    let largest = all.iter().map(|server| server.throughput).fold(0.0, f64::max);
    let without = block_throughputs(others, n_blocks);
    if now > EPSILON * largest && least(&without) <= EPSILON * largest {
        return None;
    }
    let target = weakest(&without, own.span.len())?;
    if target == own.span {
        return None;
    }
    let mut servers: Vec<ServerThroughput> = others.to_vec();
    servers.push(ServerThroughput { span: target, ..own });
    rebalance(&mut servers, n_blocks);
    let balanced = least(&block_throughputs(&servers, n_blocks));
    (balanced > EPSILON * largest && now < balance_quality * balanced).then_some(target)
}

/// Moves every server in turn to the weakest blocks, until none moves.
fn rebalance(servers: &mut [ServerThroughput], n_blocks: usize) {
    for _ in 0..MAX_ROUNDS {
        let mut has_moved = false;
        for i in 0..servers.len() {
            let mut others = block_throughputs(servers, n_blocks);
            add(&mut others, servers[i], -1.0);
            let Some(target) = weakest(&others, servers[i].span.len()) else { continue };
            has_moved |= target != servers[i].span;
            servers[i].span = target;
        }
        if !has_moved {
            return;
        }
    }
}

/// Returns the tokens per second through each block.
fn block_throughputs(servers: &[ServerThroughput], n_blocks: usize) -> Vec<f64> {
    let mut sums = vec![0.0; n_blocks];
    servers.iter().for_each(|&server| add(&mut sums, server, 1.0));
    sums
}

fn add(sums: &mut [f64], server: ServerThroughput, sign: f64) {
    // Announced spans are not trusted and may lie outside the model.
    let end = server.span.end().min(sums.len());
    for sum in &mut sums[server.span.start().min(end)..end] {
        *sum = (*sum + sign * server.throughput).max(0.0);
    }
}

fn least(sums: &[f64]) -> f64 {
    sums.iter().copied().fold(f64::INFINITY, f64::min)
}

fn weakest(sums: &[f64], len: usize) -> Option<Span> {
    let len = len.min(sums.len());
    let sorted = |start: usize| {
        let mut window = sums[start..start + len].to_vec();
        window.sort_unstable_by(f64::total_cmp);
        window
    };
    let starts = 0..=sums.len() - len;
    let order = |a: &Vec<f64>, b: &Vec<f64>| {
        let pairs = a.iter().zip(b).map(|(a, b)| a.total_cmp(b));
        pairs.fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then)
    };
    let start = starts.min_by(|&a, &b| order(&sorted(a), &sorted(b)))?;
    Span::new(start, start + len).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(span: &str, throughput: f64) -> ServerThroughput {
        ServerThroughput { span: span.parse().expect("a span"), throughput }
    }

    fn check_new(servers: &[ServerThroughput], len: usize, expected: &str) {
        assert_eq!(weakest_span(servers, 10, len).expect("a span").to_string(), expected);
    }

    #[test]
    fn new_server_takes_the_weakest_blocks() {
        check_new(&[], 4, "0:4");
        check_new(&[], 20, "0:10");
        check_new(&[server("0:4", 1.0)], 4, "4:8");
        check_new(&[server("0:6", 1.0)], 6, "4:10");
        check_new(&[server("0:10", 1.0), server("0:5", 2.0)], 5, "5:10");
        // Two weak blocks count more than one, if their weakest are equal.
        check_new(&[server("0:3", 1.0), server("5:10", 1.0)], 3, "2:5");
    }

    #[test]
    fn spans_outside_the_model_are_ignored() {
        check_new(&[server("0:18446744073709551615", 1.0), server("20:30", 1.0)], 4, "0:4");
    }

    #[test]
    fn throughput_is_through_all_blocks_of_a_server() {
        let span = "0:4".parse().expect("a span");
        assert_eq!(ServerThroughput::new(span, 1e-3, 1.0).throughput, 250.0);
        assert_eq!(ServerThroughput::new(span, 0.0, 2e-3).throughput, 125.0);
    }

    fn check_move(own: ServerThroughput, others: &[ServerThroughput], expected: Option<&str>) {
        let found = better_span(own, others, 10, BALANCE_QUALITY).map(|span| span.to_string());
        assert_eq!(found.as_deref(), expected);
    }

    #[test]
    fn only_server_of_some_blocks_stays() {
        check_move(server("0:5", 1.0), &[server("5:10", 1.0)], None);
        check_move(server("0:10", 1.0), &[], None);
    }

    #[test]
    fn redundant_server_moves_to_uncovered_blocks() {
        check_move(server("0:5", 1.0), &[server("0:5", 1.0)], Some("5:10"));
        check_move(server("0:5", 1.0), &[server("0:5", 1.0), server("5:10", 1.0), server("5:10", 1.0)], None);
    }

    #[test]
    fn servers_move_for_large_imbalance_only() {
        // Three servers of the first half and one of the second: a throughput of 1 of a possible 2.
        let others = [server("0:5", 1.0), server("0:5", 1.0), server("5:10", 1.0)];
        check_move(server("0:5", 1.0), &others, Some("5:10"));
        // A throughput of 0.9 of a possible 1.
        check_move(server("0:5", 0.1), &[server("0:5", 1.0), server("5:10", 0.9)], None);
    }

    #[test]
    fn repeated_moves_end_in_balance() {
        let mut servers: Vec<ServerThroughput> = (0..8).map(|i| server("0:5", 1.0 + f64::from(i % 3) / 4.0)).collect();
        let mut moves = 0;
        while let Some((i, span)) = (0..servers.len()).find_map(|i| {
            let others: Vec<ServerThroughput> =
                servers.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, s)| *s).collect();
            better_span(servers[i], &others, 10, BALANCE_QUALITY).map(|span| (i, span))
        }) {
            servers[i].span = span;
            moves += 1;
            assert!(moves < 50, "moves do not end: {servers:?}");
        }
        let sums = block_throughputs(&servers, 10);
        let mean = sums.iter().sum::<f64>() / sums.len() as f64;
        assert!(least(&sums) > BALANCE_QUALITY * mean, "{sums:?} after {moves} moves");
    }
}
