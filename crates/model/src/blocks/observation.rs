//! Recording of the hidden states that a server would receive.

use sepal_blocks::BlockStack;
use sepal_core::{Ragged, Span, Want};
use sepal_nn::Tunable;
use sepal_remote::with_noise;
use tch::Tensor;

use super::BlocksError;
use super::local::{run_span, run_to_next};

/// Observer before one block of this process.
#[derive(Debug)]
pub(super) struct Observation {
    block_idx: usize,
    noise: f64,
    /// Hidden states of the tokens of each forward pass, `[n_tokens, hidden]`.
    states: Vec<Tensor>,
}

impl Observation {
    pub(super) fn new(block_idx: usize, noise: f64) -> Self {
        Self { block_idx, noise, states: Vec::new() }
    }

    pub(super) fn into_states(self) -> Vec<Tensor> {
        self.states
    }

    /// Runs the blocks before the observer, records, and runs the others on the recorded states.
    pub(super) fn forward(
        &mut self,
        stack: &BlockStack,
        tunables: &[Tunable],
        prefix: Option<&Tensor>,
        tokens: &Tensor,
        rows: &Ragged,
        want: Want,
    ) -> Result<Tensor, BlocksError> {
        let all = stack.span();
        let (prefix, tokens) = match Span::new(all.start(), self.block_idx) {
            // No block stands before the observer.
            Err(_) => (prefix.map(Tensor::shallow_clone), tokens.shallow_clone()),
            Ok(first) => run_to_next(stack, first, tunables, prefix, tokens, rows)?,
        };
        let tokens = if self.noise > 0.0 { with_noise(&tokens, self.noise)? } else { tokens };
        self.states.push(tokens.detach());
        match Span::new(self.block_idx.max(all.start()), all.end()) {
            Ok(rest) => run_span(stack, rest, tunables, prefix.as_ref(), &tokens, rows, want),
            Err(source) => Err(BlocksError::Observation { source }),
        }
    }
}
