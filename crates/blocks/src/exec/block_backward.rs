use sepal_autograd::fused::Rotate;
use tch::{TchError, Tensor};

use crate::attention::grouped;
use crate::attention::packed_batch::PackedBatch;
use crate::exec::batch::InputGrad;
use crate::exec::block::Block;
use crate::exec::tape::SavedBlock;
use crate::layers::norm::{SavedNorm, WeightedNorm};
use crate::segment::Segment;

pub(crate) struct BackwardInput<'a> {
    /// One entry per batch.
    pub(crate) saved: &'a [SavedBlock],
    /// Gradient of the output, overwritten.
    pub(crate) grad: Tensor,
    pub(crate) packed: &'a PackedBatch<'a>,
    pub(crate) has_injected: &'a [bool],
    pub(crate) input_grad: InputGrad,
}

pub(crate) struct BlockGrads {
    /// Gradient of the input, `[n, hidden]` or `[all prefixes, hidden]`.
    pub(crate) input: Tensor,
    /// Gradient of the injected keys and values of each batch, `[prefix_len, 2 kv_size]`.
    pub(crate) injected: Vec<Option<Tensor>>,
}

/// State of a block before the backward pass of its queries, keys and values.
struct AttentionGrads {
    q: Tensor,
    kv: Tensor,
    /// Gradient of the residual at the queries.
    residual: Tensor,
    /// Gradient of the first norm's output at the queries, in a parallel block.
    normed: Option<Tensor>,
    injected: Vec<Option<Tensor>>,
}

impl Block {
    pub(crate) fn backward(&self, input: BackwardInput<'_>) -> Result<BlockGrads, TchError> {
        let BackwardInput { saved, packed, input_grad, .. } = input;
        let AttentionGrads { q, kv, residual, normed, injected } = self.attention_backward(input, None)?;
        let input = match input_grad {
            InputGrad::All => {
                let grad_normed = add_optional(self.q.backward(&q)?, normed)?;
                let grad_normed = self.kv.backward_add(&grad_normed, &kv)?;
                self.norm_backward(saved, residual, &grad_normed, &packed.slots)
            }
            InputGrad::Prefix => {
                let gather = |matrix: &Tensor| packed.gather_prefixes(matrix);
                let [q, kv, residual] = [gather(&q)?, gather(&kv)?, gather(&residual)?];
                let normed = normed.as_ref().map(gather).transpose()?;
                let grad_normed = self.kv.backward_add(&add_optional(self.q.backward(&q)?, normed)?, &kv)?;
                self.norm_backward(saved, residual, &grad_normed, &packed.prefixes)
            }
        };
        Ok(BlockGrads { input: input?, injected })
    }

    /// Backward pass of a pooled [`forward`](Self::forward); the gradient of the output is `[rows, hidden]`.
    pub(crate) fn backward_pooled(&self, input: BackwardInput<'_>) -> Result<BlockGrads, TchError> {
        let BackwardInput { saved, packed, input_grad, .. } = input;
        let pooled = packed.pooled_slots()?;
        let AttentionGrads { q, kv, residual, normed, injected } = self.attention_backward(input, Some(&pooled))?;
        if input_grad == InputGrad::Prefix {
            // A prefix has no queries.
            let grad_normed = self.kv.backward(&packed.gather_prefixes(&kv)?)?;
            let input = self.norm_backward(saved, grad_normed.f_zeros_like()?, &grad_normed, &packed.prefixes)?;
            return Ok(BlockGrads { input, injected });
        }
        let grad_queries = add_optional(self.q.backward(&q)?, normed)?;
        let grad_normed = self.kv.backward(&kv)?.f_index_add_(0, &pooled, &grad_queries)?;
        let sum = grad_normed.f_zeros_like()?.f_index_add_(0, &pooled, &residual)?;
        Ok(BlockGrads { input: self.norm_backward(saved, sum, &grad_normed, &packed.slots)?, injected })
    }

    /// Backward pass of MLP, output layer and attention, with queries at the slots `pooled` or at all positions.
    fn attention_backward(
        &self,
        input: BackwardInput<'_>,
        pooled: Option<&Tensor>,
    ) -> Result<AttentionGrads, TchError> {
        let BackwardInput { saved, mut grad, packed, has_injected, .. } = input;
        let queries = packed.queries(pooled.is_some());
        let normed = self.mlp_backward(saved, &mut grad, queries)?;
        let grad_output = self.output_backward(saved, &grad, queries)?; // [n or rows, q_size]
        let mut q = if pooled.is_some() { grad_output.f_zeros_like()? } else { grad_output.f_empty_like()? };
        let kv = grad.f_new_empty([packed.n_slots, 2 * self.heads.kv_size()], (grad.kind(), grad.device()))?;
        let segments = packed.slots.iter().zip(queries);
        for ((&layout, saved), (slots, queries)) in packed.layouts.iter().zip(saved).zip(segments) {
            let (grad, mut q, kv) = (queries.narrow(&grad_output)?, queries.narrow(&q)?, slots.narrow(&kv)?);
            let backward = if pooled.is_some() { grouped::backward_pooled } else { grouped::backward };
            backward(&saved.attention, &grad, self.heads, layout, &mut q, &kv)?;
        }
        let injected = take_injected(&kv, packed, has_injected)?;
        packed.rotate(&mut q, pooled, self.heads, Rotate::Backward)?;
        packed.rotate(&mut self.keys(&kv)?, None, self.heads, Rotate::Backward)?;
        self.head_norms_backward(saved, &q, queries, &kv, &packed.slots)?;
        Ok(AttentionGrads { q, kv, residual: grad, normed, injected })
    }

