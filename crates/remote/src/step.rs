//! What belongs to one optimizer step, or one evaluation.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use sepal_core::{HostTensor, NamedHostTensor, Span};
use sepal_wire::codec;

use crate::error::CallError;

/// The tunables of one optimizer step, for the whole model, stacked by block.
#[derive(Debug)]
pub(crate) struct Step {
    /// Told apart by this number.
    pub(crate) version: u64,
    /// Each `[n_blocks, ..]`.
    pub(crate) tunables: Vec<NamedHostTensor>,
    /// The prefix that came with it without a tape, if one did: what servers keep is of this one.
    pub(crate) prefix: OnceLock<HostTensor>,
    pub(crate) prefix_states: PrefixStates,
}

impl Step {
    pub(crate) fn new(version: u64, tunables: Vec<NamedHostTensor>) -> Self {
        Self { version, tunables, prefix: OnceLock::new(), prefix_states: PrefixStates::default() }
    }

    /// The part of the blocks `span`; shares the bytes.
    pub(crate) fn part(&self, span: Span) -> Result<Vec<NamedHostTensor>, CallError> {
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

/// The hidden states of one step's prefix between blocks, as far as they have been seen: `[prefix_len, hidden]` before the
/// block that is the key.
#[derive(Debug, Default)]
pub(crate) struct PrefixStates(Mutex<HashMap<usize, HostTensor>>);

impl PrefixStates {
    pub(crate) fn at(&self, block_idx: usize) -> Option<HostTensor> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&block_idx).cloned()
    }

    pub(crate) fn see(&self, block_idx: usize, states: HostTensor) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(block_idx, states);
    }
}
