//! Division of a batch into micro-batches, learned from measured times.

use sepal_core::Ragged;
use sepal_route::{Hop, Router};
use sepal_swarm::RemoteOptions;
use sepal_wire::Limits;

use crate::error::RemoteError;
use crate::expectation::ModelExpectation;

/// Numbers of parts that are tried, in this order.
const PARTS: [usize; 5] = [1, 2, 4, 8, 16];
/// Relative time below which a finer division is preferred.
const MIN_GAIN: f64 = 0.97;
/// Measurements of a division before a finer one is tried. The first may include opening connections.
const MIN_MEASUREMENTS: usize = 2;
/// Weight of a slower measurement against those before it.
const WEIGHT: f64 = 0.3;
/// Calls after which everything is measured anew, because other clients may have come or gone.
const MAX_CALLS: usize = 500;
/// Maximum size of the hidden states of one micro-batch. Other messages of the connection wait behind it, and a probe
/// that waits too long makes the server look hung. (A backward pass without a tape sends twice as much.)
const MAX_MICRO_BATCH_BYTES: usize = 16_000_000;

/// Smallest stated number of positions that divides batches. No useful server accepts fewer, and smaller micro-batches would
/// serve it only to delay a run.
const MIN_STATED_POSITIONS: usize = 64;

/// Batch divided into micro-batches.
pub(crate) struct Division {
    /// Rows of each micro-batch.
    pub(crate) groups: Vec<Vec<usize>>,
    /// Route of each micro-batch; empty if it has to wait for servers.
    pub(crate) routes: Vec<Vec<Hop>>,
    /// Index into [`PARTS`] if the division was chosen by measurements.
    pub(crate) choice: Option<usize>,
}

/// Measured times of divisions. A plan predicts the gain of a finer division as if each server had a machine of its own;
/// measurements show if that is true.
#[derive(Debug, Default)]
pub(crate) struct MicroBatching {
    /// Changes among the servers at the time of the measurements.
    changes: u64,
    calls: usize,
    measured: [Measured; PARTS.len()],
    /// Positions of a batch that all servers accept, as they state it.
    stated_positions: Option<usize>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Measured {
    seconds_per_token: f64,
    count: usize,
}

impl MicroBatching {
    /// Micro-batching for servers with these limits.
    pub(crate) fn new(limits: impl Iterator<Item = Limits>) -> Self {
        let stated = limits.map(|limits| limits.max_tokens as usize).filter(|&stated| stated >= MIN_STATED_POSITIONS);
        Self { stated_positions: stated.min(), ..Self::default() }
    }

    /// Divides a batch and plans the routes. Every micro-batch computes the prefix, so a finer division is only chosen
    /// if servers that work at the same time gain more than that.
    pub(crate) fn divide(
        &mut self,
        options: &RemoteOptions,
        expected: &ModelExpectation,
        router: &Router,
        prefix_len: usize,
        rows: &Ragged,
    ) -> Result<Division, RemoteError> {
        let max_positions = self.max_positions(options, expected.hidden);
        let span = expected.remote_span(options)?;
        let groups = |choice: usize| {
            let max_tokens = prefix_len + rows.n_tokens().div_ceil(PARTS[choice]);
            // A finer division would compute more prefixes than text.
            (choice == 0 || max_tokens > 2 * prefix_len)
                .then(|| rows.micro_batches(prefix_len, max_tokens.min(max_positions)))
        };
        let plan = |groups: &[Vec<usize>]| {
            let sizes: Vec<usize> = groups.iter().map(|group| prefix_len + rows.select(group).n_tokens()).collect();
            router.plan(span, &sizes)
        };
        let mut planned = [const { None }; PARTS.len()];
        let predict = |choice: usize| {
            let groups = groups(choice)?;
            let plan = plan(&groups).ok()?;
            planned[choice] = Some((groups, plan.routes));
            Some(plan.duration.as_secs_f64() / rows.n_tokens() as f64)
        };
        let is_adaptive = !options.deterministic && router.len() > 1;
        let choice = is_adaptive.then(|| self.choose(router.changes(), predict));
        if let Some((groups, routes)) = choice.and_then(|choice| planned[choice].take()) {
            return Ok(Division { groups, routes, choice });
        }
        let groups = groups(0).unwrap_or_default();
        let routes = plan(&groups).map_or_else(|_| vec![Vec::new(); groups.len()], |plan| plan.routes);
        Ok(Division { groups, routes, choice: None })
    }

    /// Returns an index into [`PARTS`]. `changes` counts changes among the servers; `predict` returns the planned seconds
    /// per token, or `None` if the batch cannot be divided so finely.
    fn choose(&mut self, changes: u64, mut predict: impl FnMut(usize) -> Option<f64>) -> usize {
        if changes != self.changes || self.calls >= MAX_CALLS {
            *self = Self { changes, stated_positions: self.stated_positions, ..Self::default() };
        }
        self.calls += 1;
        let mut best: Option<(usize, f64)> = None;
        // Ratio of measured to predicted time of the last measured division. A finer one is expected to have the same.
        let mut slowdown = None;
        let mut untried: Vec<(usize, f64)> = Vec::new();
        for (i, measured) in self.measured.iter().enumerate() {
            let Some(predicted) = predict(i) else { break };
            match (measured.count, slowdown) {
                // The coarsest division is measured before any other.
                (0, None) => return i,
                (0, Some(slowdown)) => {
                    untried.push((i, predicted * slowdown));
                    continue;
                }
                (1..MIN_MEASUREMENTS, _) => return i,
                _ => slowdown = Some(measured.seconds_per_token / predicted),
            }
            if best.is_none_or(|(_, time)| measured.seconds_per_token < time * MIN_GAIN) {
                best = Some((i, measured.seconds_per_token));
            }
        }
        let Some((best, time)) = best else { return 0 };
        untried.iter().find(|(_, predicted)| *predicted < time * MIN_GAIN).map_or(best, |&(i, _)| i)
    }

