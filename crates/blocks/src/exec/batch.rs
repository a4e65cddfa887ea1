use sepal_core::{Ragged, Span};
use tch::Tensor;

use crate::exec::tape::Tape;

/// Batch of one caller.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// `[prefix.slots() + n_tokens, hidden]`.
    pub hidden: &'a Tensor,
    /// Prefix before each row.
    pub prefix: Prefix<'a>,
    /// Lengths of the rows, without the prefix.
    pub rows: &'a Ragged,
    /// Tensors for the prefix. They have no effect on a cached prefix.
    pub injected: InjectedTensors<'a>,
}

/// Tensors that the blocks of a span put into a prefix that they compute.
#[derive(Debug, Clone, Copy, Default)]
pub struct InjectedTensors<'a> {
    /// `[blocks, prefix_len, hidden]`, added to the prefix before each block.
    pub deep_prompts: Option<&'a Tensor>,
    /// `[blocks, prefix_len, 2 * kv_size]`: the keys of all heads, rotated to their positions, and then the values. They
    /// replace the keys and values that each block computes, so that the prefix's own hidden states reach no row.
    pub keys_values: Option<&'a Tensor>,
}

impl<'a> InjectedTensors<'a> {
    /// Deep prompts without keys and values.
    pub fn deep_prompts(deep_prompts: Option<&'a Tensor>) -> Self {
        Self { deep_prompts, keys_values: None }
    }

    pub(crate) fn tensors(self) -> impl Iterator<Item = &'a Tensor> {
        self.deep_prompts.into_iter().chain(self.keys_values)
    }
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
    /// One tensor per block, `[len, 2 kv_size]`.
    pub(crate) blocks: Vec<Tensor>,
}

impl PrefixCache {
    /// Span of the blocks.
    pub fn span(&self) -> Span {
        self.span
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
    /// `[prefix_len, hidden]`: the first block skips the rest of its computation for text.
    Prefix,
}

/// Gradients that a backward pass returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GradOptions {
    /// Gradient of the hidden states.
    pub input: InputGrad,
    /// True to return the gradients of injected tensors.
    pub injected: bool,
}

/// Gradients of one batch.
#[derive(Debug)]
pub struct BatchGrads {
    /// Gradient of the hidden states, see [`InputGrad`].
    pub input: Tensor,
    /// `[blocks, prefix_len, hidden]`, if requested and if the forward pass had deep prompts.
    pub deep_prompts: Option<Tensor>,
    /// `[blocks, prefix_len, 2 * kv_size]`, if requested and if the forward pass had injected keys and values.
    pub keys_values: Option<Tensor>,
    /// Last block of the model with non-finite gradients: the first in the order of the backward pass.
    pub non_finite_block: Option<usize>,
}
