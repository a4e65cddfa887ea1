//! Comparison of an export with the trained prompts.
//!
//! One forward pass takes all rows in one batch behind the trained prompts, as in training. The other takes each row
//! separately, behind the written keys and values, without computing prompts.

use sepal_blocks::{Batch, BlockStack, Ends, InjectedTensors, KeysValues, Prefix, SaveMode};
use sepal_checkpoint::Checkpoint;
use sepal_core::{HostTensor, ModelConfig, Ragged, Span, Want};
use sepal_nn::share_from_host;
use tch::{Kind, TchError, Tensor};

use crate::compute::ComputeError;
use crate::fold::{PrefixInputs, cut};

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

pub(crate) struct WrittenExport<'a> {
    pub(crate) trained: &'a PrefixInputs,
    /// `[prefix_len, n_blocks * 2 * n_kv_heads * head_dim]`
    pub(crate) table: &'a HostTensor,
    pub(crate) score: &'a HostTensor,
}

/// Compares the logits of `rows` with the trained prompts and with the written keys and values, both with the written head.
pub(crate) fn verify(
    rows: &[Vec<i64>],
    export: &WrittenExport<'_>,
    ends: &Ends,
    checkpoint: &Checkpoint,
) -> Result<Verified, ComputeError> {
    let trained = export.trained;
    let lengths = Ragged::from_lengths(rows.iter().map(Vec::len))?;
    let written = cut(&share_from_host(export.table)?, checkpoint.config())?;
    let embed = |row: &Vec<i64>| ends.embed(&Tensor::from_slice(row));
    let separate = rows.iter().map(embed).collect::<Result<Vec<_>, _>>()?; // each [row_len, hidden]
    let mut packed = vec![trained.prefix.shallow_clone()];
    packed.extend(separate.iter().map(Tensor::shallow_clone));
    let mut states = ComparedStates { packed: Tensor::f_cat(&packed, 0)?, separate };
    for (block_idx, block) in written.into_iter().enumerate() {
        let stack = BlockStack::load(checkpoint, Span::new(block_idx, block_idx + 1)?)?;
        states.forward(&stack, &lengths, trained.block_prefix(block_idx)?.injected(), block)?;
    }
    let score = share_from_host(export.score)?;
    let logits = |hidden: &Tensor| Ok::<_, ComputeError>(ends.final_norm(hidden)?.f_linear(&score, None::<Tensor>)?);
    let last = states.separate.iter().map(|hidden| hidden.f_narrow(0, hidden.size()[0] - 1, 1));
    let last = Tensor::f_cat(&last.collect::<Result<Vec<_>, TchError>>()?, 0)?; // [rows, hidden]
    let (by_prompts, by_keys) = (logits(&states.packed)?, logits(&last)?);
    let largest = |tensor: Tensor| f64::try_from(tensor.f_abs()?.f_max()?.f_to_kind(Kind::Double)?);
    Ok(Verified { rows: rows.len(), difference: largest(by_prompts.f_sub(&by_keys)?)?, largest: largest(by_prompts)? })
}

struct ComparedStates {
    /// `[prefix_len + n_tokens, hidden]`; after the last block `[rows, hidden]`.
    packed: Tensor,
    /// Each `[row_len, hidden]`.
    separate: Vec<Tensor>,
}

impl ComparedStates {
    fn forward(
        &mut self,
        stack: &BlockStack,
        rows: &Ragged,
        injected: InjectedTensors<'_>,
        written: KeysValues,
    ) -> Result<(), ComputeError> {
        let (block, block_idx) = (stack.span(), stack.span().start());
        let prefix_len = written.keys.size()[1].unsigned_abs() as usize;
        let run = |hidden: &Tensor, prefix, rows: &Ragged, injected, want| {
            let batch = Batch { hidden, prefix, rows, injected };
            let output = stack.forward_batches(block, &[batch], want, SaveMode::None)?.pop();
            output.map(|output| output.hidden).ok_or(ComputeError::Nothing { block_idx })
        };
        let is_last = block.end() == stack.config().n_blocks;
        let want = if is_last { Want::LastOfRows } else { Want::All };
        self.packed = run(&self.packed, Prefix::Computed(prefix_len), rows, injected, want)?;
        let prefix_cache = stack.prefix_cache_from(block, &[written])?;
        for hidden in &mut self.separate {
            let row = Ragged::from_lengths([hidden.size()[0].unsigned_abs() as usize])?;
            *hidden = run(hidden, Prefix::Cached(&prefix_cache), &row, InjectedTensors::default(), Want::All)?;
        }
        Ok(())
    }
}
