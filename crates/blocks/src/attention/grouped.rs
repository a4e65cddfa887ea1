use tch::{TchError, Tensor};

use crate::attention::heads::Heads;
use crate::attention::layout::{Group, Layout};
use crate::attention::packed_batch::PackedBatch;
use crate::attention::sdpa::{self, BackwardInput};

pub(crate) struct AttentionOutput {
    /// `[n, q_size]`, or `[rows, q_size]` in the caller's order of rows if only last tokens have queries.
    pub(crate) output: Tensor,
    /// One entry per batch.
    pub(crate) saved: Vec<SavedAttention>,
}

/// Tensors of one batch that the backward pass of attention needs.
#[derive(Debug)]
pub(crate) struct SavedAttention {
    /// Queries rotated to their positions, `[n, q_size]`; `[rows, q_size]` if only last tokens have queries.
    q: Tensor,
    /// `[n, 2 kv_size]`
    kv: Tensor,
    /// Kernel outputs of the groups, one after another, `[.., q_size]`.
    output: Tensor,
    /// Logarithms of the softmax sums of each group, `[bins, kv, queries]`.
    log_sums: Vec<Tensor>,
    /// True if only last tokens have queries.
    is_pooled: bool,
}

impl SavedAttention {
    /// Attention's output at the queries: `[n, q_size]`, or `[rows, q_size]` if only last tokens have queries.
    pub(crate) fn output_of_queries(&self, layout: &Layout) -> Result<Tensor, TchError> {
        match layout.pooled.as_ref().filter(|_| self.is_pooled) {
            Some(pooled) => self.output.f_index_select(0, &pooled.results),
            None => Ok(self.output.shallow_clone()),
        }
    }

    pub(crate) fn into_owned(self) -> Result<Self, TchError> {
        let copy = |tensor: Tensor| tensor.f_detach_copy();
        let Self { q, kv, output, .. } = self;
        Ok(Self {
            q: copy(q)?,
            kv: copy(kv)?,
            output: copy(output)?,
            log_sums: self.log_sums,
            is_pooled: self.is_pooled,
        })
    }

    pub(crate) fn numel(&self) -> usize {
        [&self.q, &self.kv, &self.output].into_iter().chain(&self.log_sums).map(Tensor::numel).sum()
    }
}

/// Attention of all slots: the prefix attends to itself, each row to the prefix and to its own past. `q` is
/// `[n, q_size]`, `kv` `[n, 2 kv_size]`, and `cached` holds keys and values of prefixes without slots.
pub(crate) fn forward(
    q: &Tensor,
    kv: &Tensor,
    heads: Heads,
    packed: &PackedBatch<'_>,
    cached: &[Option<&Tensor>],
) -> Result<AttentionOutput, TchError> {
    let (mut outputs, mut log_sums) = (Vec::new(), Vec::new());
    for ((&layout, &slots), cached) in packed.layouts.iter().zip(&packed.slots).zip(cached) {
        let keys_values = GroupedKeysValues::new(&slots.narrow(kv)?, heads, layout, *cached)?;
        let queries = slots.narrow(q)?.f_split_with_sizes(&layout.sizes, 0)?;
        let mut sums = Vec::with_capacity(queries.len());
        for (i, (group, queries)) in layout.groups.iter().zip(&queries).enumerate() {
            let (output, sum) = keys_values.forward(i, queries, group.len, group.mask.get(heads.range))?;
            outputs.push(output);
            sums.push(sum);
        }
        log_sums.push(sums);
    }
    let output = concat(outputs)?;
    let saved = packed.slots.iter().zip(log_sums).map(|(slots, log_sums)| {
        let (q, kv, output) = (slots.narrow(q)?, slots.narrow(kv)?, slots.narrow(&output)?);
        Ok(SavedAttention { q, kv, output, log_sums, is_pooled: false })
    });
    Ok(AttentionOutput { saved: saved.collect::<Result<_, TchError>>()?, output })
}

