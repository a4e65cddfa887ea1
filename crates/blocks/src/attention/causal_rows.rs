//! Attention of long rows by causal kernel calls, without masks. A row's own keys take a causal call, those of the prefix
//! a call without a mask, and [`merge`] joins them. The backward pass of each call takes the joined outputs and log-sums.

use tch::{Kind, TchError, Tensor};

use crate::attention::heads::Heads;
use crate::attention::keys_values::KeysValues;
use crate::attention::merge::merge;
use crate::attention::queries::{HeadBlock, QueryShape};
use crate::attention::sdpa::{self, AttentionPart, BackwardInput};
use crate::segment::Segment;

/// Rows of one length, each in a bin.
pub(crate) struct CausalRows<'a> {
    pub(crate) shape: QueryShape,
    pub(crate) keys_values: &'a KeysValues,
    /// Numbers of the largest temporary tensor.
    pub(crate) temporary_numel: usize,
}

impl CausalRows<'_> {
    /// Attention of `queries [bins * len, q_size]`.
    pub(crate) fn forward(&self, queries: &Tensor) -> Result<AttentionPart, TchError> {
        let (shape, heads) = (self.shape, self.shape.heads);
        let results = shape.empty_results(queries)?;
        for (bin, kv) in self.key_heads() {
            let keys_values = self.keys_values.narrow(bin, kv)?.to_fp32()?;
            for repeat in self.repeats(kv) {
                let block = HeadBlock { bin: bin.start, kv, repeat };
                let queries = shape.heads_of_bin(queries, block)?;
                let own = repeated(keys_values.own_by_head()?, repeat)?;
                let mut part = sdpa::causal_forward(&queries, &own, heads)?;
                if let Some(prefix) = keys_values.prefix_by_head()? {
                    part = merge(part, &sdpa::forward(&queries, &repeated(prefix, repeat)?, None, heads)?)?;
                }
                shape.heads_of_bin(&results.outputs, block)?.f_copy_(&part.outputs)?;
                shape.heads_of_bin(&results.log_sums, block)?.f_copy_(&part.log_sums.f_unsqueeze(-1)?)?;
            }
        }
        Ok(results)
    }

    /// Writes the gradients of queries, `[bins * len, q_size]`, and of keys and values.
    pub(crate) fn backward(
        &self,
        input: &BackwardInput,
        grad_q: &Tensor,
        grad_kv: &KeysValues,
    ) -> Result<(), TchError> {
        for (bin, kv) in self.key_heads() {
            let keys_values = self.keys_values.narrow(bin, kv)?.to_fp32()?;
            let mut sums: Option<Vec<[Tensor; 2]>> = None;
            for repeat in self.repeats(kv) {
                let grads =
                    self.block_backward(input, &keys_values, HeadBlock { bin: bin.start, kv, repeat }, grad_q)?;
                sums = Some(match sums {
                    None => grads,
                    Some(sums) => add(sums, grads)?,
                });
            }
            let grad_kv = grad_kv.narrow(bin, kv)?;
            if let [own, prefix @ ..] = sums.unwrap_or_default().as_slice() {
                grad_kv.write_own(own.each_ref())?;
                prefix.iter().try_for_each(|prefix| grad_kv.add_to_prefix(prefix.each_ref()))?;
            }
        }
        Ok(())
    }

    /// Writes the gradient of the block's queries. Returns those of keys and values, summed over the query heads of each
    /// head, `[1, kv, len, dim]` in fp32: of the row, then of the prefix if there is one.
    fn block_backward(
        &self,
        input: &BackwardInput,
        keys_values: &KeysValues,
        block: HeadBlock,
        grad_q: &Tensor,
    ) -> Result<Vec<[Tensor; 2]>, TchError> {
        let (shape, heads) = (self.shape, self.shape.heads);
        let mut input = input.map(|matrix| shape.heads_of_bin(matrix, block))?;
        // The order in memory that both kernel calls copy to otherwise.
        input.grad = input.grad.f_transpose(1, 2)?.f_contiguous()?.f_transpose(1, 2)?;
        let own = repeated(keys_values.own_by_head()?, block.repeat)?;
        let [mut queries, keys, values] = sdpa::causal_backward(&input, &own, heads)?;
        let mut grads = vec![summed([keys, values])?];
        if let Some(prefix) = keys_values.prefix_by_head()? {
            let prefix = repeated(prefix, block.repeat)?;
            let [of_prefix, keys, values] = sdpa::backward(&input, &prefix, None, heads)?;
            queries = queries.f_add_(&of_prefix)?;
            grads.push(summed([keys, values])?);
        }
        shape.heads_of_bin(grad_q, block)?.f_copy_(&queries)?;
        Ok(grads)
    }

    /// Bins, each with the heads of keys and values that are computed together.
    fn key_heads(&self) -> impl Iterator<Item = (Segment, Segment)> {
        let (bins, n_heads) = (self.shape.bins, self.shape.heads.kv);
        let per_call = self.heads_per_call().min(n_heads);
        let bins = Segment::cover(bins, 1);
        bins.flat_map(move |bin| Segment::cover(n_heads, per_call).map(move |kv| (bin, kv)))
    }

    /// Query heads of each of these heads that are computed together.
    fn repeats(&self, kv: Segment) -> impl Iterator<Item = Segment> {
        Segment::cover(self.shape.heads.repeat, self.heads_per_call() / kv.len)
    }

    /// Query heads of one call; at least one for each thread, because the kernel's backward pass computes heads in
    /// parallel.
    fn heads_per_call(&self) -> i64 {
        let Heads { dim, .. } = self.shape.heads;
        let limit = i64::try_from(self.temporary_numel).unwrap_or(i64::MAX);
        (limit / (self.shape.per_bin * dim)).max(i64::from(tch::get_num_threads())).max(1)
    }
}

/// The same keys and values `[1, kv, n, dim]` for several query heads, views `[repeat, kv, n, dim]`.
fn repeated(keys_values: [Tensor; 2], repeat: Segment) -> Result<[Tensor; 2], TchError> {
    let [keys, values] = keys_values.map(|tensor| tensor.f_expand([repeat.len, -1, -1, -1], false));
    Ok([keys?, values?])
}

/// Sums over query heads, in fp32.
fn summed(grads: [Tensor; 2]) -> Result<[Tensor; 2], TchError> {
    let [keys, values] = grads.map(|grad| grad.f_sum_dim_intlist(0, true, Kind::Float));
    Ok([keys?, values?])
}

fn add(sums: Vec<[Tensor; 2]>, grads: Vec<[Tensor; 2]>) -> Result<Vec<[Tensor; 2]>, TchError> {
    for (sum, grad) in sums.iter().flatten().zip(grads.iter().flatten()) {
        let _ = sum.shallow_clone().f_add_(grad)?;
    }
    Ok(sums)
}
