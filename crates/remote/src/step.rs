use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use sepal_core::{HostTensor, NamedHostTensor, Span};
use sepal_wire::codec;

use crate::error::CallError;

/// Tunables of one optimizer step or one evaluation, for the whole model.
#[derive(Debug)]
pub(crate) struct Step {
    /// Unique number of the step.
    pub(crate) version: u64,
    /// Each `[n_blocks, ..]`, stacked by block.
    pub(crate) tunables: Vec<NamedHostTensor>,
    /// Prefix of the forward passes without a tape, which servers cache; empty before the first of them.
    pub(crate) prefix: OnceLock<HostTensor>,
    pub(crate) prefix_states: PrefixStates,
}

impl Step {
    pub(crate) fn new(version: u64, tunables: Vec<NamedHostTensor>) -> Self {
        Self { version, tunables, prefix: OnceLock::new(), prefix_states: PrefixStates::default() }
    }

    /// Returns the tunables of the blocks of `span`, without a copy.
    pub(crate) fn slice_tunables(&self, span: Span) -> Result<Vec<NamedHostTensor>, CallError> {
        let slice = |named: &NamedHostTensor| {
            let tensor = &named.tensor;
            let per_block = tensor.data().len() / tensor.shape()[0].max(1);
            let data = tensor.data().slice(span.start() * per_block..span.end() * per_block);
            let mut shape = tensor.shape().to_vec();
            shape[0] = span.len();
            let tensor = HostTensor::new(tensor.dtype(), shape, data).map_err(codec::DecodeError::from)?;
            Ok(NamedHostTensor { name: named.name.clone(), tensor })
        };
        self.tunables.iter().map(slice).collect()
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
