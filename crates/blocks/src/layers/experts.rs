use tch::{Kind, TchError, Tensor};

use crate::layers::dense::Dense;
use crate::layers::linear::Linear;

/// Mixture of experts (arXiv 2401.04088): each position passes through the `per_token` experts that the router scores
/// highest, weighted by a softmax. Positions are gathered expert by expert, so that an expert computes only the positions
/// routed to it.
#[derive(Debug)]
pub(crate) struct Router {
    pub(crate) router: Linear,
    pub(crate) per_token: i64,
    /// True if the weights are parts of the softmax of all scores, false if they are the softmax of the chosen ones.
    pub(crate) is_softmax_of_all: bool,
    pub(crate) experts: Vec<Dense>,
    pub(crate) shared: Option<Box<SharedExpert>>,
}

/// Expert that all positions pass, weighted by the sigmoid of a gate (arXiv 2407.10671).
#[derive(Debug)]
pub(crate) struct SharedExpert {
    /// `[hidden, 1]`
    pub(crate) gate: Linear,
    pub(crate) dense: Dense,
}

/// Tensors of one batch of `n` positions that the backward pass needs.
#[derive(Debug)]
pub(crate) struct SavedRouting {
    /// Chosen experts, `[n, per_token]`.
    chosen: Tensor,
    /// Weights of the chosen experts, `[n, per_token]`.
    weights: Tensor,
    /// Softmax of all scores, `[n, experts]`, if the weights are parts of it.
    softmax: Option<Tensor>,
    /// Experts that were chosen at all.
    experts: Vec<SavedExpert>,
    shared: Option<SavedShared>,
}

#[derive(Debug)]
struct SavedExpert {
    expert_idx: usize,
    /// Indices into the flattened `chosen`.
    choices: Tensor,
    /// Input of the activation.
    inner: Tensor,
}

#[derive(Debug)]
struct SavedShared {
    /// Sigmoid of the gate, `[n, 1]`.
    gate: Tensor,
    /// Input of the activation.
    inner: Tensor,
}

impl Router {
    /// Adds the output for `y [n, hidden]` to `sum [n, hidden]`.
    pub(crate) fn forward(&self, y: &Tensor, sum: &mut Tensor) -> Result<SavedRouting, TchError> {
        let (chosen, weights, softmax) = self.choose(&self.router.forward(y)?)?;
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
        let shared = self.shared.as_ref().map(|shared| shared.forward(y, sum)).transpose()?;
        Ok(SavedRouting { chosen, weights, softmax, experts, shared })
    }

    /// Returns the experts of each position and their weights, `[n, per_token]` each, and the softmax of all `scores [n,
    /// experts]` if the weights are parts of it.
    fn choose(&self, scores: &Tensor) -> Result<(Tensor, Tensor, Option<Tensor>), TchError> {
        if self.is_softmax_of_all {
            let softmax = scores.f_softmax(1, Kind::Float)?;
            let (weights, chosen) = softmax.f_topk(self.per_token, 1, true, true)?;
            return Ok((chosen, weights, Some(softmax)));
        }
        let (scores, chosen) = scores.f_topk(self.per_token, 1, true, true)?;
        Ok((chosen, scores.f_softmax(1, Kind::Float)?, None))
    }

    /// Adds the gradient of `y` to `sum [n, hidden]`, given that of the output.
    pub(crate) fn backward(&self, grad: &Tensor, saved: &SavedRouting, sum: &mut Tensor) -> Result<(), TchError> {
        let SavedRouting { weights, experts, shared, .. } = saved;
        let flat_weights = weights.f_view([-1, 1])?;
        let grad_weights = weights.f_zeros_like()?;
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
        let _ = sum.f_add_(&self.router.backward(&self.scores_backward(grad_weights, saved)?)?)?;
        match (&self.shared, shared) {
            (Some(expert), Some(saved)) => expert.backward(grad, saved, sum),
            _ => Ok(()),
        }
    }

    /// Backward pass of the softmax: returns the gradient of the scores, `[n, experts]`.
    fn scores_backward(&self, mut grad_weights: Tensor, saved: &SavedRouting) -> Result<Tensor, TchError> {
        let SavedRouting { chosen, weights, softmax, .. } = saved;
        let mean = weights.f_mul(&grad_weights)?.f_sum_dim_intlist(1, true, Kind::Float)?;
        let shape = [weights.size()[0], self.router.outputs()];
        let mut grad = weights.f_new_zeros(shape, (weights.kind(), weights.device()))?;
        match softmax {
            Some(softmax) => grad.f_scatter_(1, chosen, &grad_weights)?.f_sub_(&mean)?.f_mul_(softmax),
            None => grad.f_scatter_(1, chosen, &grad_weights.f_sub_(&mean)?.f_mul_(weights)?),
        }
    }

    /// Positions of indices into the flattened choices.
    fn positions(&self, choices: &Tensor) -> Result<Tensor, TchError> {
        choices.f_divide_scalar_mode(self.per_token, "floor")
    }

    /// Numbers saved for each position; an index counts as two.
    pub(crate) fn saved_per_position(&self) -> usize {
        let inner = self.experts.first().map_or(0, |expert| expert.up.outputs());
        let softmax = if self.is_softmax_of_all { self.router.outputs() } else { 0 };
        let shared = self.shared.as_ref().map_or(0, |shared| shared.dense.up.outputs() + 1);
        usize::try_from(self.per_token * (inner + 5) + softmax + shared).unwrap_or(0)
    }

    pub(crate) fn bytes(&self) -> usize {
        let shared = self.shared.as_ref().map_or(0, |shared| shared.gate.bytes() + shared.dense.bytes());
        self.router.bytes() + self.experts.iter().map(Dense::bytes).sum::<usize>() + shared
    }
}

