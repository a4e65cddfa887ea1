use sepal_autograd::fused;
use tch::{TchError, Tensor};

use crate::attention::heads::Heads;
use crate::segment::Segment;

/// Norm without weights, which the next layer includes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Norm {
    /// RMSNorm (arXiv 1910.07467).
    Rms { eps: f64 },
    /// LayerNorm (arXiv 1607.06450).
    Layer { eps: f64 },
    /// The input as it is.
    Identity,
}

impl Norm {
    /// Returns the output for `x [n, width]`, of the same shape, and the statistics for [`add_grad`](Self::add_grad).
    pub(crate) fn forward(self, x: &Tensor) -> Result<(Tensor, RowStats), TchError> {
        match self {
            Norm::Rms { eps } => fused::rms_norm(x, eps).map(|(y, scales)| (y, RowStats(vec![scales]))),
            Norm::Layer { eps } => {
                fused::layer_norm(x, eps).map(|(y, means, scales)| (y, RowStats(vec![means, scales])))
            }
            Norm::Identity => Ok((x.shallow_clone(), RowStats(Vec::new()))),
        }
    }

    /// Adds the gradient of the norm's input to `sum`.
    pub(crate) fn add_grad(self, sum: &mut Tensor, grad: &Tensor, saved: &SavedNorm) -> Result<(), TchError> {
        let SavedNorm { input, stats } = saved;
        match (self, &stats.0[..]) {
            (Norm::Rms { .. }, [scales]) => fused::add_rms_norm_grad(sum, grad, input, scales),
            (Norm::Layer { .. }, [means, scales]) => fused::add_layer_norm_grad(sum, grad, input, means, scales),
            (Norm::Identity, []) => sum.f_add_(grad).map(drop),
            _ => Err(TchError::Kind("statistics of another kind of norm".to_owned())),
        }
    }

    pub(crate) fn stats_per_row(self) -> usize {
        match self {
            Norm::Rms { .. } => 1,
            Norm::Layer { .. } => 2,
            Norm::Identity => 0,
        }
    }
}

/// Statistics of each row, `[n, 1]` each.
#[derive(Debug)]
pub(crate) struct RowStats(Vec<Tensor>);

impl RowStats {
    fn narrow(&self, segment: Segment) -> Result<Self, TchError> {
        Ok(Self(self.0.iter().map(|numbers| segment.narrow(numbers)).collect::<Result<_, _>>()?))
    }

    fn numel(&self) -> usize {
        self.0.iter().map(Tensor::numel).sum()
    }
}

/// Input of a norm, `[n, width]`, and its statistics.
#[derive(Debug)]
pub(crate) struct SavedNorm {
    pub(crate) input: Tensor,
    pub(crate) stats: RowStats,
}

impl SavedNorm {
    pub(crate) fn narrow(&self, segment: Segment) -> Result<Self, TchError> {
        Ok(Self { input: segment.narrow(&self.input)?, stats: self.stats.narrow(segment)? })
    }

    /// Copies the input, because a view would retain the memory of all callers.
    pub(crate) fn into_owned(self) -> Result<Self, TchError> {
        Ok(Self { input: self.input.f_detach_copy()?, ..self })
    }

    pub(crate) fn numel(&self) -> usize {
        self.input.numel() + self.stats.numel()
    }

    /// Returns a norm with the same memory.
    pub(crate) fn share(&self) -> Self {
        let stats = RowStats(self.stats.0.iter().map(Tensor::shallow_clone).collect());
        Self { input: self.input.shallow_clone(), stats }
    }

    /// Selects rows.
    pub(crate) fn select(&self, rows: &Tensor) -> Result<Self, TchError> {
        let stats = self.stats.0.iter().map(|numbers| numbers.f_index_select(0, rows));
        Ok(Self { input: self.input.f_index_select(0, rows)?, stats: RowStats(stats.collect::<Result<_, _>>()?) })
    }

    /// Returns `leftᵀ y`, `[k, width]`, for `left [n, k]` and the norm's output `y`, which is not computed again.
    pub(crate) fn transposed_product(&self, left: &Tensor) -> Result<Tensor, TchError> {
        match &self.stats.0[..] {
            [] => left.f_transpose(0, 1)?.f_mm(&self.input),
            [scales] => left.f_mul(scales)?.f_transpose(0, 1)?.f_mm(&self.input),
            [means, scales] => {
                let scaled = left.f_mul(scales)?.f_transpose(0, 1)?; // [k, n]
                scaled.f_mm(&self.input)?.f_sub_(&scaled.f_mm(means)?)
            }
            _ => Err(TchError::Kind("statistics of another kind of norm".to_owned())),
        }
    }
}

/// Weights of a norm in a checkpoint, `[hidden]` each.
#[derive(Debug)]
pub(crate) struct NormWeights {
    pub(crate) scale: Tensor,
    pub(crate) shift: Option<Tensor>,
}