    /// Backward pass of the MLP: replaces the gradient of its output by that of attention's result. A parallel block
    /// leaves `grad` unchanged and returns the gradient of the first norm's output.
    fn mlp_backward(
        &self,
        saved: &[SavedBlock],
        grad: &mut Tensor,
        segments: &[Segment],
    ) -> Result<Option<Tensor>, TchError> {
        let grad_output =
            weighted_norm_backward(self.mlp_norm.as_ref(), saved, |saved| saved.mlp_norm.as_ref(), grad, segments)?;
        let mlps = saved.iter().map(|saved| &saved.mlp).zip(segments.iter().copied());
        let grad_normed = self.mlp.backward(grad_output.as_ref().unwrap_or(grad), mlps)?;
        if self.is_parallel {
            return Ok(Some(grad_normed));
        }
        for (saved, segment) in saved.iter().zip(segments) {
            let middle = saved.middle.as_ref().ok_or_else(mismatch)?;
            self.norm.add_grad(&mut segment.narrow(grad)?, &segment.narrow(&grad_normed)?, middle)?;
        }
        Ok(None)
    }

    /// Returns the gradient of attention's output.
    fn output_backward(&self, saved: &[SavedBlock], grad: &Tensor, segments: &[Segment]) -> Result<Tensor, TchError> {
        let norm = self.attention_norm.as_ref();
        let grad_output = weighted_norm_backward(norm, saved, |saved| saved.attention_norm.as_ref(), grad, segments)?;
        self.output.backward(grad_output.as_ref().unwrap_or(grad))
    }

    /// Backward pass of the norms of heads, in place.
    fn head_norms_backward(
        &self,
        saved: &[SavedBlock],
        grad_q: &Tensor,
        q_segments: &[Segment],
        grad_kv: &Tensor,
        kv_segments: &[Segment],
    ) -> Result<(), TchError> {
        let Some(norms) = &self.head_norms else { return Ok(()) };
        let grad_k = self.keys(grad_kv)?;
        for ((saved, q_segment), kv_segment) in saved.iter().zip(q_segments).zip(kv_segments) {
            let (Some(q), Some(k)) = (&saved.q_norm, &saved.k_norm) else { return Err(mismatch()) };
            norms.backward(&norms.q, &q_segment.narrow(grad_q)?, q)?;
            norms.backward(&norms.k, &kv_segment.narrow(&grad_k)?, k)?;
        }
        Ok(())
    }

    /// Adds the gradient through the first norm to `grad`, for the first positions of each batch.
    fn norm_backward(
        &self,
        saved: &[SavedBlock],
        grad: Tensor,
        grad_normed: &Tensor,
        segments: &[Segment],
    ) -> Result<Tensor, TchError> {
        for (saved, segment) in saved.iter().zip(segments) {
            let input = saved.input.narrow(segment.at_zero())?;
            self.norm.add_grad(&mut segment.narrow(&grad)?, &segment.narrow(grad_normed)?, &input)?;
        }
        Ok(grad)
    }
}

/// Moves the gradients of injected keys and values out of `grad_kv`. The block computed none there, so they stay zero.
fn take_injected(
    grad_kv: &Tensor,
    packed: &PackedBatch<'_>,
    has_injected: &[bool],
) -> Result<Vec<Option<Tensor>>, TchError> {
    let take = |(prefix, &has_injected): (Segment, &bool)| {
        if !has_injected {
            return Ok(None);
        }
        let mut grad = prefix.narrow(grad_kv)?;
        let taken = grad.f_detach_copy()?;
        let _ = grad.f_zero_()?;
        Ok(Some(taken))
    };
    packed.prefix_slots().zip(has_injected).map(take).collect()
}

/// Returns the gradient of a norm's input, given that of its output; none without a norm.
fn weighted_norm_backward<'a>(
    norm: Option<&WeightedNorm>,
    saved: &'a [SavedBlock],
    saved_norm: impl Fn(&'a SavedBlock) -> Option<&'a SavedNorm>,
    grad: &Tensor,
    segments: &[Segment],
) -> Result<Option<Tensor>, TchError> {
    let Some(norm) = norm else { return Ok(None) };
    let result = grad.f_empty_like()?;
    for (saved, segment) in saved.iter().zip(segments) {
        let saved_norm = saved_norm(saved).ok_or_else(mismatch)?;
        norm.backward(&mut segment.narrow(&result)?, &segment.narrow(grad)?, saved_norm)?;
    }
    Ok(Some(result))
}

fn add_optional(mut sum: Tensor, addend: Option<Tensor>) -> Result<Tensor, TchError> {
    match addend {
        Some(addend) => sum.f_add_(&addend),
        None => Ok(sum),
    }
}

fn mismatch() -> TchError {
    TchError::Kind("saved tensors of another kind of block".to_owned())
}
