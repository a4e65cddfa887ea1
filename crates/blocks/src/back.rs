//! The way back through a block.

use sepal_autograd::fused::Turn;
use tch::{TchError, Tensor};

use crate::attention::{attend_back, attend_pooled_back};
use crate::block::{Block, Wanted};
use crate::norm::{Normed, WeightedNorm};
use crate::run::{Run, Share, of};
use crate::tape::Saved;

/// The gradients that a block gives.
pub(crate) struct Back {
    /// Of the input, `[n, hidden]` or `[all prefixes, hidden]`.
    pub(crate) input: Tensor,
    /// Of the keys and values that each part was given for its prefix, `[prefix_len, 2 kv_size]`.
    pub(crate) given: Vec<Option<Tensor>>,
}

impl Block {
    /// The way back of [`forward`](Self::forward): from the gradient of the output, which is used up, to that of the
    /// input. `is_given` says which parts brought their prefix's keys and values.
    pub(crate) fn backward(
        &self,
        saved: &[Saved],
        mut grad: Tensor,
        (run, is_given): (&Run<'_>, &[bool]),
        wanted: Wanted,
    ) -> Result<Back, TchError> {
        let of_mlp = self.mlp_back(saved, &mut grad, &run.slots)?;
        let of_output = self.output_back(saved, &grad, &run.slots)?; // [n, q_size]
        let (mut grad_q, grad_kv) = (of_output.f_empty_like()?, self.empty_kv(&grad, run)?);
        for ((&layout, saved), &slots) in run.layouts.iter().zip(saved).zip(&run.slots) {
            let into = (&of(&grad_q, slots)?, &of(&grad_kv, slots)?);
            attend_back(saved.attention(), &of(&of_output, slots)?, self.heads, layout, into)?;
        }
        let given = take_given(&grad_kv, run, is_given)?;
        run.turn(&mut grad_q, self.heads, Turn::Back)?;
        run.turn(&mut self.keys(&grad_kv)?, self.heads, Turn::Back)?;
        self.heads_back(saved, &grad_q, &run.slots, &grad_kv, &run.slots)?;
        let input = match wanted {
            Wanted::All => {
                let of_norm = plus(self.q.backward(&grad_q)?, of_mlp)?;
                let of_norm = self.kv.add_backward(&of_norm, &grad_kv)?;
                self.input_back(saved, grad, &of_norm, &run.slots)
            }
            Wanted::Prefixes => {
                let [q, kv, grad] = [run.prefixes_of(&grad_q)?, run.prefixes_of(&grad_kv)?, run.prefixes_of(&grad)?];
                let of_mlp = of_mlp.map(|of_mlp| run.prefixes_of(&of_mlp)).transpose()?;
                let of_norm = self.kv.add_backward(&plus(self.q.backward(&q)?, of_mlp)?, &kv)?;
                self.input_back(saved, grad, &of_norm, &run.prefixes)
            }
        };
        Ok(Back { input: input?, given })
    }

    /// The way back of [`forward_pooled`](Self::forward_pooled), from `[rows, hidden]`.
    pub(crate) fn backward_pooled(
        &self,
        saved: &[Saved],
        mut grad: Tensor,
        (run, is_given): (&Run<'_>, &[bool]),
        wanted: Wanted,
    ) -> Result<Back, TchError> {
        let of_mlp = self.mlp_back(saved, &mut grad, &run.rows)?;
        let of_output = self.output_back(saved, &grad, &run.rows)?; // [rows, q_size]
        let (mut grad_q, grad_kv) = (of_output.f_zeros_like()?, self.empty_kv(&grad, run)?);
        let shares = run.slots.iter().zip(&run.rows);
        for ((&layout, saved), (&slots, &rows)) in run.layouts.iter().zip(saved).zip(shares) {
            let into = (&mut of(&grad_q, rows)?, &of(&grad_kv, slots)?);
            attend_pooled_back(saved.attention(), &of(&of_output, rows)?, self.heads, layout, into)?;
        }
        let given = take_given(&grad_kv, run, is_given)?;
        let pooled = run.pooled_slots()?;
        run.turn_pooled(&mut grad_q, &pooled, self.heads, Turn::Back)?;
        run.turn(&mut self.keys(&grad_kv)?, self.heads, Turn::Back)?;
        self.heads_back(saved, &grad_q, &run.rows, &grad_kv, &run.slots)?;
        if wanted == Wanted::Prefixes {
            // No query stands in a prefix.
            let of_norm = self.kv.backward(&run.prefixes_of(&grad_kv)?)?;
            let input = self.input_back(saved, of_norm.f_zeros_like()?, &of_norm, &run.prefixes)?;
            return Ok(Back { input, given });
        }
        let of_asking = plus(self.q.backward(&grad_q)?, of_mlp)?;
        let of_norm = self.kv.backward(&grad_kv)?.f_index_add_(0, &pooled, &of_asking)?;
        let sum = of_norm.f_zeros_like()?.f_index_add_(0, &pooled, &grad)?;
        Ok(Back { input: self.input_back(saved, sum, &of_norm, &run.slots)?, given })
    }

    /// Back through the MLP: `grad` of its output becomes that of what attention left. In a parallel block `grad` stays,
    /// and the gradient of the block's first norm is returned.
    fn mlp_back(&self, saved: &[Saved], grad: &mut Tensor, shares: &[Share]) -> Result<Option<Tensor>, TchError> {
        let of_output = through(self.mlp_norm.as_ref(), saved, |saved| saved.mlp_normed.as_ref(), grad, shares)?;
        let kept = saved.iter().map(|saved| &saved.inner).zip(shares.iter().copied());
        let of_norm = self.mlp.backward(of_output.as_ref().unwrap_or(grad), kept)?;
        if self.is_parallel {
            return Ok(Some(of_norm));
        }
        for (saved, &share) in saved.iter().zip(shares) {
            let middle = saved.middle.as_ref().ok_or_else(missing)?;
            self.norm.add_grad(&mut of(grad, share)?, &of(&of_norm, share)?, middle)?;
        }
        Ok(None)
    }

    /// Back through the output layer: the gradient of attention's outputs.
    fn output_back(&self, saved: &[Saved], grad: &Tensor, shares: &[Share]) -> Result<Tensor, TchError> {
        let norm = self.attention_norm.as_ref();
        let of_layer = through(norm, saved, |saved| saved.attention_normed.as_ref(), grad, shares)?;
        self.output.backward(of_layer.as_ref().unwrap_or(grad))
    }

    /// Back through the norms of heads, in place.
    fn heads_back(
        &self,
        saved: &[Saved],
        grad_q: &Tensor,
        q_shares: &[Share],
        grad_kv: &Tensor,
        kv_shares: &[Share],
    ) -> Result<(), TchError> {
        let Some(norms) = &self.head_norms else { return Ok(()) };
        let grad_k = self.keys(grad_kv)?;
        for ((saved, &q_share), &kv_share) in saved.iter().zip(q_shares).zip(kv_shares) {
            let (Some(q), Some(k)) = (&saved.q_normed, &saved.k_normed) else { return Err(missing()) };
            norms.backward(&norms.q, &of(grad_q, q_share)?, q)?;
            norms.backward(&norms.k, &of(&grad_k, kv_share)?, k)?;
        }
        Ok(())
    }

    /// Back through the first norm: adds to `grad` what comes through it, for the first positions of each part.
    fn input_back(
        &self,
        saved: &[Saved],
        grad: Tensor,
        of_norm: &Tensor,
        shares: &[Share],
    ) -> Result<Tensor, TchError> {
        for (saved, &share) in saved.iter().zip(shares) {
            let input = saved.input.of(share.at_start())?;
            self.norm.add_grad(&mut of(&grad, share)?, &of(of_norm, share)?, &input)?;
        }
        Ok(grad)
    }

    fn empty_kv(&self, like: &Tensor, run: &Run<'_>) -> Result<Tensor, TchError> {
        like.f_new_empty([run.n, 2 * self.heads.kv_size()], (like.kind(), like.device()))
    }
}

/// Takes the gradients of given keys and values out of `grad_kv`: the block computed none there, so nothing goes on.
fn take_given(grad_kv: &Tensor, run: &Run<'_>, is_given: &[bool]) -> Result<Vec<Option<Tensor>>, TchError> {
    let take = |(prefix, &is_given): (Share, &bool)| {
        if !is_given {
            return Ok(None);
        }
        let mut of_prefix = of(grad_kv, prefix)?;
        let taken = of_prefix.f_detach_copy()?;
        let _ = of_prefix.f_zero_()?;
        Ok(Some(taken))
    };
    run.prefix_shares().zip(is_given).map(take).collect()
}

/// From the gradient of a norm's output to that of its input, part by part; nothing if there is no norm.
fn through<'a>(
    norm: Option<&WeightedNorm>,
    saved: &'a [Saved],
    normed: impl Fn(&'a Saved) -> Option<&'a Normed>,
    grad: &Tensor,
    shares: &[Share],
) -> Result<Option<Tensor>, TchError> {
    let Some(norm) = norm else { return Ok(None) };
    let result = grad.f_empty_like()?;
    for (saved, &share) in saved.iter().zip(shares) {
        norm.backward(&mut of(&result, share)?, &of(grad, share)?, normed(saved).ok_or_else(missing)?)?;
    }
    Ok(Some(result))
}

fn plus(mut sum: Tensor, more: Option<Tensor>) -> Result<Tensor, TchError> {
    match more {
        Some(more) => sum.f_add_(&more),
        None => Ok(sum),
    }
}

fn missing() -> TchError {
    TchError::Kind("a block with what another one kept".to_owned())
}
