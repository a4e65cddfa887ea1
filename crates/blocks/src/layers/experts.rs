use tch::{Kind, TchError, Tensor};

use crate::layers::dense::Dense;
use crate::layers::linear::Linear;
use crate::tensor_bytes::tensor_bytes;

/// Mixture of experts (arXiv 2401.04088): each position passes through the `per_token` experts that the router scores
/// highest, weighted by a softmax. Positions are gathered expert by expert, so that an expert computes only the positions
/// routed to it. Scores, weights and weighted sums are fp32; experts compute in the format of their layers.
#[derive(Debug)]
pub(crate) struct Router {
    /// Layer of the scores, in fp32.
    pub(crate) router: Linear,
    pub(crate) per_token: i64,
    /// True if the weights are parts of the softmax of all scores, false if they are the softmax of the chosen ones.
    pub(crate) is_softmax_of_all: bool,
    /// Jitter of a SparseMixer, if it chooses and weights two experts instead.
    pub(crate) sparse_mixer: Option<f64>,
    pub(crate) experts: Vec<Dense>,
    pub(crate) shared: Option<Box<SharedExpert>>,
}

/// Expert that all positions pass, weighted by the sigmoid of a gate (arXiv 2407.10671).
#[derive(Debug)]
pub(crate) struct SharedExpert {
    /// `[hidden, 1]`, in fp32.
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
    /// Softmax of all scores, `[n, experts]`, if the weights are parts of it; of a SparseMixer one for each choice,
    /// `[n, per_token, experts]`.
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
    /// Adds the output for `y [n, hidden]` to `sum [n, hidden]`, which is fp32. `y` is of any kind: the router reads it as it
    /// is, and the experts in the format of their layers.
    pub(crate) fn forward(&self, y: &Tensor, sum: &mut Tensor) -> Result<SavedRouting, TchError> {
        let (chosen, weights, softmax) = self.choose(&self.router.forward(y)?)?;
        let rounded = y.f_to_kind(self.compute())?;
        let flat_weights = weights.f_view([-1, 1])?;
        let mut experts = Vec::new();
        for (expert_idx, choices) in self.by_expert(&chosen)? {
            let (expert, positions) = (&self.experts[expert_idx], self.positions(&choices)?);
            let inner = expert.up.forward(&rounded.f_index_select(0, &positions)?)?;
            let output = expert.down.forward(&expert.activation.forward(&inner)?)?;
            let output = output.f_to_kind(Kind::Float)?.f_mul_(&flat_weights.f_index_select(0, &choices)?)?;
            let _ = sum.f_index_add_(0, &positions, &output)?;
            experts.push(SavedExpert { expert_idx, choices, inner });
        }
        let shared = self.shared.as_ref().map(|shared| shared.forward([y, &rounded], sum)).transpose()?;
        Ok(SavedRouting { chosen, weights, softmax, experts, shared })
    }

    /// Returns the chosen experts in ascending order, each with the indices of its choices in the flattened `chosen`. Only
    /// the numbers of choices leave the device, all at once, because the host waits for each transfer.
    fn by_expert(&self, chosen: &Tensor) -> Result<Vec<(usize, Tensor)>, TchError> {
        let flat = chosen.f_view([-1])?;
        let counts = flat.f_new_zeros([self.experts.len() as i64], (Kind::Int64, flat.device()))?;
        let counts = Vec::<i64>::try_from(counts.f_index_add(0, &flat, &flat.f_ones_like()?)?)?;
        let sorted = flat.f_argsort_stable(true, 0, false)?;
        let mut start = 0;
        let choices = counts.into_iter().enumerate().map(|(expert_idx, count)| {
            start += count;
            Ok((expert_idx, sorted.f_narrow(0, start - count, count)?))
        });
        let choices: Vec<(usize, Tensor)> = choices.collect::<Result<_, TchError>>()?;
        Ok(choices.into_iter().filter(|(_, choices)| choices.numel() > 0).collect())
    }

    /// Kind in which the experts compute.
    fn compute(&self) -> Kind {
        self.experts.first().map_or(Kind::Float, |expert| expert.up.compute())
    }

    /// Returns the experts of each position and their weights, `[n, per_token]` each, and the softmax of all `scores [n,
    /// experts]`, or one for each choice, if the weights are parts of it.
    fn choose(&self, scores: &Tensor) -> Result<(Tensor, Tensor, Option<Tensor>), TchError> {
        if let Some(jitter) = self.sparse_mixer {
            return self.choose_in_turn(scores, jitter);
        }
        if self.is_softmax_of_all {
            let softmax = scores.f_softmax(1, Kind::Float)?;
            let (weights, chosen) = softmax.f_topk(self.per_token, 1, true, true)?;
            return Ok((chosen, weights, Some(softmax)));
        }
        let (scores, chosen) = scores.f_topk(self.per_token, 1, true, true)?;
        Ok((chosen, scores.f_softmax(1, Kind::Float)?, None))
    }

