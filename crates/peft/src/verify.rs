//! Comparison of an export with the trained adapter.
//!
//! One forward pass takes all rows in one batch behind the trained prompts and with the trained tunables, as in training.
//! The other takes each row separately, with the tensors read back from the export: behind the written keys and values,
//! without computing prompts, or with the written changes of linear layers.

use std::slice;

use sepal_blocks::{Batch, BlockStack, Ends, Injected, KeysValues, Prefix, SaveMode};
use sepal_checkpoint::Checkpoint;
use sepal_core::{HostTensor, ModelConfig, Ragged, Span, Want};
use sepal_nn::{Tunable, share_from_host};
use tch::{Kind, TchError, Tensor};

use crate::block_inputs::BlockInputs;
use crate::compute::ComputeError;

/// Result of a comparison.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Verified {
    /// Number of compared rows.
    pub rows: usize,
    /// Largest difference of two logits.
    pub difference: f64,
    /// Largest absolute logit.
    pub largest: f64,
}

/// Returns rows of token ids of several lengths, spread over the vocabulary.
pub(crate) fn sample_rows(config: &ModelConfig, prefix_len: usize) -> Vec<Vec<i64>> {
    let longest = config.max_positions.map_or(usize::MAX, |positions| positions.saturating_sub(prefix_len)).max(1);
    let vocab = config.vocab_size.max(1);
    let row =
        |(index, len): (usize, usize)| (0..len).map(|i| ((7919 * i + 104_729 * index + 13) % vocab) as i64).collect();
    [1, 3, 7, 12, 25].into_iter().map(|len: usize| len.min(longest)).enumerate().map(row).collect()
}

/// Tensors read back from an export.
pub(crate) struct WrittenExport<'a> {
    pub(crate) inputs: WrittenInputs,
    /// `[n_labels, hidden]`
    pub(crate) score: &'a HostTensor,
}

pub(crate) enum WrittenInputs {
    /// Keys and values of the prefix, for each block.
    Prefix(Vec<KeysValues>),
    /// Changes of linear layers.
    Layers(Vec<Tunable>),
}

/// Compares the logits of `rows` by the trained adapter and by the written tensors, both with the written head.
pub(crate) fn verify(
    rows: &[Vec<i64>],
    trained: &BlockInputs,
    written: &WrittenExport<'_>,
    ends: &Ends,
    checkpoint: &Checkpoint,
) -> Result<Verified, ComputeError> {
    let lengths = Ragged::from_lengths(rows.iter().map(Vec::len))?;
    let embed = |row: &Vec<i64>| ends.embed(&Tensor::from_slice(row));
    let separate = rows.iter().map(embed).collect::<Result<Vec<_>, _>>()?; // each [row_len, hidden]
    let mut packed = vec![trained.prefix.shallow_clone()];
    packed.extend(separate.iter().map(Tensor::shallow_clone));
    let mut states = ComparedStates { packed: Tensor::f_cat(&packed, 0)?, separate };
    for block_idx in 0..checkpoint.config().n_blocks {
        let stack = BlockStack::load(checkpoint, Span::new(block_idx, block_idx + 1)?)?;
        states.forward_trained(&stack, &lengths, trained)?;
        states.forward_written(&stack, &written.inputs)?;
    }
    let score = share_from_host(written.score)?;
    let logits = |hidden: &Tensor| Ok::<_, ComputeError>(ends.final_norm(hidden)?.f_linear(&score, None::<Tensor>)?);
    let last = states.separate.iter().map(|hidden| hidden.f_narrow(0, hidden.size()[0] - 1, 1));
    let last = Tensor::f_cat(&last.collect::<Result<Vec<_>, TchError>>()?, 0)?; // [rows, hidden]
    let (by_trained, by_written) = (logits(&states.packed)?, logits(&last)?);
    let largest = |tensor: Tensor| f64::try_from(tensor.f_abs()?.f_max()?.f_to_kind(Kind::Double)?);
    let difference = largest(by_trained.f_sub(&by_written)?)?;
    Ok(Verified { rows: rows.len(), difference, largest: largest(by_trained)? })
}

struct ComparedStates {
    /// `[prefix_len + n_tokens, hidden]`; after the last block `[rows, hidden]`.
    packed: Tensor,
    /// Each `[row_len, hidden]`.
    separate: Vec<Tensor>,
}

impl ComparedStates {
    fn forward_trained(
        &mut self,
        stack: &BlockStack,
        rows: &Ragged,
        trained: &BlockInputs,
    ) -> Result<(), ComputeError> {
        let block = stack.span();
        let is_last = block.end() == stack.config().n_blocks;
        let want = if is_last { Want::LastOfRows } else { Want::All };
        let prefix = Prefix::Computed(trained.prefix_len());
        let injected = stack.inject(block, &trained.tunables)?;
        let batch = Batch { hidden: &self.packed, prefix, rows, injected: &injected };
        self.packed = forward(stack, batch, want)?;
        Ok(())
    }

    fn forward_written(&mut self, stack: &BlockStack, written: &WrittenInputs) -> Result<(), ComputeError> {
        let block = stack.span();
        let (prefix_cache, injected) = match written {
            WrittenInputs::Prefix(blocks) => {
                let keys_values =
                    blocks.get(block.start()).ok_or(ComputeError::Nothing { block_idx: block.start() })?;
                (Some(stack.prefix_cache_from(block, slice::from_ref(keys_values))?), Injected::default())
            }
            WrittenInputs::Layers(tunables) => (None, stack.inject(block, tunables)?),
        };
        for hidden in &mut self.separate {
            let row = Ragged::from_lengths([hidden.size()[0].unsigned_abs() as usize])?;
            let prefix = prefix_cache.as_ref().map_or(Prefix::Computed(0), Prefix::Cached);
            *hidden = forward(stack, Batch { hidden, prefix, rows: &row, injected: &injected }, Want::All)?;
        }
        Ok(())
    }
}

fn forward(stack: &BlockStack, batch: Batch<'_>, want: Want) -> Result<Tensor, ComputeError> {
    let block = stack.span();
    let output = stack.forward_batches(block, &[batch], want, SaveMode::None)?.pop();
    output.map(|output| output.hidden).ok_or(ComputeError::Nothing { block_idx: block.start() })
}
