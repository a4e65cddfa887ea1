//! Whether what was written computes what was trained.
//!
//! One way, the rows go through the blocks in one batch behind the trained prompts, as in training. The other way, each
//! row goes alone, and before its own keys stand those that the written file holds: no prompt is computed there.

use sepal_blocks::{Batch, BlockStack, Ends, InjectedTensors, KeysValues, Prefix, SaveMode};
use sepal_checkpoint::Checkpoint;
use sepal_core::{HostTensor, ModelConfig, Ragged, Span, Want};
use sepal_nn::share_from_host;
use tch::{Kind, TchError, Tensor};

use crate::compute::ComputeError;
use crate::fold::{Trained, cut};

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Verified {
    /// Rows that were compared.
    pub rows: usize,
    /// The largest difference of two logits.
    pub difference: f64,
    /// The largest logit, by its size.
    pub largest: f64,
}

/// Rows of token ids of several lengths, spread over the vocabulary.
pub(crate) fn sample_rows(config: &ModelConfig, prefix_len: usize) -> Vec<Vec<i64>> {
    let longest = config.max_positions.map_or(usize::MAX, |positions| positions.saturating_sub(prefix_len)).max(1);
    let vocab = config.vocab_size.max(1);
    let row = |(at, len): (usize, usize)| (0..len).map(|i| ((7919 * i + 104_729 * at + 13) % vocab) as i64).collect();
    [1, 3, 7, 12, 25].into_iter().map(|len: usize| len.min(longest)).enumerate().map(row).collect()
}

/// Compares the logits of `rows` by the trained prompts with those by the written keys and values, `table
/// [prefix_len, n_blocks * 2 * n_kv_heads * head_dim]`, both times with the head that was written.
pub(crate) fn verify(
    rows: &[Vec<i64>],
    (trained, table, score): (&Trained, &HostTensor, &HostTensor),
    ends: &Ends,
    checkpoint: &Checkpoint,
) -> Result<Verified, ComputeError> {
    let lengths = Ragged::from_lengths(rows.iter().map(Vec::len))?;
    let written = cut(&share_from_host(table)?, checkpoint.config())?;
    let embed = |row: &Vec<i64>| ends.embed(&Tensor::from_slice(row));
    let alone = rows.iter().map(embed).collect::<Result<Vec<_>, _>>()?; // each [row_len, hidden]
    let mut together = vec![trained.prefix.shallow_clone()];
    together.extend(alone.iter().map(Tensor::shallow_clone));
    let mut both = Both { together: Tensor::f_cat(&together, 0)?, alone };
    for (block_idx, block) in written.into_iter().enumerate() {
        let stack = BlockStack::load(checkpoint, Span::new(block_idx, block_idx + 1)?)?;
        both.through(&stack, &lengths, trained.of_block(block_idx)?.injected(), block)?;
    }
    let score = share_from_host(score)?;
    let logits = |hidden: &Tensor| Ok::<_, ComputeError>(ends.final_norm(hidden)?.f_linear(&score, None::<Tensor>)?);
    let alone = both.alone.iter().map(|hidden| hidden.f_narrow(0, hidden.size()[0] - 1, 1));
    let alone = Tensor::f_cat(&alone.collect::<Result<Vec<_>, TchError>>()?, 0)?; // [rows, hidden]
    let (by_prompts, by_keys) = (logits(&both.together)?, logits(&alone)?);
    let largest = |tensor: Tensor| f64::try_from(tensor.f_abs()?.f_max()?.f_to_kind(Kind::Double)?);
    Ok(Verified { rows: rows.len(), difference: largest(by_prompts.f_sub(&by_keys)?)?, largest: largest(by_prompts)? })
}

/// The rows on their two ways through the blocks.
struct Both {
    /// `[prefix_len + n_tokens, hidden]`; behind the last block `[rows, hidden]`.
    together: Tensor,
    /// Each `[row_len, hidden]`.
    alone: Vec<Tensor>,
}

impl Both {
    fn through(
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
        self.together = run(&self.together, Prefix::Computed(prefix_len), rows, injected, want)?;
        let kept = stack.prefix_cache_from(block, &[written])?;
        for hidden in &mut self.alone {
            let row = Ragged::from_lengths([hidden.size()[0].unsigned_abs() as usize])?;
            *hidden = run(hidden, Prefix::Cached(&kept), &row, InjectedTensors::default(), Want::All)?;
        }
        Ok(())
    }
}