/// Attention of the last token of each row only: `q` is `[rows, q_size]` in the caller's order of rows.
pub(crate) fn forward_pooled(
    q: &Tensor,
    kv: &Tensor,
    heads: Heads,
    packed: &PackedBatch<'_>,
    cached: &[Option<&Tensor>],
) -> Result<AttentionOutput, TchError> {
    let (mut selected, mut saved) = (Vec::new(), Vec::new());
    for (batch_idx, (&layout, cached)) in packed.layouts.iter().zip(cached).enumerate() {
        let (q, kv) = (packed.rows[batch_idx].narrow(q)?, packed.slots[batch_idx].narrow(kv)?);
        let keys_values = GroupedKeysValues::new(&kv, heads, layout, *cached)?;
        let (mut outputs, mut log_sums) = (Vec::new(), Vec::new());
        for (i, group) in layout.pooled_groups() {
            let queries = q.f_index_select(0, &group.rows)?; // [bins * per_bin, q_size]
            let (output, sum) = keys_values.forward(i, &queries, group.per_bin, group.mask.get(heads.range))?;
            outputs.push(output);
            log_sums.push(sum);
        }
        let output = concat(outputs)?;
        if let Some(pooled) = &layout.pooled {
            selected.push(output.f_index_select(0, &pooled.results)?);
        }
        saved.push(SavedAttention { q, kv, output, log_sums, is_pooled: true });
    }
    Ok(AttentionOutput { output: concat(selected)?, saved })
}

/// Backward pass of [`forward`] for one batch: writes the gradients of queries and of keys and values into
/// `grad_q [n, q_size]` and `grad_kv [n, 2 kv_size]`, given the gradient of the outputs, `grad [n, q_size]`.
pub(crate) fn backward(
    saved: &SavedAttention,
    grad: &Tensor,
    heads: Heads,
    layout: &Layout,
    grad_q: &mut Tensor,
    grad_kv: &Tensor,
) -> Result<(), TchError> {
    let keys_values = GroupedKeysValues::new(&saved.kv, heads, layout, None)?;
    let split = |tensor: &Tensor| tensor.f_split_with_sizes(&layout.sizes, 0);
    let (q, grad, outputs, grad_q) = (split(&saved.q)?, split(grad)?, split(&saved.output)?, split(grad_q)?);
    let grad_kv = split(grad_kv)?;
    for (i, group) in layout.groups.iter().enumerate() {
        let input =
            BackwardInput { queries: &q[i], outputs: &outputs[i], log_sums: &saved.log_sums[i], grad: &grad[i] };
        let [queries, keys, values] = keys_values.backward(i, &input, group.len, group.mask.get(heads.range))?;
        let by_head = keys_values.split_heads(&queries, group, group.len)?;
        keys_values.split_heads(&grad_q[i], group, group.len)?.f_copy_(&by_head)?;
        keys_values.add_grads(i, [&keys, &values], &grad_kv)?;
    }
    Ok(())
}

/// Backward pass of [`forward_pooled`] for one batch; `grad` and `grad_q` are `[rows, q_size]`, and `grad_q` is zero.
pub(crate) fn backward_pooled(
    saved: &SavedAttention,
    grad: &Tensor,
    heads: Heads,
    layout: &Layout,
    grad_q: &mut Tensor,
    grad_kv: &Tensor,
) -> Result<(), TchError> {
    let Some(pooled) = &layout.pooled else { return Ok(()) };
    let keys_values = GroupedKeysValues::new(&saved.kv, heads, layout, None)?;
    // Repeated queries of a bin have no gradient.
    let grad = saved.output.f_zeros_like()?.f_index_copy_(0, &pooled.results, grad)?;
    let sizes: Vec<i64> = pooled.groups.iter().map(|group| group.rows.size()[0]).collect();
    let (grad, outputs) = (grad.f_split_with_sizes(&sizes, 0)?, saved.output.f_split_with_sizes(&sizes, 0)?);
    let grad_kv = grad_kv.f_split_with_sizes(&layout.sizes, 0)?;
    if layout.prefix_slots > 0 {
        // The prefix has no queries: its gradient is the sum of those from the rows.
        let _ = grad_kv[0].shallow_clone().f_zero_()?;
    }
    for (pooled_idx, (i, group)) in layout.pooled_groups().enumerate() {
        let queries = saved.q.f_index_select(0, &group.rows)?;
        let (outputs, log_sums, grad) = (&outputs[pooled_idx], &saved.log_sums[pooled_idx], &grad[pooled_idx]);
        let input = BackwardInput { queries: &queries, outputs, log_sums, grad };
        let [queries, keys, values] = keys_values.backward(i, &input, group.per_bin, group.mask.get(heads.range))?;
        let _ = grad_q.f_index_add_(0, &group.rows, &queries.f_reshape([-1, heads.q_size()])?)?;
        keys_values.add_grads(i, [&keys, &values], &grad_kv)?;
    }
    Ok(())
}

/// Keys and values of one batch by group, each `[bins * len, 2 kv_size]`.
struct GroupedKeysValues<'a> {
    heads: Heads,
    layout: &'a Layout,
    groups: Vec<Tensor>,
    /// `[prefix_len, 2 kv_size]`
    prefix: Option<Tensor>,
}

