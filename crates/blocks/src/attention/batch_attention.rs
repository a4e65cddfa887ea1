use tch::{TchError, Tensor};

use crate::attention::block_mask::GroupTokens;
use crate::attention::causal_rows::CausalRows;
use crate::attention::heads::{AttentionRange, Heads};
use crate::attention::keys_values::{BatchKeysValues, KeysValues};
use crate::attention::layout::{Layout, PooledGroup};
use crate::attention::merge::{add_sinks, merge};
use crate::attention::methods::{Method, Methods};
use crate::attention::queries::QueryShape;
use crate::attention::query_blocks::QueryBlocks;
use crate::attention::sdpa::{self, AttentionPart, BackwardInput};

/// Attention of one batch in one block, group by group. The queries of a group are those of all its tokens, or those of
/// last tokens if there is a pooled group.
pub(crate) struct BatchAttention<'a> {
    heads: Heads,
    layout: &'a Layout,
    keys_values: BatchKeysValues<'a>,
}

impl<'a> BatchAttention<'a> {
    /// `kv [n, 2 kv_size]` are keys and values of the batch's slots, `cached` those of a prefix without slots.
    pub(crate) fn new(
        kv: &Tensor,
        heads: Heads,
        layout: &'a Layout,
        cached: Option<&Tensor>,
    ) -> Result<Self, TchError> {
        Ok(Self { heads, layout, keys_values: BatchKeysValues::new(kv, heads, layout, cached)? })
    }

    /// Returns outputs `[n, q_size]` and log-sums `[n, query heads]` of the queries `[n, q_size]` of group `i`, with a score
    /// without a value for each query head if there are `sinks [query heads]`.
    pub(crate) fn forward(
        &self,
        i: usize,
        pooled: Option<&PooledGroup>,
        queries: &Tensor,
        sinks: Option<&Tensor>,
    ) -> Result<AttentionPart, TchError> {
        let (shape, keys_values) = (self.shape(i, pooled), self.keys_values.group(i));
        let part = match self.method(i, pooled) {
            Method::Unmasked => joined_forward(shape, queries, &keys_values, None)?,
            Method::Masked(mask) => joined_forward(shape, queries, &keys_values, Some(mask))?,
            Method::Split(mask) => split_forward(shape, queries, &keys_values, mask)?,
            Method::Causal => self.causal_rows(shape, &keys_values).forward(queries)?,
            Method::Blocks => self.query_blocks(i, pooled, shape, &keys_values)?.forward(queries)?,
        };
        match sinks {
            Some(sinks) => add_sinks(part, sinks),
            None => Ok(part),
        }
    }

    /// Writes the gradients of group `i`'s queries into `grad_q [n, q_size]` and those of its keys and values into `grad_kv`,
    /// to whose prefix they are added.
    pub(crate) fn backward(
        &self,
        i: usize,
        pooled: Option<&PooledGroup>,
        input: &BackwardInput,
        grad_q: &Tensor,
        grad_kv: &KeysValues,
    ) -> Result<(), TchError> {
        let (shape, keys_values) = (self.shape(i, pooled), self.keys_values.group(i));
        match self.method(i, pooled) {
            Method::Unmasked => joined_backward(shape, input, &keys_values, None, grad_q, grad_kv),
            Method::Masked(mask) => joined_backward(shape, input, &keys_values, Some(mask), grad_q, grad_kv),
            Method::Split(mask) => split_backward(shape, input, &keys_values, mask, grad_q, grad_kv),
            Method::Causal => self.causal_rows(shape, &keys_values).backward(input, grad_q, grad_kv),
            Method::Blocks => self.query_blocks(i, pooled, shape, &keys_values)?.backward(input, grad_q, grad_kv),
        }
    }

    fn shape(&self, i: usize, pooled: Option<&PooledGroup>) -> QueryShape {
        let group = &self.layout.groups[i];
        let per_bin = pooled.map_or(group.len, |pooled| pooled.per_bin);
        QueryShape { bins: group.bins, per_bin, heads: self.heads }
    }