    /// Returns the maximum number of positions of one micro-batch.
    fn max_positions(&self, options: &RemoteOptions, hidden: usize) -> usize {
        max_positions(options, hidden).min(self.stated_positions.unwrap_or(usize::MAX))
    }

    /// Records the measured time of a division.
    pub(crate) fn record(&mut self, choice: usize, seconds_per_token: f64) {
        let measured = &mut self.measured[choice];
        let previous = measured.seconds_per_token;
        let is_better = measured.count == 0 || seconds_per_token < previous;
        measured.seconds_per_token =
            if is_better { seconds_per_token } else { previous + WEIGHT * (seconds_per_token - previous) };
        measured.count += 1;
    }
}

/// Returns the maximum number of positions of one micro-batch by the options alone.
fn max_positions(options: &RemoteOptions, hidden: usize) -> usize {
    let bytes = options.dtype().n_bytes(hidden).unwrap_or(usize::MAX);
    options.micro_batch_tokens.min(MAX_MICRO_BATCH_BYTES / bytes.max(1))
}

#[cfg(test)]
mod tests {
    use sepal_core::DType;

    use super::*;

    /// Checks the division that is chosen in the end, by predicted and measured time per number of parts.
    fn check(predicted: impl Fn(usize) -> f64, measured: impl Fn(usize) -> f64, expected: usize) {
        let mut micro_batching = MicroBatching::default();
        let mut chosen = Vec::new();
        for _ in 0..40 {
            let choice = micro_batching.choose(1, |i| Some(predicted(PARTS[i])));
            micro_batching.record(choice, measured(PARTS[choice]));
            chosen.push(PARTS[choice]);
        }
        assert_eq!(chosen[0], 1, "the coarsest division first");
        assert!(chosen[12..].iter().all(|&parts| parts == expected), "{chosen:?}");
    }

    #[test]
    fn servers_on_separate_machines_are_all_used() {
        check(|parts| 1.0 / parts.min(8) as f64, |parts| 0.9 / parts.min(8) as f64, 8);
    }

    #[test]
    fn servers_on_one_machine_do_not_compete() {
        check(|parts| 1.0 / parts as f64, |parts| parts as f64, 1);
    }

    #[test]
    fn finer_division_without_predicted_gain_is_not_tried() {
        let mut micro_batching = MicroBatching::default();
        for _ in 0..10 {
            assert_eq!(micro_batching.choose(1, |_| Some(1.0)), 0);
            micro_batching.record(0, 1.0);
        }
    }

    #[test]
    fn small_batches_and_server_changes_limit_the_choice() {
        let mut micro_batching = MicroBatching::default();
        for _ in 0..5 {
            assert_eq!(micro_batching.choose(1, |i| (i == 0).then_some(1.0)), 0);
            micro_batching.record(0, 1.0);
        }
        assert_eq!(micro_batching.choose(1, |i| Some(1.0 / PARTS[i] as f64)), 1);
        micro_batching.record(1, 0.5);
        for _ in 0..5 {
            micro_batching.record(1, 0.5);
        }
        assert_eq!(micro_batching.choose(1, |i| (i == 0).then_some(1.0)), 0, "the batch is too small for the best one");
        assert_eq!(micro_batching.choose(2, |i| Some(1.0 / PARTS[i] as f64)), 0, "another server has arrived");
    }

    #[test]
    fn micro_batch_size_stays_under_16_mb() {
        let check = |micro_batch_tokens, hidden, dtype, expected| {
            let options = RemoteOptions { micro_batch_tokens, wire_dtype: Some(dtype), ..RemoteOptions::default() };
            assert_eq!(max_positions(&options, hidden), expected, "{hidden} as {dtype}");
        };
        check(2048, 576, DType::F32, 2048);
        check(8192, 576, DType::F32, 6944);
        check(2048, 8192, DType::F32, 488);
        check(2048, 8192, DType::Bf16, 976);
        check(2048, 8192, DType::Q8, 1838);
        check(100, 8192, DType::Bf16, 100);
        // No row fits: each becomes a micro-batch of its own.
        check(2048, 5_000_000, DType::F32, 0);
    }
    #[test]
    fn micro_batches_fit_the_limits_of_all_servers() {
        let limits = |max_tokens: &[u32]| {
            let limits = max_tokens.iter().map(|&max_tokens| Limits { max_tokens, ..Limits::default() });
            MicroBatching::new(limits).max_positions(&RemoteOptions::default(), 8)
        };
        assert_eq!(limits(&[16_384, 3000]), 2048);
        assert_eq!(limits(&[16_384, 500, 700]), 500);
        assert_eq!(limits(&[16_384, 1, 0]), 2048, "useless limits divide no batch");
        assert_eq!(limits(&[]), 2048);
    }
}