impl<'a> GroupedKeysValues<'a> {
    fn new(kv: &Tensor, heads: Heads, layout: &'a Layout, cached: Option<&Tensor>) -> Result<Self, TchError> {
        let groups = kv.f_split_with_sizes(&layout.sizes, 0)?;
        let computed = groups.first().filter(|_| layout.prefix_slots > 0);
        let prefix = cached.or(computed).map(Tensor::shallow_clone);
        Ok(Self { heads, layout, groups, prefix })
    }

    /// Returns the output for `queries [bins * len, q_size]` of group `i`, of the same shape, and the log-sums.
    fn forward(&self, i: usize, queries: &Tensor, len: i64, mask: &Tensor) -> Result<(Tensor, Tensor), TchError> {
        let group = &self.layout.groups[i];
        let queries = self.split_heads(queries, group, len)?.f_transpose(1, 2)?;
        let (output, log_sums) = sdpa::forward(&queries, &self.keys_and_values(i)?, mask, self.heads)?;
        let output = output.f_transpose(1, 2)?.f_reshape([group.bins * len, self.heads.q_size()])?;
        Ok((output, log_sums))
    }

    /// Returns the gradients of queries `[bins, len * repeat, kv, dim]` and of keys and values `[bins, .., kv, dim]`.
    fn backward(&self, i: usize, input: &BackwardInput<'_>, len: i64, mask: &Tensor) -> Result<[Tensor; 3], TchError> {
        let group = &self.layout.groups[i];
        let by_head = |tensor: &Tensor| self.split_heads(tensor, group, len)?.f_transpose(1, 2);
        let (grad, queries, outputs) = (by_head(input.grad)?, by_head(input.queries)?, by_head(input.outputs)?);
        let input = BackwardInput { grad: &grad, queries: &queries, outputs: &outputs, log_sums: input.log_sums };
        let [queries, keys, values] = sdpa::backward(&input, &self.keys_and_values(i)?, mask, self.heads)?;
        Ok([queries.f_transpose(1, 2)?, keys.f_transpose(1, 2)?, values.f_transpose(1, 2)?])
    }

    /// `[bins * len, q_size]` as `[bins, len * repeat, kv, dim]`.
    fn split_heads(&self, queries: &Tensor, group: &Group, len: i64) -> Result<Tensor, TchError> {
        let Heads { kv, repeat, dim, .. } = self.heads;
        queries.f_view([group.bins, len * repeat, kv, dim])
    }

    /// Keys and values `[bins, kv, prefix_len + len, dim]`, or without the prefix for the prefix itself.
    fn keys_and_values(&self, i: usize) -> Result<[Tensor; 2], TchError> {
        let Heads { kv, dim, .. } = self.heads;
        let group = &self.layout.groups[i];
        let width = 2 * self.heads.kv_size();
        let own = self.groups[i].f_view([group.bins, group.len, width])?;
        let all = match &self.prefix {
            Some(prefix) if group.after_prefix => {
                let prefix = prefix.f_unsqueeze(0)?.f_expand([group.bins, self.layout.prefix_len, width], false)?;
                Tensor::f_cat(&[prefix, own], 1)?
            }
            _ => own,
        };
        let all = all.f_view([group.bins, -1, 2, kv, dim])?;
        Ok([all.f_select(2, 0)?.f_transpose(1, 2)?, all.f_select(2, 1)?.f_transpose(1, 2)?])
    }

    /// Writes the gradients of group `i`'s slots and adds the part of the prefix, whose group comes first.
    fn add_grads(&self, i: usize, grads: [&Tensor; 2], grad_kv: &[Tensor]) -> Result<(), TchError> {
        let Heads { kv, dim, .. } = self.heads;
        let group = &self.layout.groups[i];
        let prefix_len = grads[0].size()[1] - group.len;
        let own = grad_kv[i].f_view([group.bins, group.len, 2, kv, dim])?;
        for (kv_idx, grad) in (0..).zip(grads) {
            own.f_select(2, kv_idx)?.f_copy_(&grad.f_narrow(1, prefix_len, group.len)?)?;
            if prefix_len > 0 {
                let prefix = grad_kv[0].f_view([prefix_len, 2, kv, dim])?.f_select(1, kv_idx)?;
                let grad = grad.f_narrow(1, 0, prefix_len)?.f_sum_dim_intlist(0, false, tch::Kind::Float)?;
                let _ = prefix.shallow_clone().f_add_(&grad)?;
            }
        }
        Ok(())
    }
}

fn concat(mut tensors: Vec<Tensor>) -> Result<Tensor, TchError> {
    match tensors.len() {
        1 => Ok(tensors.swap_remove(0)),
        _ => Tensor::f_cat(&tensors, 0),
    }
}
