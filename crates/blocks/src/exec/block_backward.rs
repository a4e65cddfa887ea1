use sepal_autograd::fused::Rotate;
use tch::{Kind, TchError, Tensor};

use crate::adapters::{AdapterBackward, InnerGrads, LayerInput, Site};
use crate::attention::grouped;
use crate::attention::packed_batch::PackedBatch;
use crate::exec::batch::InputGrad;
use crate::exec::block::Block;
use crate::exec::tape::SavedBlock;
use crate::layers::mlp::SavedMlp;
use crate::layers::norm::{SavedNorm, WeightedNorm};
use crate::segment::Segment;

pub(crate) struct BackwardInput<'a, 'b> {
    /// One entry per batch.
    pub(crate) saved: &'a [SavedBlock],
    /// Gradient of the output in fp32, overwritten.
    pub(crate) grad: Tensor,
    pub(crate) packed: &'a PackedBatch<'a>,
    pub(crate) adapters: &'b mut AdapterBackward<'a>,
    pub(crate) input_grad: InputGrad,
}

/// State of a block before the backward pass of its queries, keys and values, whose gradients are in the kind of the
/// computation.
struct AttentionGrads<'a> {
    q: Tensor,
    kv: Tensor,
    q_inner: InnerGrads<'a>,
    kv_inner: InnerGrads<'a>,
    /// Gradient of the residual at the queries in fp32.
    residual: Tensor,
    /// Gradient of the first norm's output at the queries, in a parallel block.
    normed: Option<Tensor>,
}

impl Block {
    /// Backward pass of [`forward`](Self::forward). Returns the gradient of the input in fp32, `[n, hidden]` or `[all
    /// prefixes, hidden]`.
    pub(crate) fn backward(&self, input: BackwardInput<'_, '_>) -> Result<Tensor, TchError> {
        let BackwardInput { saved, packed, input_grad, .. } = input;
        let adapters = &mut *input.adapters;
        let grads = self.attention_backward(BackwardInput { adapters, ..input }, None)?;
        let grads = match input_grad {
            InputGrad::All => grads,
            InputGrad::Prefix => grads.of_prefixes(packed)?,
        };
        let segments = if input_grad == InputGrad::All { &packed.slots } else { &packed.prefixes };
        let grad_normed = add_optional(self.q.backward(&grads.q)?, grads.normed)?;
        grads.q_inner.add_to(&grad_normed, segments)?;
        let grad_normed = self.kv.backward_add(&grad_normed, &grads.kv)?;
        grads.kv_inner.add_to(&grad_normed, segments)?;
        self.norm_backward(saved, grads.residual, &grad_normed, segments)
    }

    /// Backward pass of a pooled [`forward`](Self::forward); the gradient of the output is `[rows, hidden]`.
    pub(crate) fn backward_pooled(&self, input: BackwardInput<'_, '_>) -> Result<Tensor, TchError> {
        let BackwardInput { saved, packed, input_grad, .. } = input;
        let pooled = packed.pooled_slots()?;
        let adapters = &mut *input.adapters;
        let grads = self.attention_backward(BackwardInput { adapters, ..input }, Some(&pooled))?;
        let AttentionGrads { q, kv, q_inner, kv_inner, residual, normed } = grads;
        if input_grad == InputGrad::Prefix {
            // A prefix has no queries.
            let grad_normed = self.kv.backward(&packed.gather_prefixes(&kv)?)?;
            kv_inner.add_to(&grad_normed, &packed.prefixes)?;
            return self.norm_backward(saved, f32_zeros(&grad_normed)?, &grad_normed, &packed.prefixes);
        }
        let grad_queries = add_optional(self.q.backward(&q)?, normed)?;
        q_inner.add_to(&grad_queries, &packed.rows)?;
        let grad_normed = self.kv.backward(&kv)?.f_index_add_(0, &pooled, &grad_queries)?;
        kv_inner.add_to(&grad_normed, &packed.slots)?;
        let sum = f32_zeros(&grad_normed)?.f_index_add_(0, &pooled, &residual)?;
        self.norm_backward(saved, sum, &grad_normed, &packed.slots)
    }

