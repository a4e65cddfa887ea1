use sepal_core::{Ragged, Span};

use crate::attention::bins::BIN_TOKENS;
use crate::attention::masks::MaskConfig;
use crate::exec::block::Block;

/// Temporary tensors of attention that exist at the same time, in multiples of the largest.
const ATTENTION_TENSORS: usize = 24;

/// Passes of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passes {
    /// Forward pass without a tape.
    Forward,
    /// Forward pass that leaves a tape.
    Tape,
    /// Backward pass, with the tape that it reads; also a forward pass that is followed by one.
    Backward,
}

/// Upper estimate of the memory that calls need while they are computed, weights excluded. It needs neither the blocks nor
/// their lock.
///
/// It is linear in the positions: attention is computed in parts of limited size, and masks are made for short rows only.
/// The largest block counts once and tapes count for each block.
#[derive(Debug, Clone)]
pub struct CallMemory {
    /// Index of the first block in the model.
    first_block: usize,
    blocks: Vec<BlockMemory>,
    n_heads: usize,
    masks: MaskConfig,
}

/// Bytes of one block for each position.
#[derive(Debug, Clone, Copy)]
struct BlockMemory {
    /// Part of a tape.
    saved: usize,
    /// Tensors that exist during a forward pass.
    temporary: usize,
    /// Keys and values in fp32.
    keys_values: usize,
}

impl CallMemory {
    pub(crate) fn new(first_block: usize, blocks: &[Block], hidden: usize, n_heads: usize, masks: &MaskConfig) -> Self {
        let blocks = blocks.iter().map(|block| BlockMemory::new(block, hidden)).collect();
        Self { first_block, blocks, n_heads, masks: masks.clone() }
    }

    /// Estimate for the blocks of `span` on rows behind a prefix of `prefix_len` positions, in bytes. Blocks that are not
    /// held count 0.
    pub fn bytes(&self, span: Span, prefix_len: usize, rows: &Ragged, passes: Passes) -> u64 {
        let longest = prefix_len + rows.lengths().max().unwrap_or(0);
        self.bytes_of(span, prefix_len + rows.n_tokens(), prefix_len, longest, passes)
    }

    /// Largest number of positions, at most `limit`, of any batch whose passes through all blocks take at most `bytes`; 0 if
    /// not one does.
    pub fn max_positions(&self, bytes: u64, limit: usize) -> usize {
        let Ok(span) = Span::new(self.first_block, self.first_block + self.blocks.len()) else { return limit };
        let fits = |n: usize| self.bytes_of(span, n, n, n, Passes::Backward) <= bytes;
        if fits(limit) {
            return limit;
        }
        // The estimate grows with the positions.
        let (mut fitting, mut excessive) = (0, limit);
        while fitting + 1 < excessive {
            let middle = usize::midpoint(fitting, excessive);
            if fits(middle) {
                fitting = middle;
            } else {
                excessive = middle;
            }
        }
        fitting
    }

    fn bytes_of(&self, span: Span, n: usize, prefix_len: usize, longest: usize, passes: Passes) -> u64 {
        let blocks = self.blocks.iter().enumerate().filter(|(i, _)| {
            let block_idx = self.first_block + i;
            span.start() <= block_idx && block_idx < span.end()
        });
        let (mut saved, mut temporary) = (0_u64, 0_u64);
        // A prefix with a mask is copied to each bin.
        let copies = 1 + prefix_len.min(self.masks.limits.masked_positions) / BIN_TOKENS;
        for (_, block) in blocks {
            saved = saved.saturating_add(product([block.saved, n]));
            let keys_values = product([block.keys_values, copies, n]);
            temporary = temporary.max(product([block.temporary, n]).saturating_add(keys_values));
        }
        if temporary == 0 {
            return 0;
        }
        let attention = self.attention_bytes(n, longest).saturating_add(self.mask_bytes(n, prefix_len, longest));
        let passes_bytes = match passes {
            Passes::Forward => temporary,
            Passes::Tape => temporary.saturating_add(saved),
            Passes::Backward => temporary.saturating_mul(2).saturating_add(saved),
        };
        passes_bytes.saturating_add(attention)
    }

    /// Scores and copies of heads, which are made in parts of limited size.
    fn attention_bytes(&self, n: usize, longest: usize) -> u64 {
        let all = product([self.n_heads, n, longest, size_of::<f32>()]);
        all.min(product([ATTENTION_TENSORS, self.masks.limits.temporary_numel, size_of::<f32>()]))
    }

    /// Saved masks: one of the longest row that has any, and those of bins, which first-fit packing fills to a half on
    /// average.
    fn mask_bytes(&self, n: usize, prefix_len: usize, longest: usize) -> u64 {
        let (limits, per_score) = (self.masks.limits, self.masks.masks_per_score());
        let side = longest.min(limits.masked_positions);
        let row = product([per_score, side, side]).min(limits.mask_numel as u64);
        let keys = longest.min(BIN_TOKENS) + prefix_len.min(limits.masked_prefix);
        let bins = product([per_score, 2 * n, keys]);
        let kinds = 1 + u64::from(self.masks.window.is_some());
        row.saturating_add(bins).saturating_mul(kinds * size_of::<f32>() as u64)
    }
}

impl BlockMemory {
    fn new(block: &Block, hidden: usize) -> Self {
        let size = |numbers: i64| usize::try_from(numbers).unwrap_or(0);
        let (q, kv) = (size(block.heads.q_size()), size(block.heads.kv_size()));
        // All in fp32: the input, its norm, the residual, the norm and the outputs of the MLP; queries, attention's output
        // and its copy; keys and values.
        let numbers = 6 * hidden + 3 * q + 2 * kv;
        // The input of the activation, which a tape has in the format of the computation, and the activation, in fp32.
        let inner = block.mlp.saved_per_position() / block.compute().elt_size_in_bytes().max(1);
        let mlp = 2 * inner * size_of::<f32>();
        let temporary = numbers * size_of::<f32>() + mlp;
        Self { saved: block.saved_bytes(hidden, 1, 1), temporary, keys_values: 2 * kv * size_of::<f32>() }
    }
}

/// Product that does not overflow.
fn product<const N: usize>(factors: [usize; N]) -> u64 {
    factors.into_iter().fold(1_u64, |product, factor| product.saturating_mul(factor as u64))
}