    /// Chooses one expert after another by a SparseMixer (arXiv 2409.12136, without its sampling): the one with the highest
    /// score, weighted by a softmax over the scores that are close to it and were not chosen before.
    fn choose_in_turn(&self, scores: &Tensor, jitter: f64) -> Result<(Tensor, Tensor, Option<Tensor>), TchError> {
        let (mut chosen, mut weights, mut softmaxes) = (Vec::new(), Vec::new(), Vec::new());
        let mut available = scores.shallow_clone();
        for _ in 0..self.per_token {
            let (highest, expert) = available.f_max_dim(1, true)?; // [n, 1]
            let distance = highest.f_sub(scores)?.f_div(&scores.f_abs()?.f_maximum(&highest)?)?;
            let close = available.f_masked_fill(&distance.f_gt(2.0 * jitter)?, f64::NEG_INFINITY)?;
            let softmax = close.f_softmax(1, Kind::Float)?;
            weights.push(softmax.f_gather(1, &expert, false)?);
            available = available.f_scatter_value(1, &expert, f64::NEG_INFINITY)?;
            chosen.push(expert);
            softmaxes.push(softmax);
        }
        Ok((Tensor::f_cat(&chosen, 1)?, Tensor::f_cat(&weights, 1)?, Some(Tensor::f_stack(&softmaxes, 1)?)))
    }

    /// Adds the gradient of `y` to `sum [n, hidden]`, given that of the output; both are fp32.
    pub(crate) fn backward(&self, grad: &Tensor, saved: &SavedRouting, sum: &mut Tensor) -> Result<(), TchError> {
        let SavedRouting { weights, experts, shared, .. } = saved;
        let rounded = grad.f_to_kind(self.compute())?;
        let flat_weights = weights.f_view([-1, 1])?;
        let grad_weights = weights.f_zeros_like()?;
        for SavedExpert { expert_idx, choices, inner } in experts {
            let (expert, positions) = (&self.experts[*expert_idx], self.positions(choices)?);
            let grad = rounded.f_index_select(0, &positions)?; // [choices, hidden]
            let mut grad_active = expert.down.backward(&grad)?; // [choices, inner]
            let along = expert.dot_products(&grad, &grad_active, inner)?.f_view([-1])?;
            let _ = grad_weights.f_view([-1])?.f_index_copy_(0, choices, &along)?;
            let grad_active = grad_active.f_mul_(&flat_weights.f_index_select(0, choices)?)?;
            let mut grad_inner = inner.f_empty_like()?;
            expert.activation.backward(&mut grad_inner, &grad_active, inner)?;
            let grad_y = expert.up.backward(&grad_inner)?.f_to_kind(Kind::Float)?;
            let _ = sum.f_index_add_(0, &positions, &grad_y)?;
        }
        let _ = sum.f_add_(&self.router.backward(&self.scores_backward(grad_weights, saved)?)?)?;
        match (&self.shared, shared) {
            (Some(expert), Some(saved)) => expert.backward(&rounded, saved, sum),
            _ => Ok(()),
        }
    }

    /// Backward pass of the softmax: returns the gradient of the scores, `[n, experts]`.
    fn scores_backward(&self, mut grad_weights: Tensor, saved: &SavedRouting) -> Result<Tensor, TchError> {
        let SavedRouting { chosen, weights, softmax, .. } = saved;
        if let (Some(_), Some(softmax)) = (self.sparse_mixer, softmax) {
            // Each weight is a part of a softmax of its own.
            let products = weights.f_mul(&grad_weights)?; // [n, per_token]
            let mean = softmax.f_mul(&products.f_unsqueeze(2)?)?.f_sum_dim_intlist(1, false, Kind::Float)?;
            return mean.f_neg()?.f_scatter_add_(1, chosen, &products);
        }
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

    /// Bytes saved for each position.
    pub(crate) fn saved_per_position(&self) -> usize {
        let inner = self.experts.first().map_or(0, Dense::saved_per_position);
        // The index of the expert, the index of the choice, and the weight.
        let choice = 2 * size_of::<i64>() + size_of::<f32>();
        let per_token = usize::try_from(self.per_token).unwrap_or(0);
        let softmaxes = if self.sparse_mixer.is_some() { per_token } else { usize::from(self.is_softmax_of_all) };
        let softmax = softmaxes * usize::try_from(self.router.outputs()).unwrap_or(0) * size_of::<f32>();
        let shared = self.shared.as_ref().map_or(0, |shared| shared.dense.saved_per_position() + size_of::<f32>());
        per_token * (inner + choice) + softmax + shared
    }

    pub(crate) fn bytes(&self) -> usize {
        let shared = self.shared.as_ref().map_or(0, |shared| shared.gate.bytes() + shared.dense.bytes());
        self.router.bytes() + self.experts.iter().map(Dense::bytes).sum::<usize>() + shared
    }
}

impl SharedExpert {
    /// Adds the output for `y [n, hidden]` to `sum [n, hidden]`, which is fp32; `rounded` is `y` in the format of the
    /// computation.
    fn forward(&self, [y, rounded]: [&Tensor; 2], sum: &mut Tensor) -> Result<SavedShared, TchError> {
        let gate = self.gate.forward(y)?.f_sigmoid()?; // [n, 1]
        let inner = self.dense.up.forward(rounded)?;
        let output = self.dense.down.forward(&self.dense.activation.forward(&inner)?)?;
        let _ = sum.f_add_(&output.f_to_kind(Kind::Float)?.f_mul_(&gate)?)?;
        Ok(SavedShared { gate, inner })
    }

