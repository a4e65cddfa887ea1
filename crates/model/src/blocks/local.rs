//! Blocks that run in this process.

use std::cell::RefCell;

use sepal_blocks::BlockStack;
use sepal_core::{Ragged, Span, Want};
use sepal_nn::Tunable;
use sepal_remote::ServerUsage;
use sepal_swarm::Traffic;
use tch::Tensor;

use super::observation::Observation;
use super::{Blocks, BlocksError, BlocksSession};

/// All blocks of a model in this process.
#[derive(Debug)]
pub struct LocalBlocks {
    stack: BlockStack,
    traffic: Traffic,
    observation: RefCell<Option<Observation>>,
}

impl LocalBlocks {
    /// Wraps the blocks of a model, all of them.
    pub fn new(stack: BlockStack) -> Self {
        Self { stack, traffic: Traffic::default(), observation: RefCell::default() }
    }

    /// Records the hidden states of tokens before `block_idx` in forward passes, as a server that holds the blocks from there
    /// on receives them: with `noise`, as [`RemoteOptions::noise`](sepal_remote::RemoteOptions::noise) adds it, which also
    /// reaches the blocks after it.
    pub fn observe(&self, block_idx: usize, noise: f64) {
        *self.observation.borrow_mut() = Some(Observation::new(block_idx, noise));
    }

    /// Ends the recording. Returns the hidden states of each forward pass, `[n_tokens, hidden]`.
    pub fn take_observed(&self) -> Vec<Tensor> {
        self.observation.take().map(Observation::into_states).unwrap_or_default()
    }
}

impl Blocks for LocalBlocks {
    fn tune(&self, tunables: Vec<Tunable>) -> Result<Box<dyn BlocksSession + '_>, BlocksError> {
        // Refuses what the blocks do not take before the first batch.
        self.stack.check_tunables(&tunables).map_err(BlocksError::Local)?;
        Ok(Box::new(LocalSession { stack: &self.stack, observation: &self.observation, tunables }))
    }

    fn backward(&self, loss: &Tensor) -> Result<(), BlocksError> {
        Ok(loss.f_backward()?)
    }

    fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    fn description(&self) -> String {
        format!("blocks {} in this process", self.stack.span())
    }

    fn n_servers(&self) -> usize {
        0
    }

    fn server_usage(&self) -> Vec<ServerUsage> {
        Vec::new()
    }

    fn as_local(&self) -> Option<&LocalBlocks> {
        Some(self)
    }
}

struct LocalSession<'a> {
    stack: &'a BlockStack,
    observation: &'a RefCell<Option<Observation>>,
    tunables: Vec<Tunable>,
}

impl BlocksSession for LocalSession<'_> {
    fn forward(
        &self,
        prefix: Option<&Tensor>,
        tokens: &Tensor,
        rows: &Ragged,
        want: Want,
    ) -> Result<Tensor, BlocksError> {
        match self.observation.borrow_mut().as_mut() {
            Some(observation) => observation.forward(self.stack, &self.tunables, prefix, tokens, rows, want),
            None => run(self.stack, &self.tunables, prefix, tokens, rows, want),
        }
    }

    fn set_graph(&mut self, tunables: Vec<Tunable>) {
        self.tunables = tunables;
    }
}

/// Runs all blocks of this process on `[prefix; tokens]`.
fn run(
    stack: &BlockStack,
    tunables: &[Tunable],
    prefix: Option<&Tensor>,
    tokens: &Tensor,
    rows: &Ragged,
    want: Want,
) -> Result<Tensor, BlocksError> {
    run_span(stack, stack.span(), tunables, prefix, tokens, rows, want)
}

/// Runs the blocks of `span` in this process on `[prefix; tokens]`.
pub(super) fn run_span(
    stack: &BlockStack,
    span: Span,
    tunables: &[Tunable],
    prefix: Option<&Tensor>,
    tokens: &Tensor,
    rows: &Ragged,
    want: Want,
) -> Result<Tensor, BlocksError> {
    let inputs: Vec<&Tensor> = prefix.into_iter().chain([tokens]).collect();
    let hidden = Tensor::f_cat(&inputs, 0)?; // [prefix_len + n_tokens, hidden]
    let prefix_len = prefix.map_or(0, |prefix| prefix.size()[0].unsigned_abs() as usize);
    stack.forward_with(span, &hidden, prefix_len, rows, tunables, want).map_err(BlocksError::Local)
}

/// Runs the blocks of `span` in this process on `[prefix; tokens]`. Returns the hidden states of both for the next block,
/// `[prefix_len, hidden]` and `[n_tokens, hidden]`.
pub(super) fn run_to_next(
    stack: &BlockStack,
    span: Span,
    tunables: &[Tunable],
    prefix: Option<&Tensor>,
    tokens: &Tensor,
    rows: &Ragged,
) -> Result<(Option<Tensor>, Tensor), BlocksError> {
    let hidden = run_span(stack, span, tunables, prefix, tokens, rows, Want::All)?; // [prefix_len + n_tokens, hidden]
    let prefix_len = prefix.map_or(0, |prefix| prefix.size()[0]);
    let tokens = hidden.f_narrow(0, prefix_len, rows.n_tokens() as i64)?;
    Ok((prefix.map(|_| hidden.f_narrow(0, 0, prefix_len)).transpose()?, tokens))
}
