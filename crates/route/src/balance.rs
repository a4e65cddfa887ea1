//! Which blocks a server should hold: those that the swarm lacks most.
//!
//! The idea is that of Petals' block selection: what a swarm can do is what its weakest block can do, so a newcomer goes
//! where the blocks are weakest, and one that is there moves if the swarm would gain enough by it.

use sepal_core::Span;

/// How good the balance must be to be left alone: what the weakest block can do now, over what it could if servers moved.
pub const BALANCE_QUALITY: f64 = 0.75;
/// What counts as nothing, relative to the largest throughput.
const EPSILON: f64 = 1e-3;
/// Rounds of others' moves that are thought through.
const ROUNDS: usize = 50;

/// What one server does for the swarm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ServerThroughput {
    /// The blocks that it holds.
    pub span: Span,
    /// Tokens per second through all of them.
    pub throughput: f64,
}

impl ServerThroughput {
    /// Of a server that takes `rate` seconds per token and block, or `typical` if it has not been measured (`rate` 0).
    pub fn new(span: Span, rate: f64, typical: f64) -> Self {
        let rate = if rate.is_finite() && rate > 0.0 { rate } else { typical };
        Self { span, throughput: 1.0 / (rate * span.len() as f64) }
    }
}

/// The run of `len` blocks that is weakest: its weakest block is as weak as any, then its second weakest, and so on; of
/// equals the first. All blocks if the model has no more.
pub fn weakest_span(shares: &[ServerThroughput], n_blocks: usize, len: usize) -> Option<Span> {
    weakest(&throughputs(shares, n_blocks), len)
}

/// Where the server of `own` should move, if the swarm would gain enough: if the weakest block can do less than
/// `balance_quality` of what it could once this server and then others had moved to where they are needed most. A
/// server whose leaving would leave blocks to nobody stays.
pub fn better_span(
    own: ServerThroughput,
    others: &[ServerThroughput],
    n_blocks: usize,
    balance_quality: f64,
) -> Option<Span> {
    let all: Vec<ServerThroughput> = others.iter().copied().chain([own]).collect();
    let now = least(&throughputs(&all, n_blocks));
    let largest = all.iter().map(|share| share.throughput).fold(0.0, f64::max);
    let without = throughputs(others, n_blocks);
    if now > EPSILON * largest && least(&without) <= EPSILON * largest {
        return None;
    }
    let target = weakest(&without, own.span.len())?;
    if target == own.span {
        return None;
    }
    let mut shares: Vec<ServerThroughput> = others.to_vec();
    shares.push(ServerThroughput { span: target, ..own });
    settle(&mut shares, n_blocks);
    let then = least(&throughputs(&shares, n_blocks));
    (then > EPSILON * largest && now < balance_quality * then).then_some(target)
}

/// Lets every server in turn go where it is needed most, until none moves.
fn settle(shares: &mut [ServerThroughput], n_blocks: usize) {
    for _ in 0..ROUNDS {
        let mut has_moved = false;
        for i in 0..shares.len() {
            let mut rest = throughputs(shares, n_blocks);
            add(&mut rest, shares[i], -1.0);
            let Some(target) = weakest(&rest, shares[i].span.len()) else { continue };
            has_moved |= target != shares[i].span;
            shares[i].span = target;
        }
        if !has_moved {
            return;
        }
    }
}

/// Tokens per second through each block.
fn throughputs(shares: &[ServerThroughput], n_blocks: usize) -> Vec<f64> {
    let mut sums = vec![0.0; n_blocks];
    shares.iter().for_each(|&share| add(&mut sums, share, 1.0));
    sums
}

fn add(sums: &mut [f64], share: ServerThroughput, sign: f64) {
    // A span may be whatever somebody says it is.
    let end = share.span.end().min(sums.len());
    for sum in &mut sums[share.span.start().min(end)..end] {
        *sum = (*sum + sign * share.throughput).max(0.0);
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

    fn share(span: &str, throughput: f64) -> ServerThroughput {
        ServerThroughput { span: span.parse().expect("a span"), throughput }
    }

    fn check_new(shares: &[ServerThroughput], len: usize, expected: &str) {
        assert_eq!(weakest_span(shares, 10, len).expect("a span").to_string(), expected);
    }

    #[test]
    fn a_newcomer_goes_where_the_swarm_is_weakest() {
        check_new(&[], 4, "0:4");
        check_new(&[], 20, "0:10");
        check_new(&[share("0:4", 1.0)], 4, "4:8");
        check_new(&[share("0:6", 1.0)], 6, "4:10");
        check_new(&[share("0:10", 1.0), share("0:5", 2.0)], 5, "5:10");
        // Two weak blocks count more than one that is weaker still only once it is tied.
        check_new(&[share("0:3", 1.0), share("5:10", 1.0)], 3, "2:5");
    }

    #[test]
    fn spans_beyond_the_model_cost_nothing() {
        check_new(&[share("0:18446744073709551615", 1.0), share("20:30", 1.0)], 4, "0:4");
    }

    #[test]
    fn speed_is_throughput_through_all_blocks_held() {
        let span = "0:4".parse().expect("a span");
        assert_eq!(ServerThroughput::new(span, 1e-3, 1.0).throughput, 250.0);
        assert_eq!(ServerThroughput::new(span, 0.0, 2e-3).throughput, 125.0);
    }

    fn check_move(own: ServerThroughput, others: &[ServerThroughput], expected: Option<&str>) {
        let found = better_span(own, others, 10, BALANCE_QUALITY).map(|span| span.to_string());
        assert_eq!(found.as_deref(), expected);
    }

    #[test]
    fn who_is_needed_stays() {
        check_move(share("0:5", 1.0), &[share("5:10", 1.0)], None);
        check_move(share("0:10", 1.0), &[], None);
    }

    #[test]
    fn who_doubles_others_fills_a_hole() {
        check_move(share("0:5", 1.0), &[share("0:5", 1.0)], Some("5:10"));
        check_move(share("0:5", 1.0), &[share("0:5", 1.0), share("5:10", 1.0), share("5:10", 1.0)], None);
    }

    #[test]
    fn a_little_imbalance_is_left_alone_and_a_large_one_is_not() {
        // 3 servers of the first half and 1 of the second: its blocks can do 1 where 2 are possible.
        let others = [share("0:5", 1.0), share("0:5", 1.0), share("5:10", 1.0)];
        check_move(share("0:5", 1.0), &others, Some("5:10"));
        // 0.9 where 1 is possible.
        check_move(share("0:5", 0.1), &[share("0:5", 1.0), share("5:10", 0.9)], None);
    }

    #[test]
    fn everyone_moving_by_these_rules_ends_in_a_balance() {
        let mut shares: Vec<ServerThroughput> = (0..8).map(|i| share("0:5", 1.0 + f64::from(i % 3) / 4.0)).collect();
        let mut moves = 0;
        while let Some((i, span)) = (0..shares.len()).find_map(|i| {
            let others: Vec<ServerThroughput> =
                shares.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, s)| *s).collect();
            better_span(shares[i], &others, 10, BALANCE_QUALITY).map(|span| (i, span))
        }) {
            shares[i].span = span;
            moves += 1;
            assert!(moves < 50, "it goes on for ever: {shares:?}");
        }
        let sums = throughputs(&shares, 10);
        let mean = sums.iter().sum::<f64>() / sums.len() as f64;
        assert!(least(&sums) > BALANCE_QUALITY * mean, "{sums:?} after {moves} moves");
    }
}