    /// Backward pass of MLP, output layer and attention, with queries at the slots `pooled` or at all positions.
    fn attention_backward<'a>(
        &self,
        input: BackwardInput<'a, '_>,
        pooled: Option<&Tensor>,
    ) -> Result<AttentionGrads<'a>, TchError> {
        let BackwardInput { saved, mut grad, packed, adapters, .. } = input;
        let queries = packed.queries(pooled.is_some());
        let normed = self.mlp_backward(saved, &mut grad, packed, pooled.is_some(), adapters)?;
        let grad_output = self.output_backward(saved, &grad, packed, pooled.is_some(), adapters)?; // [n or rows, q_size]
        let mut q = if pooled.is_some() { grad_output.f_zeros_like()? } else { grad_output.f_empty_like()? };
        let kv = grad.f_new_empty([packed.n_slots, 2 * self.heads.kv_size()], (self.compute(), grad.device()))?;
        let segments = packed.slots.iter().zip(queries);
        for ((&layout, saved), (slots, queries)) in packed.layouts.iter().zip(saved).zip(segments) {
            let (grad, mut q, kv) = (queries.narrow(&grad_output)?, queries.narrow(&q)?, slots.narrow(&kv)?);
            let backward = if pooled.is_some() { grouped::backward_pooled } else { grouped::backward };
            backward(&saved.attention, &grad, self.heads, layout, &mut q, &kv)?;
        }
        adapters.run(Site::PrefixKeysValues, &packed.prefix_slots, &kv, |_| Ok(None))?;
        packed.rotate(&mut q, pooled, self.heads, Rotate::Backward)?;
        packed.rotate(&mut self.keys(&kv)?, None, self.heads, Rotate::Backward)?;
        self.head_norms_backward(saved, &q, queries, &kv, &packed.slots)?;
        let q_inner =
            adapters.run(Site::Queries, queries, &q, |batch| query_input(saved, packed, pooled.is_some(), batch))?;
        let input = |batch: usize| Ok(Some(LayerInput::Normed(saved[batch].input.share())));
        let kv_inner = adapters.run(Site::KeysValues, &packed.slots, &kv, input)?;
        Ok(AttentionGrads { q, kv, q_inner, kv_inner, residual: grad, normed })
    }

    /// Backward pass of the MLP: replaces the gradient of its output by that of attention's result. A parallel block
    /// leaves `grad` unchanged and returns the gradient of the first norm's output.
    fn mlp_backward(
        &self,
        saved: &[SavedBlock],
        grad: &mut Tensor,
        packed: &PackedBatch<'_>,
        is_pooled: bool,
        adapters: &mut AdapterBackward<'_>,
    ) -> Result<Option<Tensor>, TchError> {
        let segments = packed.queries(is_pooled);
        let grad_output =
            self.residual_backward(self.mlp_norm.as_ref(), saved, |saved| saved.mlp_norm.as_ref(), grad, segments)?;
        let mlps: Vec<&SavedMlp> = saved.iter().map(|saved| &saved.mlp).collect();
        let input = |batch: usize| match &saved[batch].middle {
            Some(middle) => Ok(Some(LayerInput::Normed(middle.share()))),
            None => query_input(saved, packed, is_pooled, batch),
        };
        let grad_normed = self.mlp.backward(grad_output.as_ref().unwrap_or(grad), &mlps, segments, adapters, input)?;
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
    fn output_backward(
        &self,
        saved: &[SavedBlock],
        grad: &Tensor,
        packed: &PackedBatch<'_>,
        is_pooled: bool,
        adapters: &mut AdapterBackward<'_>,
    ) -> Result<Tensor, TchError> {
        let (norm, segments) = (self.attention_norm.as_ref(), packed.queries(is_pooled));
        let grad_output =
            match self.residual_backward(norm, saved, |saved| saved.attention_norm.as_ref(), grad, segments)? {
                Some(grad) => grad,
                None => adapters.writable(Site::AttentionOutput, grad)?,
            };
        let input = |batch: usize| {
            let output = saved[batch].attention.output_of_queries(packed.layouts[batch])?;
            Ok(Some(LayerInput::Plain(output)))
        };
        let inner = adapters.run(Site::AttentionOutput, segments, &grad_output, input)?;
        let grad_attention = self.output.backward(&grad_output)?;
        inner.add_to(&grad_attention, segments)?;
        Ok(grad_attention)
    }

    /// Returns the gradient of the output of attention or MLP, given that of the sum with its input: through the norm of the
    /// output or the factor of residuals. None if both gradients are equal.
    fn residual_backward<'a>(
        &self,
        norm: Option<&WeightedNorm>,
        saved: &'a [SavedBlock],
        saved_norm: impl Fn(&'a SavedBlock) -> Option<&'a SavedNorm>,
        grad: &Tensor,
        segments: &[Segment],
    ) -> Result<Option<Tensor>, TchError> {
        match (norm, self.residual_factor) {
            (Some(norm), _) => weighted_norm_backward(norm, saved, saved_norm, grad, segments).map(Some),
            (None, Some(factor)) => grad.f_mul_scalar(factor).map(Some),
            (None, None) => Ok(None),
        }
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
            norms.q.backward_parts(&q_segment.narrow(grad_q)?, q)?;
            norms.k.backward_parts(&kv_segment.narrow(&grad_k)?, k)?;
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

impl AttentionGrads<'_> {
    /// The gradients of the prefixes' positions.
    fn of_prefixes(self, packed: &PackedBatch<'_>) -> Result<Self, TchError> {
        let gather = |matrix: &Tensor| packed.gather_prefixes(matrix);
        let normed = self.normed.as_ref().map(gather).transpose()?;
        let (q, kv, residual) = (gather(&self.q)?, gather(&self.kv)?, gather(&self.residual)?);
        Ok(Self { q, kv, residual, normed, ..self })
    }
}

/// Output of the first norm at the queries of a batch.
fn query_input(
    saved: &[SavedBlock],
    packed: &PackedBatch<'_>,
    is_pooled: bool,
    batch: usize,
) -> Result<Option<LayerInput>, TchError> {
    let input = &saved[batch].input;
    let pooled = packed.layouts[batch].pooled.as_ref().filter(|_| is_pooled);
    Ok(Some(LayerInput::Normed(match pooled {
        Some(pooled) => input.select(&pooled.slots)?,
        None => input.share(),
    })))
}

/// Returns the gradient of a norm's input, given that of its output.
fn weighted_norm_backward<'a>(
    norm: &WeightedNorm,
    saved: &'a [SavedBlock],
    saved_norm: impl Fn(&'a SavedBlock) -> Option<&'a SavedNorm>,
    grad: &Tensor,
    segments: &[Segment],
) -> Result<Tensor, TchError> {
    let result = grad.f_empty_like()?;
    for (saved, segment) in saved.iter().zip(segments) {
        let saved_norm = saved_norm(saved).ok_or_else(mismatch)?;
        norm.backward(&mut segment.narrow(&result)?, &segment.narrow(grad)?, saved_norm)?;
    }
    Ok(result)
}

fn add_optional(mut sum: Tensor, addend: Option<Tensor>) -> Result<Tensor, TchError> {
    match addend {
        Some(addend) => sum.f_add_(&addend),
        None => Ok(sum),
    }
}

/// Zeros in fp32, of the shape of `tensor`.
fn f32_zeros(tensor: &Tensor) -> Result<Tensor, TchError> {
    tensor.f_new_zeros(tensor.size(), (Kind::Float, tensor.device()))
}

fn mismatch() -> TchError {
    TchError::Kind("saved tensors of another kind of block".to_owned())
}