impl SharedExpert {
    /// Adds the output for `y [n, hidden]` to `sum [n, hidden]`.
    fn forward(&self, y: &Tensor, sum: &mut Tensor) -> Result<SavedShared, TchError> {
        let gate = self.gate.forward(y)?.f_sigmoid()?; // [n, 1]
        let inner = self.dense.up.forward(y)?;
        let mut output = self.dense.down.forward(&self.dense.activation.forward(&inner)?)?;
        let _ = sum.f_add_(&output.f_mul_(&gate)?)?;
        Ok(SavedShared { gate, inner })
    }

    /// Adds the gradient of `y` to `sum [n, hidden]`, given that of the output.
    fn backward(&self, grad: &Tensor, saved: &SavedShared, sum: &mut Tensor) -> Result<(), TchError> {
        let SavedShared { gate, inner } = saved;
        let mut grad_active = self.dense.down.backward(grad)?; // [n, inner]
        // The output is linear in the gate, so the gate's gradient is the dot product of output and `grad`.
        let along = grad_active.f_mul(&self.dense.activation.forward(inner)?)?;
        let along = along.f_sum_dim_intlist(1, true, Kind::Float)?; // [n, 1]
        let grad_gate = along.f_mul(&gate.f_sub(&gate.f_square()?)?)?;
        let mut grad_inner = inner.f_empty_like()?;
        self.dense.activation.backward(&mut grad_inner, &grad_active.f_mul_(gate)?, inner)?;
        let _ = sum.f_add_(&self.dense.up.backward(&grad_inner)?)?;
        let _ = sum.f_add_(&self.gate.backward(&grad_gate)?)?;
        Ok(())
    }
}

impl SavedRouting {
    /// Numbers saved; an index counts as two.
    pub(crate) fn numel(&self) -> usize {
        let experts = self.experts.iter().map(|saved| 2 * saved.choices.numel() + saved.inner.numel());
        let softmax = self.softmax.as_ref().map_or(0, Tensor::numel);
        let shared = self.shared.as_ref().map_or(0, |saved| saved.gate.numel() + saved.inner.numel());
        2 * self.chosen.numel() + self.weights.numel() + softmax + shared + experts.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use sepal_core::{Activation, WeightFormat};
    use tch::Device;

    use super::*;
    use crate::layers::dense::Activate;
    use crate::layers::linear::Layer;

    const HIDDEN: i64 = 6;

    fn random(shape: [i64; 2]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 0.5
    }

    /// Weight `[out, in]` and its layer.
    fn linear(out: i64, inner: i64) -> (Tensor, Linear) {
        let weight = random([out, inner]);
        let layer = Layer::new("layer", weight.shallow_clone(), None).expect("a layer");
        (weight, layer.frozen(WeightFormat::F32).expect("a layer"))
    }

    /// Weights of the layers of an ungated expert, and the expert.
    fn dense(inner: i64) -> ([Tensor; 2], Dense) {
        let ((up_weight, up), (down_weight, down)) = (linear(inner, HIDDEN), linear(HIDDEN, inner));
        let activation = Activate { function: Activation::Silu, is_gated: false };
        ([up_weight, down_weight], Dense { activation, up, down })
    }

    fn apply([up, down]: &[Tensor; 2], y: &Tensor) -> Tensor {
        y.matmul(&up.tr()).silu().matmul(&down.tr())
    }

    fn assert_close(found: &Tensor, expected: &Tensor) {
        let off = f64::try_from((found - expected).abs().max()).expect("a number");
        assert!(off < 1e-5, "off by {off}");
    }

    #[test]
    fn forward_and_backward_equal_autograd() {
        for (is_softmax_of_all, has_shared) in [(false, false), (true, false), (false, true), (true, true)] {
            let (n, count, per_token) = (9, 4, 2);
            let ((router_weight, router), (gate_weight, gate)) = (linear(count, HIDDEN), linear(1, HIDDEN));
            let (weights, experts): (Vec<_>, Vec<_>) = (0..count).map(|_| dense(5)).unzip();
            let (shared_weights, shared) = dense(7);
            let shared = has_shared.then_some(Box::new(SharedExpert { gate, dense: shared }));
            let router = Router { router, per_token, is_softmax_of_all, experts, shared };

            let y = random([n, HIDDEN]).set_requires_grad(true);
            let scores = y.matmul(&router_weight.tr());
            let (chosen_scores, chosen) = scores.topk(per_token, 1, true, true);
            let of_position = match is_softmax_of_all {
                true => scores.softmax(1, Kind::Float).gather(1, &chosen, false),
                false => chosen_scores.softmax(1, Kind::Float),
            };
            let spread = scores.zeros_like().scatter(1, &chosen, &of_position); // [n, count]
            let mut expected = y.zeros_like();
            for (expert, weights) in (0..count).zip(&weights) {
                expected += apply(weights, &y) * spread.narrow(1, expert, 1);
            }
            if has_shared {
                expected += apply(&shared_weights, &y) * y.matmul(&gate_weight.tr()).sigmoid();
            }
            let grad = random([n, HIDDEN]);
            (&expected * &grad).sum(Kind::Float).backward();

            let (mut output, mut grad_y) = (grad.zeros_like(), grad.zeros_like());
            let saved = router.forward(&y.detach(), &mut output).expect("a forward");
            router.backward(&grad, &saved, &mut grad_y).expect("a backward");
            assert_close(&output, &expected.detach());
            assert_close(&grad_y, &y.grad());
            assert_eq!(saved.numel(), n as usize * router.saved_per_position());
        }
    }
}