    fn method<'b>(&'b self, i: usize, pooled: Option<&'b PooledGroup>) -> &'b Method {
        let methods: &Methods = pooled.map_or(&self.layout.groups[i].methods, |pooled| &pooled.methods);
        methods.get(self.heads.range)
    }

    fn causal_rows<'b>(&self, shape: QueryShape, keys_values: &'b KeysValues) -> CausalRows<'b> {
        CausalRows { shape, keys_values, temporary_numel: self.layout.config.limits.temporary_numel }
    }

    fn query_blocks<'b>(
        &'b self,
        i: usize,
        pooled: Option<&PooledGroup>,
        shape: QueryShape,
        keys_values: &'b KeysValues,
    ) -> Result<QueryBlocks<'b>, TchError> {
        let slots = match (pooled, &self.layout.pooled) {
            (Some(group), Some(last)) => Some(last.slots.f_index_select(0, &group.rows)?),
            _ => None,
        };
        let tokens = GroupTokens::new(self.layout, i, slots.as_ref())?;
        let config = &self.layout.config;
        let window = config.window.filter(|_| self.heads.range == AttentionRange::Windowed);
        Ok(QueryBlocks { shape, config, window, tokens, keys_values })
    }
}

/// One call on the prefix and the bins' own keys.
fn joined_forward(
    shape: QueryShape,
    queries: &Tensor,
    keys_values: &KeysValues,
    mask: Option<&Tensor>,
) -> Result<AttentionPart, TchError> {
    shape.flatten(&sdpa::forward(&shape.by_head(queries)?, &keys_values.joined()?, mask, shape.heads)?)
}

fn joined_backward(
    shape: QueryShape,
    input: &BackwardInput,
    keys_values: &KeysValues,
    mask: Option<&Tensor>,
    grad_q: &Tensor,
    grad_kv: &KeysValues,
) -> Result<(), TchError> {
    let input = input.map(|matrix| shape.by_head(matrix))?;
    let [queries, keys, values] = sdpa::backward(&input, &keys_values.joined()?, mask, shape.heads)?;
    shape.by_head(grad_q)?.f_copy_(&queries)?;
    grad_kv.write([&keys, &values])
}

/// A call on the bins' own keys with a mask, and one of all queries on the prefix without a mask.
fn split_forward(
    shape: QueryShape,
    queries: &Tensor,
    keys_values: &KeysValues,
    mask: &Tensor,
) -> Result<AttentionPart, TchError> {
    let heads = shape.heads;
    let own = sdpa::forward(&shape.by_head(queries)?, &keys_values.own_by_head()?, Some(mask), heads)?;
    let own = shape.flatten(&own)?;
    let Some(prefix) = keys_values.prefix_by_head()? else { return Ok(own) };
    let joined = shape.joined();
    merge(own, &joined.flatten(&sdpa::forward(&joined.by_head(queries)?, &prefix, None, heads)?)?)
}

fn split_backward(
    shape: QueryShape,
    input: &BackwardInput,
    keys_values: &KeysValues,
    mask: &Tensor,
    grad_q: &Tensor,
    grad_kv: &KeysValues,
) -> Result<(), TchError> {
    let own_input = input.map(|matrix| shape.by_head(matrix))?;
    let [queries, keys, values] = sdpa::backward(&own_input, &keys_values.own_by_head()?, Some(mask), shape.heads)?;
    shape.by_head(grad_q)?.f_copy_(&queries)?;
    grad_kv.write_own([&keys, &values])?;
    let Some(prefix) = keys_values.prefix_by_head()? else { return Ok(()) };
    let joined = shape.joined();
    let input = input.map(|matrix| joined.by_head(matrix))?;
    let [queries, keys, values] = sdpa::backward(&input, &prefix, None, shape.heads)?;
    let _ = joined.by_head(grad_q)?.f_add_(&queries)?;
    grad_kv.add_to_prefix([&keys, &values])
}
