use tch::{Kind, TchError, Tensor};

use crate::layers::dense::Dense;
use crate::layers::linear::Linear;

/// Mixture of experts (arXiv 2401.04088): each position passes through the `per_token` experts that the router scores
/// highest, weighted by the softmax of these scores. Positions are gathered expert by expert, so that an expert computes
/// only the positions routed to it.
#[derive(Debug)]
pub(crate) struct Router {
    pub(crate) router: Linear,
    pub(crate) per_token: i64,
    pub(crate) experts: Vec<Dense>,
}

/// Tensors of one batch of `n` positions that the backward pass needs.
#[derive(Debug)]
pub(crate) struct SavedRouting {
    /// Chosen experts, `[n, per_token]`.
    chosen: Tensor,
    /// Weights of the chosen experts, `[n, per_token]`.
    weights: Tensor,
    /// Experts that were chosen at all.
    experts: Vec<SavedExpert>,
}

#[derive(Debug)]
struct SavedExpert {
    expert_idx: usize,
    /// Indices into the flattened `chosen`.
    choices: Tensor,
    /// Input of the activation.
    inner: Tensor,
}

impl Router {
    /// Adds the output for `y [n, hidden]` to `sum [n, hidden]`.
    pub(crate) fn forward(&self, y: &Tensor, sum: &mut Tensor) -> Result<SavedRouting, TchError> {
        let (scores, chosen) = self.router.forward(y)?.f_topk(self.per_token, 1, true, true)?;
        let weights = scores.f_softmax(1, Kind::Float)?;
        let (flat, flat_weights) = (chosen.f_view([-1])?, weights.f_view([-1, 1])?);
        let mut experts = Vec::new();
        for (expert_idx, expert) in self.experts.iter().enumerate() {
            let choices = flat.f_eq(expert_idx as i64)?.f_nonzero()?.f_view([-1])?;
            if choices.numel() == 0 {
                continue;
            }
            let positions = self.positions(&choices)?;
            let inner = expert.up.forward(&y.f_index_select(0, &positions)?)?;
            let mut output = expert.down.forward(&expert.activation.forward(&inner)?)?;
            let output = output.f_mul_(&flat_weights.f_index_select(0, &choices)?)?;
            let _ = sum.f_index_add_(0, &positions, &output)?;
            experts.push(SavedExpert { expert_idx, choices, inner });
        }
        Ok(SavedRouting { chosen, weights, experts })
    }

    /// Adds the gradient of `y` to `sum [n, hidden]`, given that of the output.
    pub(crate) fn backward(&self, grad: &Tensor, saved: &SavedRouting, sum: &mut Tensor) -> Result<(), TchError> {
        let SavedRouting { chosen, weights, experts } = saved;
        let flat_weights = weights.f_view([-1, 1])?;
        let mut grad_weights = weights.f_zeros_like()?;
        for SavedExpert { expert_idx, choices, inner } in experts {
            let (expert, positions) = (&self.experts[*expert_idx], self.positions(choices)?);
            let mut grad_active = expert.down.backward(&grad.f_index_select(0, &positions)?)?; // [choices, inner]
            // The output is linear in its weight, so the weight's gradient is the dot product of output and `grad`.
            let along = grad_active.f_mul(&expert.activation.forward(inner)?)?;
            let along = along.f_sum_dim_intlist(1, false, Kind::Float)?;
            let _ = grad_weights.f_view([-1])?.f_index_copy_(0, choices, &along)?;
            let grad_active = grad_active.f_mul_(&flat_weights.f_index_select(0, choices)?)?;
            let mut grad_inner = inner.f_empty_like()?;
            expert.activation.backward(&mut grad_inner, &grad_active, inner)?;
            let _ = sum.f_index_add_(0, &positions, &expert.up.backward(&grad_inner)?)?;
        }
        // Backward pass of the softmax.
        let mean = weights.f_mul(&grad_weights)?.f_sum_dim_intlist(1, true, Kind::Float)?;
        let grad_scores = grad_weights.f_sub_(&mean)?.f_mul_(weights)?;
        let shape = [grad.size()[0], self.router.outputs()];
        let mut grad_router = grad.f_new_zeros(shape, (grad.kind(), grad.device()))?;
        let grad_router = grad_router.f_scatter_(1, chosen, &grad_scores)?;
        let _ = sum.f_add_(&self.router.backward(&grad_router)?)?;
        Ok(())
    }

    /// Positions of indices into the flattened choices.
    fn positions(&self, choices: &Tensor) -> Result<Tensor, TchError> {
        choices.f_divide_scalar_mode(self.per_token, "floor")
    }

    /// Numbers saved for each position; an index counts as two.
    pub(crate) fn saved_per_position(&self) -> usize {
        let inner = self.experts.first().map_or(0, |expert| expert.up.outputs());
        usize::try_from(self.per_token * (inner + 5)).unwrap_or(0)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.router.bytes() + self.experts.iter().map(Dense::bytes).sum::<usize>()
    }
}

impl SavedRouting {
    /// Numbers saved; an index counts as two.
    pub(crate) fn numel(&self) -> usize {
        let experts = self.experts.iter().map(|saved| 2 * saved.choices.numel() + saved.inner.numel());
        2 * self.chosen.numel() + self.weights.numel() + experts.sum::<usize>()
    }
}
