//! Bytes on the wire in a step, counted from the shapes of the messages.

use sepal_config::spec::{Spec, SwarmSpec};
use sepal_core::{DType, ModelConfig, Span};
use sepal_swarm::SwarmPath;
use serde::Serialize;

use super::{DataPlan, TimePlan, Trained};

/// Bytes on the wire in a step of the mean size, without envelopes, pings and responses without tensors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BytesPlan {
    /// Number of servers in the counted chain.
    pub servers: usize,
    /// True if the chain is that of the route; otherwise one server with all blocks is assumed.
    pub of_the_route: bool,
    /// Counted: bytes sent.
    pub counted_up: u64,
    /// Counted: bytes received.
    pub counted_down: u64,
    /// Counted: bytes in each direction for each further server in the chain.
    pub counted_per_server: u64,
    /// Measured: mean of the probe's steps.
    pub measured_up: Option<u64>,
    /// Measured: mean of the probe's steps.
    pub measured_down: Option<u64>,
}

/// Sizes of the messages in a step.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    n_blocks: usize,
    hidden: usize,
    prompts: usize,
    /// Values of the tunables of the blocks that run on servers.
    tunables: usize,
    batches: usize,
    tokens: usize,
    rows: usize,
    /// True if servers return the gradients of the tokens, which local blocks with prompts need.
    is_behind_others: bool,
}

impl Step {
    /// Step of the mean size of a run.
    pub fn new(spec: &Spec, config: &ModelConfig, trained: &Trained, data: &DataPlan) -> Self {
        let first_remote = spec.model.local_blocks;
        let tunables: u64 = trained.tunables.iter().map(|tensor| tensor.numbers_from(first_remote)).sum();
        Self {
            n_blocks: config.n_blocks,
            hidden: config.hidden,
            prompts: trained.prompts,
            tunables: usize::try_from(tunables).unwrap_or(usize::MAX),
            batches: spec.train.accumulate,
            tokens: data.mean_batch_tokens.round() as usize,
            rows: spec.loader.batch_size.min(data.train_rows),
            is_behind_others: spec.model.local_blocks > 0,
        }
    }

    /// Step of one batch with deep prompts in every block, and all blocks on servers.
    pub fn with_deep_prompts(config: &ModelConfig, prompts: usize, tokens: usize, rows: usize) -> Self {
        let &ModelConfig { n_blocks, hidden, .. } = config;
        let tunables = prompts * hidden * n_blocks;
        Self { n_blocks, hidden, prompts, tunables, batches: 1, tokens, rows, is_behind_others: false }
    }

    /// Positions of a batch of the mean size.
    pub fn positions(&self) -> usize {
        self.prompts + self.tokens
    }

    /// Counts the bytes of the step on the wire, through the servers of the `spans`; `None` without servers.
    pub fn bytes(&self, spec: &Spec, spans: Option<Vec<Span>>, time: Option<&TimePlan>) -> Option<BytesPlan> {
        let first = spec.model.local_blocks;
        if matches!(spec.swarm, SwarmSpec::None(_)) || first >= self.n_blocks {
            return None;
        }
        let of_the_route = spans.as_ref().is_some_and(|spans| !spans.is_empty());
        let servers = spans.map_or(1, |spans| spans.len()).max(1);
        let wire = spec.wire_dtype();
        let is_star = spec.swarm.remote().path == SwarmPath::Star;
        let [counted_up, counted_down] = self.count(wire, servers, is_star);
        let more = self.count(wire, servers + 1, is_star);
        Some(BytesPlan {
            servers,
            of_the_route,
            counted_up,
            counted_down,
            counted_per_server: more[0] - counted_up,
            measured_up: time.map(|time| time.step_bytes_up),
            measured_down: time.map(|time| time.step_bytes_down),
        })
    }

    /// Counts sent and received bytes of a batch in one micro-batch: hidden states of all positions between servers and
    /// of the last tokens after the last server; gradients of the same size in the backward pass, where the first
    /// server returns those of the prompts alone; the tunables once, and their gradients for each batch.
    pub fn count(&self, wire: DType, servers: usize, is_star: bool) -> [u64; 2] {
        let bytes = |dtype: DType, numbers: usize| dtype.n_bytes(numbers).unwrap_or(0) as u64;
        let states = |positions: usize| bytes(wire, positions * self.hidden);
        let tunables = bytes(wire.for_parameters(), self.tunables);
        let between = if is_star { servers as u64 - 1 } else { 0 };
        let (all, last) = (states(self.positions()), states(self.rows));
        let prompts = bytes(wire.for_parameters(), self.prompts * self.hidden);
        let first = if self.is_behind_others { all } else { prompts };
        let batches = self.batches as u64;
        let up = batches * (all + last + 2 * between * all) + tunables;
        let down = batches * (last + first + 2 * between * all + tunables);
        [up, down]
    }
}

#[cfg(test)]
mod tests {
    use sepal_core::Family;

    use super::*;

    /// Step of docs/performance.md: 32 sentences of 426 tokens, 16 deep prompts, bf16 on the wire.
    fn check(n_blocks: usize, hidden: usize, servers: usize, is_star: bool, expected_mb: [u64; 2]) {
        let config = ModelConfig::plain(Family::Llama, n_blocks, hidden, 32, 4 * hidden, 32_000);
        let step = Step::with_deep_prompts(&config, 16, 426, 32);
        let counted = step.count(DType::Bf16, servers, is_star);
        assert_eq!(counted.map(|bytes| (bytes as f64 / 1e6).round() as u64), expected_mb);
    }

    #[test]
    fn counted_bytes_match_the_documented_table() {
        check(32, 4096, 2, true, [15, 12]);
        check(32, 4096, 2, false, [8, 5]);
        check(80, 8192, 4, true, [72, 65]);
        check(80, 8192, 4, false, [29, 22]);
    }
}
