use tch::{TchError, Tensor};

use crate::attention::batch_attention::BatchAttention;
use crate::attention::heads::Heads;
use crate::attention::keys_values::BatchKeysValues;
use crate::attention::layout::Layout;
use crate::attention::packed_batch::PackedBatch;
use crate::attention::sdpa::BackwardInput;
use crate::tensor_bytes::tensor_bytes;

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
    /// Outputs of the groups, one after another, `[.., q_size]`.
    output: Tensor,
    /// Logarithms of the softmax sums of each group, `[.., query heads]`, fp32.
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

    /// Memory in bytes.
    pub(crate) fn bytes(&self) -> usize {
        [&self.q, &self.kv, &self.output].into_iter().chain(&self.log_sums).map(tensor_bytes).sum()
    }
}

/// Attention of all slots: the prefix attends to itself, each row to the prefix and to its own past. `q` is
/// `[n, q_size]`, `kv` `[n, 2 kv_size]`, and `cached` holds keys and values of prefixes without slots. `sinks
/// [query heads]`, in the order of [`Heads`] and in fp32, are scores of a key without a value that all queries attend to.
pub(crate) fn forward(
    q: &Tensor,
    kv: &Tensor,
    heads: Heads,
    sinks: Option<&Tensor>,
    packed: &PackedBatch<'_>,
    cached: &[Option<&Tensor>],
) -> Result<AttentionOutput, TchError> {
    let (mut outputs, mut log_sums) = (Vec::new(), Vec::new());
    for ((&layout, &slots), cached) in packed.layouts.iter().zip(&packed.slots).zip(cached) {
        let attention = BatchAttention::new(&slots.narrow(kv)?, heads, layout, *cached)?;
        let queries = slots.narrow(q)?.f_split_with_sizes(&layout.sizes, 0)?;
        let mut sums = Vec::with_capacity(queries.len());
        for (i, queries) in queries.iter().enumerate() {
            let part = attention.forward(i, None, queries, sinks)?;
            outputs.push(part.outputs);
            sums.push(part.log_sums);
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

/// As [`forward`], for the last token of each row only: `q` is `[rows, q_size]` in the caller's order of rows.
pub(crate) fn forward_pooled(
    q: &Tensor,
    kv: &Tensor,
    heads: Heads,
    sinks: Option<&Tensor>,
    packed: &PackedBatch<'_>,
    cached: &[Option<&Tensor>],
) -> Result<AttentionOutput, TchError> {
    let (mut selected, mut saved) = (Vec::new(), Vec::new());
    for (batch_idx, (&layout, cached)) in packed.layouts.iter().zip(cached).enumerate() {
        let (q, kv) = (packed.rows[batch_idx].narrow(q)?, packed.slots[batch_idx].narrow(kv)?);
        let attention = BatchAttention::new(&kv, heads, layout, *cached)?;
        let (mut outputs, mut log_sums) = (Vec::new(), Vec::new());
        for (i, group) in layout.pooled_groups() {
            let queries = q.f_index_select(0, &group.rows)?; // [bins * per_bin, q_size]
            let part = attention.forward(i, Some(group), &queries, sinks)?;
            outputs.push(part.outputs);
            log_sums.push(part.log_sums);
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
    let attention = BatchAttention::new(&saved.kv, heads, layout, None)?;
    let split = |tensor: &Tensor| tensor.f_split_with_sizes(&layout.sizes, 0);
    let (q, grad, outputs, grad_q) = (split(&saved.q)?, split(grad)?, split(&saved.output)?, split(grad_q)?);
    let mut grad_kv = BatchKeysValues::new(grad_kv, heads, layout, None)?;
    for (i, group) in layout.groups.iter().enumerate() {
        if group.after_prefix {
            grad_kv.start_sums()?;
        }
        let input = BackwardInput {
            grad: grad[i].shallow_clone(),
            queries: q[i].shallow_clone(),
            outputs: outputs[i].shallow_clone(),
            log_sums: saved.log_sums[i].shallow_clone(),
        };
        attention.backward(i, None, &input, &grad_q[i], &grad_kv.group(i))?;
    }
    grad_kv.finish_sums()
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
    let attention = BatchAttention::new(&saved.kv, heads, layout, None)?;
    // Repeated queries of a bin have no gradient.
    let grad = grad.f_to_kind(saved.output.kind())?;
    let grad = saved.output.f_zeros_like()?.f_index_copy_(0, &pooled.results, &grad)?;
    let sizes: Vec<i64> = pooled.groups.iter().map(|group| group.rows.size()[0]).collect();
    let (grad, outputs) = (grad.f_split_with_sizes(&sizes, 0)?, saved.output.f_split_with_sizes(&sizes, 0)?);
    // The prefix has no queries: its gradient is the sum of those from the rows.
    let _ = grad_kv.f_narrow(0, 0, layout.prefix_slots)?.f_zero_()?;
    let mut grad_kv = BatchKeysValues::new(grad_kv, heads, layout, None)?;
    grad_kv.start_sums()?;
    for (pooled_idx, (i, group)) in layout.pooled_groups().enumerate() {
        let input = BackwardInput {
            grad: grad[pooled_idx].shallow_clone(),
            queries: saved.q.f_index_select(0, &group.rows)?,
            outputs: outputs[pooled_idx].shallow_clone(),
            log_sums: saved.log_sums[pooled_idx].shallow_clone(),
        };
        let grad_queries = input.queries.f_empty_like()?;
        attention.backward(i, Some(group), &input, &grad_queries, &grad_kv.group(i))?;
        let _ = grad_q.f_index_add_(0, &group.rows, &grad_queries.f_to_kind(grad_q.kind())?)?;
    }
    grad_kv.finish_sums()
}

fn concat(mut tensors: Vec<Tensor>) -> Result<Tensor, TchError> {
    match tensors.len() {
        1 => Ok(tensors.swap_remove(0)),
        _ => Tensor::f_cat(&tensors, 0),
    }
}
