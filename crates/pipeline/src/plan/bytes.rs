//! What crosses the wire in a step, counted from the shapes of what is sent.

use sepal_config::spec::{Spec, SwarmSpec};
use sepal_core::{DType, Span};
use sepal_plugin::TuningMode;
use sepal_swarm::SwarmPath;
use serde::Serialize;

use super::{DataPlan, TimePlan};
use crate::error::AssembleError;
use crate::frozen_model::FrozenModel;

/// What crosses the wire in a step of the mean size. Envelopes, pulses and answers without tensors are not in the count.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BytesPlan {
    /// How many servers in a row it is counted for.
    pub servers: usize,
    /// Whether that is what the route has; if not, it is taken for one server of all blocks.
    pub of_the_route: bool,
    /// Counted from the shapes: bytes that go up.
    pub counted_up: u64,
    /// Counted from the shapes: bytes that come down.
    pub counted_down: u64,
    /// Counted from the shapes: what each further server in a row adds to either.
    pub counted_per_server: u64,
    /// The mean of the steps of the probe.
    pub measured_up: Option<u64>,
    /// The mean of the steps of the probe.
    pub measured_down: Option<u64>,
}

/// The shapes of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    n_blocks: usize,
    hidden: usize,
    prompts: usize,
    /// Tunables of one block.
    tunables: usize,
    /// Batches of a step, tokens and rows of each.
    batches: usize,
    tokens: usize,
    rows: usize,
    /// Whether gradients of the tokens are wanted: they come out of blocks with prompts of their own.
    is_behind_others: bool,
}

impl Step {
    pub(super) fn new(
        spec: &Spec,
        frozen: &FrozenModel,
        tuning: &dyn TuningMode,
        data: &DataPlan,
    ) -> Result<Self, AssembleError> {
        let config = frozen.checkpoint.config();
        let tunables = tuning.tunables(frozen.span()?).map_err(AssembleError::Tuning)?;
        let numbers: usize = tunables.iter().map(|named| named.tensor.numel()).sum();
        Ok(Self {
            n_blocks: config.n_blocks,
            hidden: config.hidden,
            prompts: tuning.pre_seq_len(),
            tunables: numbers / config.n_blocks,
            batches: spec.train.accumulate,
            tokens: data.mean_batch_tokens.round() as usize,
            rows: spec.loader.batch_size.min(data.train_rows),
            is_behind_others: spec.model.local_blocks > 0,
        })
    }

    /// Positions of a batch of the mean size.
    pub(super) fn positions(&self) -> usize {
        self.prompts + self.tokens
    }

    /// What crosses the wire, through servers of these spans.
    pub(super) fn bytes(&self, spec: &Spec, spans: Option<Vec<Span>>, time: Option<&TimePlan>) -> Option<BytesPlan> {
        let first = spec.model.local_blocks;
        if matches!(spec.swarm, SwarmSpec::None(_)) || first >= self.n_blocks {
            return None;
        }
        let of_the_route = spans.as_ref().is_some_and(|spans| !spans.is_empty());
        let servers = spans.map_or(1, |spans| spans.len()).max(1);
        let wire = spec.wire_dtype();
        let is_star = spec.swarm.remote().path == SwarmPath::Star;
        let [counted_up, counted_down] = self.count(wire, servers, self.n_blocks - first, is_star);
        let more = self.count(wire, servers + 1, self.n_blocks - first, is_star);
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

    /// Up and down, for a batch that goes as one micro-batch: hidden states of all positions between servers, those of the
    /// last tokens behind the last, the same for gradients on the way back, where the first server gives that of the
    /// prompts alone; and the tunables once, with their gradients for each batch.
    fn count(&self, wire: DType, servers: usize, blocks: usize, is_star: bool) -> [u64; 2] {
        let bytes = |dtype: DType, numbers: usize| dtype.n_bytes(numbers).unwrap_or(0) as u64;
        let states = |positions: usize| bytes(wire, positions * self.hidden);
        let tunables = bytes(wire.for_parameters(), self.tunables * blocks);
        let between = if is_star { servers as u64 - 1 } else { 0 };
        let (all, last) = (states(self.positions()), states(self.rows));
        let first = match self.is_behind_others {
            true => all,
            false => bytes(wire.for_parameters(), self.prompts * self.hidden),
        };
        let batches = self.batches as u64;
        let up = batches * (all + last + 2 * between * all) + tunables;
        let down = batches * (last + first + 2 * between * all + tunables);
        [up, down]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The usual step of docs/performance.md: 32 sentences of 426 tokens, 16 deep prompts, bf16 on the wire.
    fn check(n_blocks: usize, hidden: usize, servers: usize, is_star: bool, expected_mb: [u64; 2]) {
        let step = Step {
            n_blocks,
            hidden,
            prompts: 16,
            tunables: 16 * hidden,
            batches: 1,
            tokens: 426,
            rows: 32,
            is_behind_others: false,
        };
        let counted = step.count(DType::Bf16, servers, n_blocks, is_star);
        assert_eq!(counted.map(|bytes| (bytes as f64 / 1e6).round() as u64), expected_mb);
    }

    #[test]
    fn a_step_takes_what_the_table_says() {
        check(32, 4096, 2, true, [15, 12]);
        check(32, 4096, 2, false, [8, 5]);
        check(80, 8192, 4, true, [72, 65]);
        check(80, 8192, 4, false, [29, 22]);
    }
}
