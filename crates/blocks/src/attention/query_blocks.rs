//! Attention in blocks of queries, for scores that need a mask or have no kernel. Each block has a mask of its own and
//! skips keys that are hidden from all its queries, so that memory grows with the keys, not with their square.

use tch::{Kind, TchError, Tensor};

use crate::attention::block_mask::GroupTokens;
use crate::attention::keys_values::KeysValues;
use crate::attention::masks::MaskConfig;
use crate::attention::queries::{QueryBlock, QueryShape};
use crate::attention::sdpa::{self, AttentionPart, BackwardInput};
use crate::segment::Segment;

/// Queries of a block if its temporary tensors have room for them: more would skip fewer hidden keys.
const MAX_QUERIES: i64 = 128;
/// Queries of a block at least, for products of a useful size.
const MIN_QUERIES: i64 = 16;

/// Queries of a group of bins.
pub(crate) struct QueryBlocks<'a> {
    pub(crate) shape: QueryShape,
    pub(crate) config: &'a MaskConfig,
    /// Number of positions that a query attends to, its own included.
    pub(crate) window: Option<usize>,
    pub(crate) tokens: GroupTokens,
    pub(crate) keys_values: &'a KeysValues,
}

/// Numbers of bins, of heads and of queries in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BlockSize {
    bins: i64,
    kv: i64,
    queries: i64,
}

impl QueryBlocks<'_> {
    /// Attention of `queries [bins * per_bin, q_size]`.
    pub(crate) fn forward(&self, queries: &Tensor) -> Result<AttentionPart, TchError> {
        let shape = self.shape;
        let results = shape.empty_results(queries)?;
        for (bins, kv) in self.key_heads() {
            let keys_values = self.keys_values.narrow(bins, kv)?.to_fp32()?.joined()?;
            for block in self.blocks(bins, kv) {
                let mask = self.tokens.mask(&block, self.config, self.window)?;
                let queries = shape.block(queries, &block)?;
                let part = sdpa::forward(&queries, &visible(&keys_values, &block)?, Some(&mask), shape.heads)?;
                shape.write_block(&results.outputs, &block, &part.outputs)?;
                shape.write_block(&results.log_sums, &block, &part.log_sums)?;
            }
        }
        Ok(results)
    }

    /// Writes the gradients of queries, `[bins * per_bin, q_size]`, and of keys and values.
    pub(crate) fn backward(
        &self,
        input: &BackwardInput,
        grad_q: &Tensor,
        grad_kv: &KeysValues,
    ) -> Result<(), TchError> {
        let shape = self.shape;
        for (bins, kv) in self.key_heads() {
            let keys_values = self.keys_values.narrow(bins, kv)?.to_fp32()?.joined()?;
            let zeros = |tensor: &Tensor| Tensor::f_zeros(tensor.size(), (Kind::Float, tensor.device()));
            let sums = [zeros(&keys_values[0])?, zeros(&keys_values[1])?];
            for block in self.blocks(bins, kv) {
                let mask = self.tokens.mask(&block, self.config, self.window)?;
                let input = input.map(|matrix| shape.block(matrix, &block))?;
                let [queries, keys, values] =
                    sdpa::backward(&input, &visible(&keys_values, &block)?, Some(&mask), shape.heads)?;
                shape.write_block(grad_q, &block, &queries)?;
                for (mut sum, grad) in visible(&sums, &block)?.into_iter().zip([keys, values]) {
                    let _ = sum.f_add_(&grad)?;
                }
            }
            grad_kv.narrow(bins, kv)?.write(sums.each_ref())?;
        }
        Ok(())
    }

    /// Bins and heads that are computed together.
    fn key_heads(&self) -> impl Iterator<Item = (Segment, Segment)> {
        let QueryShape { bins, heads, .. } = self.shape;
        let size = self.block_size();
        let bins = Segment::cover(bins, size.bins);
        bins.flat_map(move |bins| Segment::cover(heads.kv, size.kv).map(move |kv| (bins, kv)))
    }

    fn blocks(&self, bins: Segment, kv: Segment) -> impl Iterator<Item = QueryBlock> {
        let queries = Segment::cover(self.shape.per_bin, self.block_size().queries);
        queries.map(move |queries| QueryBlock { bins, kv, queries, keys: self.visible_keys(queries) })
    }

    /// Keys that some of the queries may attend to.
    fn visible_keys(&self, queries: Segment) -> Segment {
        let (prefix_len, n_keys) = (self.keys_values.prefix_len(), self.tokens.n_keys());
        // Positions of the first query and behind the last one. Rows of shared bins begin anywhere.
        let (first, end) = match self.tokens.are_single_rows() {
            true => (prefix_len + queries.start, prefix_len + queries.start + queries.len),
            false => (prefix_len, n_keys),
        };
        let hidden = self.window.map_or(0, |window| (first + 1 - window as i64).max(0));
        Segment { start: hidden, len: end - hidden }
    }

    fn block_size(&self) -> BlockSize {
        let QueryShape { bins, per_bin, heads } = self.shape;
        let limit = i64::try_from(self.config.limits.temporary_numel).unwrap_or(i64::MAX);
        let n_keys = self.tokens.n_keys();
        let has_kernel = sdpa::has_kernel(self.config.device, heads);
        // The kernel's backward pass computes heads in parallel.
        let n_threads = if has_kernel { i64::from(tch::get_num_threads()) } else { 1 };
        let kv = (limit / (n_keys * heads.dim)).max(n_threads).clamp(1, heads.kv);
        // Without a kernel there are scores of each head, and with ALiBi a mask.
        let n_planes = if has_kernel && self.config.alibi.is_none() { 1 } else { kv };
        let per_query = n_planes * heads.repeat * n_keys;
        let queries = (limit / per_query).clamp(MIN_QUERIES, MAX_QUERIES).min(per_bin);
        let bins = match kv == heads.kv && queries == per_bin {
            true => (limit / (queries * per_query).max(kv * n_keys * heads.dim)).clamp(1, bins),
            false => 1,
        };
        BlockSize { bins, kv, queries }
    }
}

/// The keys and values of a block, views.
fn visible(keys_values: &[Tensor; 2], block: &QueryBlock) -> Result<[Tensor; 2], TchError> {
    let [keys, values] = keys_values.each_ref().map(|tensor| block.keys.narrow_dim(tensor, 2));
    Ok([keys?, values?])
}
