use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use sepal_core::{HostTensor, HostTunable, Span};
use sepal_wire::codec::{self, InputGrad};

use crate::error::CallError;

/// Tunables of one optimizer step or one evaluation, for the whole model.
#[derive(Debug)]
pub(crate) struct Step {
    /// Unique number of the step.
    pub(crate) version: u64,
    pub(crate) tunables: Vec<HostTunable>,
    /// Prefix of the forward passes without a tape, which servers cache; empty before the first of them.
    pub(crate) prefix: OnceLock<HostTensor>,
    pub(crate) prefix_states: PrefixStates,
}

impl Step {
    pub(crate) fn new(version: u64, tunables: Vec<HostTunable>) -> Self {
        Self { version, tunables, prefix: OnceLock::new(), prefix_states: PrefixStates::default() }
    }

    /// Returns the step as a repetition of its calls needs it, without a copy of the numbers.
    pub(crate) fn snapshot(&self) -> Self {
        Self::new(self.version, self.tunables.clone())
    }

    /// Returns the parts of the tunables for the blocks of `span`, without a copy.
    pub(crate) fn slice_tunables(&self, span: Span) -> Result<Vec<HostTunable>, CallError> {
        let parts = self.tunables.iter().filter_map(|tunable| tunable.within(span).transpose());
        Ok(parts.collect::<Result<_, _>>().map_err(codec::DecodeError::from)?)
    }

    /// Returns the block in which backward passes end: `first_block` for a gradient of its input, else the first with a
    /// tunable.
    pub(crate) fn backward_end(&self, input: InputGrad, first_block: usize) -> usize {
        let first_tunable = self.tunables.iter().map(|tunable| tunable.first_block).min();
        first_tunable.filter(|_| input == InputGrad::None).map_or(first_block, |first| first.max(first_block))
    }
}

/// Hidden states of a step's prefix, `[prefix_len, hidden]`, by the block that they enter.
#[derive(Debug, Default)]
pub(crate) struct PrefixStates(Mutex<HashMap<usize, HostTensor>>);

impl PrefixStates {
    pub(crate) fn get(&self, block_idx: usize) -> Option<HostTensor> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&block_idx).cloned()
    }

    pub(crate) fn insert(&self, block_idx: usize, states: HostTensor) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(block_idx, states);
    }
}
