use tch::{Kind, TchError, Tensor};

use crate::linear::Linear;
use crate::mlp::Dense;

/// A mixture of experts (arXiv 2401.04088): each position goes through the `per_token` experts that the router scores
/// highest, weighted by the softmax of these scores.
///
/// Positions are gathered expert by expert, so that nothing is computed that no router asked for.
#[derive(Debug)]
pub(crate) struct Router {
    pub(crate) router: Linear,
    pub(crate) per_token: i64,
    pub(crate) experts: Vec<Dense>,
}

/// What is kept of one part's positions, `n` of them.
#[derive(Debug)]
pub(crate) struct Routed {
    /// The chosen experts, `[n, per_token]`.
    chosen: Tensor,
    /// Their weights, `[n, per_token]`.
    weights: Tensor,
    /// For each expert that was chosen: which, its choices as indices into the flat `chosen`, and what went into its
    /// activation.
    experts: Vec<(usize, Tensor, Tensor)>,
}

impl Router {
    /// Adds to `sum [n, hidden]` the output for `y [n, hidden]`.
    pub(crate) fn forward(&self, y: &Tensor, sum: &mut Tensor) -> Result<Routed, TchError> {
        let (scores, chosen) = self.router.forward(y)?.f_topk(self.per_token, 1, true, true)?;
        let weights = scores.f_softmax(1, Kind::Float)?;
        let (flat, flat_weights) = (chosen.f_view([-1])?, weights.f_view([-1, 1])?);
        let mut experts = Vec::new();
        for (which, expert) in self.experts.iter().enumerate() {
            let choices = flat.f_eq(which as i64)?.f_nonzero()?.f_view([-1])?;
            if choices.numel() == 0 {
                continue;
            }
            let positions = self.positions(&choices)?;
            let inner = expert.up.forward(&y.f_index_select(0, &positions)?)?;
            let mut output = expert.down.forward(&expert.activation.forward(&inner)?)?;
            let output = output.f_mul_(&flat_weights.f_index_select(0, &choices)?)?;
            let _ = sum.f_index_add_(0, &positions, &output)?;
            experts.push((which, choices, inner));
        }
        Ok(Routed { chosen, weights, experts })
    }

    /// Adds to `sum [n, hidden]` the gradient of `y`, from that of the output.
    pub(crate) fn backward(&self, grad: &Tensor, routed: &Routed, sum: &mut Tensor) -> Result<(), TchError> {
        let Routed { chosen, weights, experts } = routed;
        let flat_weights = weights.f_view([-1, 1])?;
        let mut of_weights = weights.f_zeros_like()?;
        for (which, choices, inner) in experts {
            let (expert, positions) = (&self.experts[*which], self.positions(choices)?);
            let mut of_down = expert.down.backward(&grad.f_index_select(0, &positions)?)?; // [choices, inner]
            // An output is linear in its weight: the gradient of the weight is the output along `grad`.
            let along = of_down.f_mul(&expert.activation.forward(inner)?)?.f_sum_dim_intlist(1, false, Kind::Float)?;
            let _ = of_weights.f_view([-1])?.f_index_copy_(0, choices, &along)?;
            let of_down = of_down.f_mul_(&flat_weights.f_index_select(0, choices)?)?;
            let mut of_up = inner.f_empty_like()?;
            expert.activation.backward(&mut of_up, &of_down, inner)?;
            let _ = sum.f_index_add_(0, &positions, &expert.up.backward(&of_up)?)?;
        }
        // Back through the softmax.
        let mean = weights.f_mul(&of_weights)?.f_sum_dim_intlist(1, true, Kind::Float)?;
        let of_scores = of_weights.f_sub_(&mean)?.f_mul_(weights)?;
        let shape = [grad.size()[0], self.router.outputs()];
        let mut of_router = grad.f_new_zeros(shape, (grad.kind(), grad.device()))?;
        let of_router = of_router.f_scatter_(1, chosen, &of_scores)?;
        let _ = sum.f_add_(&self.router.backward(&of_router)?)?;
        Ok(())
    }

    /// The positions of indices into the flat choices.
    fn positions(&self, choices: &Tensor) -> Result<Tensor, TchError> {
        choices.f_divide_scalar_mode(self.per_token, "floor")
    }

    /// Numbers that are kept for each position; an index counts as two.
    pub(crate) fn kept(&self) -> usize {
        let inner = self.experts.first().map_or(0, |expert| expert.up.outputs());
        usize::try_from(self.per_token * (inner + 5)).unwrap_or(0)
    }

    /// Memory held, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.router.bytes() + self.experts.iter().map(Dense::bytes).sum::<usize>()
    }
}

impl Routed {
    /// Numbers held; an index counts as two.
    pub(crate) fn numel(&self) -> usize {
        let of_expert = |(_, choices, inner): &(usize, Tensor, Tensor)| 2 * choices.numel() + inner.numel();
        2 * self.chosen.numel() + self.weights.numel() + self.experts.iter().map(of_expert).sum::<usize>()
    }
}