    /// Adds the gradient of `y` to `sum [n, hidden]`, which is fp32, given that of the output.
    fn backward(&self, grad: &Tensor, saved: &SavedShared, sum: &mut Tensor) -> Result<(), TchError> {
        let SavedShared { gate, inner } = saved;
        let mut grad_active = self.dense.down.backward(grad)?; // [n, inner]
        let along = self.dense.dot_products(grad, &grad_active, inner)?; // [n, 1]
        let grad_gate = along.f_mul(&gate.f_sub(&gate.f_square()?)?)?;
        let mut grad_inner = inner.f_empty_like()?;
        self.dense.activation.backward(&mut grad_inner, &grad_active.f_mul_(gate)?, inner)?;
        let _ = sum.f_add_(&self.dense.up.backward(&grad_inner)?)?;
        let _ = sum.f_add_(&self.gate.backward(&grad_gate)?)?;
        Ok(())
    }
}

impl Dense {
    /// Dot products of the output and its gradient, `[n, 1]`, given that gradient, `grad [n, hidden]`, the one before the last
    /// layer, `grad_active [n, width]`, and the input of the activation. They are the gradients of factors of the output. All
    /// are of any kind; products and sums are fp32.
    fn dot_products(&self, grad: &Tensor, grad_active: &Tensor, inner: &Tensor) -> Result<Tensor, TchError> {
        let sum = |products: Tensor| products.f_sum_dim_intlist(1, true, Kind::Float);
        let products = sum(grad_active.f_to_kind(Kind::Float)?.f_mul(&self.activation.forward(inner)?)?)?;
        match self.down.bias() {
            Some(bias) => products.f_add(&sum(grad.f_to_kind(Kind::Float)?.f_mul(bias)?)?),
            None => Ok(products),
        }
    }
}

impl SavedRouting {
    /// Memory in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let experts = self.experts.iter().flat_map(|saved| [&saved.choices, &saved.inner]);
        let shared = self.shared.iter().flat_map(|saved| [&saved.gate, &saved.inner]);
        let routing = [&self.chosen, &self.weights].into_iter().chain(&self.softmax);
        routing.chain(experts).chain(shared).map(tensor_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use sepal_core::{Activation, WeightFormat};
    use tch::Device;

    use super::*;
    use crate::layers::dense::Activate;
    use crate::layers::linear::Layer;
    use crate::layers::packed::Weight;

    const HIDDEN: i64 = 6;

    fn random(shape: [i64; 2]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 0.5
    }

    /// Weight `[out, in]` and its layer.
    fn linear(out: i64, inner: i64) -> (Tensor, Linear) {
        biased(out, inner, None)
    }

    fn biased(out: i64, inner: i64, bias: Option<&Tensor>) -> (Tensor, Linear) {
        let weight = random([out, inner]);
        let bias = bias.map(Tensor::shallow_clone);
        let layer = Layer::new("layer", Weight::Plain(weight.shallow_clone()), bias).expect("a layer");
        (weight, layer.frozen(WeightFormat::F32.into()).expect("a layer"))
    }

    /// Weights of the layers of an ungated expert and the bias of its output, and the expert.
    fn dense(inner: i64) -> ([Tensor; 3], Dense) {
        let bias = random([1, HIDDEN]).view([-1]);
        let ((up_weight, up), (down_weight, down)) = (linear(inner, HIDDEN), biased(HIDDEN, inner, Some(&bias)));
        let activation = Activate { function: Activation::Silu, is_gated: false };
        ([up_weight, down_weight, bias], Dense { activation, up, down })
    }

    fn apply([up, down, bias]: &[Tensor; 3], y: &Tensor) -> Tensor {
        y.matmul(&up.tr()).silu().matmul(&down.tr()) + bias
    }

    /// Weights of all experts by a SparseMixer as transformers computes them, `[n, experts]`, of which two are not zero.
    fn sparse_mixer(scores: &Tensor, jitter: f64) -> Tensor {
        let mut available = scores.shallow_clone();
        let mut spread = scores.zeros_like();
        for _ in 0..2 {
            let (highest, expert) = tch::no_grad(|| available.max_dim(1, true));
            let factor = tch::no_grad(|| scores.abs().maximum(&highest));
            let is_far = tch::no_grad(|| (&highest - scores) / factor).gt(2.0 * jitter);
            let softmax = available.masked_fill(&is_far, f64::NEG_INFINITY).softmax(1, Kind::Float);
            spread = spread.scatter(1, &expert, &softmax.gather(1, &expert, false));
            available = available.scatter_value(1, &expert, f64::NEG_INFINITY);
        }
        spread
    }

    fn assert_close(found: &Tensor, expected: &Tensor) {
        let off = f64::try_from((found - expected).abs().max()).expect("a number");
        assert!(off < 1e-5, "off by {off}");
    }

    /// Compares both passes with the graph of `expected`, a function of the leaf `y`.
    fn assert_passes(router: &Router, y: &Tensor, expected: &Tensor) {
        let grad = random([y.size()[0], HIDDEN]);
        (expected * &grad).sum(Kind::Float).backward();
        let (mut output, mut grad_y) = (grad.zeros_like(), grad.zeros_like());
        let saved = router.forward(&y.detach(), &mut output).expect("a forward");
        router.backward(&grad, &saved, &mut grad_y).expect("a backward");
        assert_close(&output, &expected.detach());
        assert_close(&grad_y, &y.grad());
        assert_eq!(saved.bytes(), y.size()[0] as usize * router.saved_per_position());
    }

    #[test]
    fn forward_and_backward_equal_autograd() {
        for (is_softmax_of_all, has_shared) in [(false, false), (true, false), (false, true), (true, true)] {
            let (n, count, per_token) = (9, 4, 2);
            let ((router_weight, router), (gate_weight, gate)) = (linear(count, HIDDEN), linear(1, HIDDEN));
            let (weights, experts): (Vec<_>, Vec<_>) = (0..count).map(|_| dense(5)).unzip();
            let (shared_weights, shared) = dense(7);
            let shared = has_shared.then_some(Box::new(SharedExpert { gate, dense: shared }));
            let router = Router { router, per_token, is_softmax_of_all, sparse_mixer: None, experts, shared };

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
            assert_passes(&router, &y, &expected);
        }
    }

    #[test]
    fn sparse_mixer_equals_autograd() {
        for jitter in [0.0, 0.1, 0.4, 10.0] {
            let (n, count, per_token) = (40, 5, 2);
            let (router_weight, router) = linear(count, HIDDEN);
            let (weights, experts): (Vec<_>, Vec<_>) = (0..count).map(|_| dense(5)).unzip();
            let (is_softmax_of_all, shared) = (false, None);
            let router = Router { router, per_token, is_softmax_of_all, sparse_mixer: Some(jitter), experts, shared };

            let y = random([n, HIDDEN]).set_requires_grad(true);
            let spread = sparse_mixer(&y.matmul(&router_weight.tr()), jitter);
            let mut expected = y.zeros_like();
            for (expert, weights) in (0..count).zip(&weights) {
                expected += apply(weights, &y) * spread.narrow(1, expert, 1);
            }
            assert_passes(&router, &y, &expected);
        }
    }

    #[test]
    fn choices_are_grouped_by_expert_in_the_order_of_positions() {
        let experts = (0..4).map(|_| dense(5).1).collect();
        let (router, per_token, is_softmax_of_all) = (linear(4, HIDDEN).1, 2, false);
        let router = Router { router, per_token, is_softmax_of_all, sparse_mixer: None, experts, shared: None };
        // Expert 1 is not chosen.
        let chosen = Tensor::from_slice(&[3_i64, 0, 0, 2, 3, 2, 0, 3]).view([4, 2]);
        let by_expert = router.by_expert(&chosen).expect("choices");
        let numbers = |tensor: &Tensor| Vec::<i64>::try_from(tensor).expect("numbers");
        let found: Vec<(usize, Vec<i64>)> =
            by_expert.iter().map(|(expert_idx, choices)| (*expert_idx, numbers(choices))).collect();
        assert_eq!(found, [(0, vec![1, 2, 6]), (2, vec![3, 5]), (3, vec![0, 4, 7])]);
    }
}
