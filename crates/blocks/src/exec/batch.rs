use sepal_core::{Ragged, Span};
use sepal_nn::Tunable;
use tch::Tensor;

use crate::adapters::Injected;
use crate::exec::tape::Tape;
use crate::tensor_bytes::tensor_bytes;

/// Batch of one caller.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// `[prefix.slots() + n_tokens, hidden]`.
    pub hidden: &'a Tensor,
    /// Prefix before each row.
    pub prefix: Prefix<'a>,
    /// Lengths of the rows, without the prefix.
    pub rows: &'a Ragged,
    /// Trainable tensors of the blocks. Those for the prefix have no effect on a cached one.
    pub injected: &'a Injected,
}

/// Prefix that all rows of a batch share.
#[derive(Debug, Clone, Copy)]
pub enum Prefix<'a> {
    /// Number of prefix positions at the start of the hidden states, possibly 0.
    Computed(usize),
    /// Keys and values of an earlier forward pass.
    Cached(&'a PrefixCache),
}

impl Prefix<'_> {
    /// Number of positions.
    #[expect(clippy::len_without_is_empty, reason = "a number of positions, not a collection")]
    pub fn len(self) -> usize {
        match self {
            Prefix::Computed(len) => len,
            Prefix::Cached(cache) => cache.len,
        }
    }

    /// Number of positions that are part of the hidden states.
    pub fn slots(self) -> usize {
        match self {
            Prefix::Computed(len) => len,
            Prefix::Cached(_) => 0,
        }
    }
}

/// Keys and values of a prefix in each block of a span. Under a causal mask they do not depend on later positions, so
/// that later batches with the same prefix and deep prompts reuse them.
#[derive(Debug)]
pub struct PrefixCache {
    pub(crate) span: Span,
    pub(crate) len: usize,
    /// One tensor per block in the format of the computation, `[len, 2 kv_size]`.
    pub(crate) blocks: Vec<Tensor>,
}

impl PrefixCache {
    /// Span of the blocks.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Memory of the keys and values, in bytes.
    pub fn bytes(&self) -> usize {
        self.blocks.iter().map(tensor_bytes).sum()
    }

    /// Returns a cache with the same memory.
    #[must_use]
    pub fn share(&self) -> Self {
        Self { blocks: self.blocks.iter().map(Tensor::shallow_clone).collect(), ..*self }
    }

    /// Number of positions.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.len
    }
}

/// Result of a forward pass beside its outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveMode {
    /// Nothing.
    None,
    /// Tape for the backward pass.
    Tape,
    /// Keys and values of the prefix.
    PrefixCache,
}

/// Output of a forward pass for one batch.
#[derive(Debug)]
pub struct BatchOutput {
    /// Hidden states after the last block, in the caller's order.
    pub hidden: Tensor,
    /// Tape, with [`SaveMode::Tape`].
    pub tape: Option<Tape>,
    /// Prefix cache, with [`SaveMode::PrefixCache`] and a computed prefix that is not empty.
    pub prefix_cache: Option<PrefixCache>,
    /// First block of the model with non-finite hidden states.
    pub non_finite_block: Option<usize>,
}

/// Positions of a batch whose input gradient is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputGrad {
    /// `[prefix_len + n_tokens, hidden]`.
    All,
    /// `[prefix_len, hidden]`: the first block skips the rest of its computation for text. Without a prefix, the backward
    /// pass ends at the first block with an adapter.
    Prefix,
}

/// Gradients that a backward pass returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GradOptions {
    /// Gradient of the hidden states.
    pub input: InputGrad,
    /// True to return the gradients of tunables.
    pub injected: bool,
}

/// Gradients of one batch.
#[derive(Debug)]
pub struct BatchGrads {
    /// Gradient of the hidden states, see [`InputGrad`].
    pub input: Tensor,
    /// Gradients of the tunables in their order; empty unless requested.
    pub injected: Vec<Tunable>,
    /// Last block of the model with non-finite gradients: the first in the order of the backward pass.
    pub non_finite_block: Option<usize>,
}