/// Norm with a weight `[width]`, on the output of attention or of the MLP, or on queries or keys.
#[derive(Debug)]
pub(crate) struct WeightedNorm {
    pub(crate) norm: Norm,
    pub(crate) weight: Tensor,
}

impl WeightedNorm {
    pub(crate) fn forward(&self, x: Tensor) -> Result<(Tensor, SavedNorm), TchError> {
        let (mut y, stats) = self.norm.forward(&x)?;
        Ok((y.f_mul_(&self.weight)?, SavedNorm { input: x, stats }))
    }

    /// Writes the gradient of the input, `[n, width]`, into `grad_input`.
    pub(crate) fn backward(&self, grad_input: &mut Tensor, grad: &Tensor, saved: &SavedNorm) -> Result<(), TchError> {
        let _ = grad_input.f_zero_()?;
        self.norm.add_grad(grad_input, &grad.f_mul(&self.weight)?, saved)
    }

    /// Normalizes each `width` numbers of the rows of `x [n, parts * width]`, in place.
    pub(crate) fn forward_parts(&self, x: &Tensor) -> Result<SavedNorm, TchError> {
        let parts = x.f_detach_copy()?.f_reshape([-1, self.width()])?;
        let (y, saved) = self.forward(parts)?;
        x.shallow_clone().f_copy_(&y.f_view(x.size().as_slice())?)?;
        Ok(saved)
    }

    /// Replaces the gradient of the output of [`forward_parts`](Self::forward_parts) by that of its input, in place.
    pub(crate) fn backward_parts(&self, grad: &Tensor, saved: &SavedNorm) -> Result<(), TchError> {
        let parts = grad.f_reshape([-1, self.width()])?;
        let mut grad_input = Tensor::f_empty(parts.size(), (parts.kind(), parts.device()))?;
        self.backward(&mut grad_input, &parts, saved)?;
        grad.shallow_clone().f_copy_(&grad_input.f_view(grad.size().as_slice())?)
    }

    fn width(&self) -> i64 {
        self.weight.numel() as i64
    }
}

/// Norms of queries and keys before the rotary embedding: of each head, with one weight `[dim]` for all heads, or of all
/// heads together, with a weight of their width.
#[derive(Debug)]
pub(crate) struct HeadNorms {
    pub(crate) q: WeightedNorm,
    pub(crate) k: WeightedNorm,
}

impl HeadNorms {
    /// Numbers of norms of one position's queries and of its keys.
    pub(crate) fn per_position(&self, heads: Heads) -> [i64; 2] {
        [heads.q_size() / self.q.width(), heads.kv_size() / self.k.width()]
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn random(shape: [i64; 2]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn assert_close(found: &Tensor, expected: &Tensor) {
        let off = f64::try_from((found - expected).abs().max()).expect("a number");
        assert!(off < 1e-5, "off by {off}");
    }

    #[test]
    fn norm_of_parts_equals_autograd_on_a_view() {
        for width in [4, 12] {
            let weight = random([1, width]).view([-1]);
            let norm = WeightedNorm { norm: Norm::Rms { eps: 1e-5 }, weight: weight.shallow_clone() };
            let keys_values = random([5, 24]);
            let (keys, grad) = (keys_values.narrow(1, 0, 12), random([5, 24]));
            let x = keys.copy().set_requires_grad(true);
            let parts = x.view([-1, width]);
            let scale = (parts.square().mean_dim(-1, true, Kind::Float) + 1e-5).rsqrt();
            let expected = (&parts * scale * &weight).view([5, 12]);
            (&expected * grad.narrow(1, 0, 12)).sum(Kind::Float).backward();

            let values = keys_values.narrow(1, 12, 12).copy();
            let saved = norm.forward_parts(&keys).expect("a norm");
            assert_close(&keys, &expected.detach());
            assert_close(&keys_values.narrow(1, 12, 12), &values);
            norm.backward_parts(&grad.narrow(1, 0, 12), &saved).expect("a gradient");
            assert_close(&grad.narrow(1, 0, 12), &x.grad());
        }
    }

    #[test]
    fn identity_adds_the_gradient_unchanged() {
        let (x, grad, mut sum) = (random([3, 4]), random([3, 4]), Tensor::zeros([3, 4], (Kind::Float, Device::Cpu)));
        let (y, stats) = Norm::Identity.forward(&x).expect("a norm");
        assert_eq!((y.data_ptr(), stats.numel(), Norm::Identity.stats_per_row()), (x.data_ptr(), 0, 0));
        let saved = SavedNorm { input: x.shallow_clone(), stats };
        Norm::Identity.add_grad(&mut sum, &grad, &saved).expect("a gradient");
        assert_close(&sum, &grad);
        let left = random([3, 2]);
        assert_close(&saved.transposed_product(&left).expect("a product"), &left.tr().matmul(&x));
    }
}
