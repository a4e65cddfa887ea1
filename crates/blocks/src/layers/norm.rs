use sepal_autograd::fused;
use tch::{TchError, Tensor};

use crate::segment::Segment;

/// Norm without weights, which the next layer includes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Norm {
    /// RMSNorm (arXiv 1910.07467).
    Rms { eps: f64 },
    /// LayerNorm (arXiv 1607.06450).
    Layer { eps: f64 },
}

impl Norm {
    /// Returns the output for `x [n, width]`, of the same shape, and the statistics for [`add_grad`](Self::add_grad).
    pub(crate) fn forward(self, x: &Tensor) -> Result<(Tensor, RowStats), TchError> {
        match self {
            Norm::Rms { eps } => fused::rms_norm(x, eps).map(|(y, scales)| (y, RowStats(vec![scales]))),
            Norm::Layer { eps } => {
                fused::layer_norm(x, eps).map(|(y, means, scales)| (y, RowStats(vec![means, scales])))
            }
        }
    }

    /// Adds the gradient of the norm's input to `sum`.
    pub(crate) fn add_grad(self, sum: &mut Tensor, grad: &Tensor, saved: &SavedNorm) -> Result<(), TchError> {
        let SavedNorm { input, stats } = saved;
        match (self, &stats.0[..]) {
            (Norm::Rms { .. }, [scales]) => fused::add_rms_norm_grad(sum, grad, input, scales),
            (Norm::Layer { .. }, [means, scales]) => fused::add_layer_norm_grad(sum, grad, input, means, scales),
            _ => Err(TchError::Kind("statistics of another kind of norm".to_owned())),
        }
    }

    pub(crate) fn stats_per_row(self) -> usize {
        match self {
            Norm::Rms { .. } => 1,
            Norm::Layer { .. } => 2,
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
}

/// Weights of a norm in a checkpoint, `[hidden]` each.
#[derive(Debug)]
pub(crate) struct NormWeights {
    pub(crate) scale: Tensor,
    pub(crate) shift: Option<Tensor>,
}

/// Norm with a weight `[width]`, on the output of attention or of the MLP, or on heads.
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
}

/// Norms of each head's queries and keys, before the rotary embedding.
#[derive(Debug)]
pub(crate) struct HeadNorms {
    pub(crate) q: WeightedNorm,
    pub(crate) k: WeightedNorm,
    pub(crate) dim: i64,
}

impl HeadNorms {
    /// Normalizes the heads of `x [n, heads * dim]` in place by `norm`, one of `self.q` and `self.k`.
    pub(crate) fn forward(&self, norm: &WeightedNorm, x: &Tensor) -> Result<SavedNorm, TchError> {
        let heads = x.f_detach_copy()?.f_reshape([-1, self.dim])?;
        let (y, saved) = norm.forward(heads)?;
        x.shallow_clone().f_copy_(&y.f_view(x.size().as_slice())?)?;
        Ok(saved)
    }

    /// Replaces the gradient of such an output by that of the input, in place.
    pub(crate) fn backward(&self, norm: &WeightedNorm, grad: &Tensor, saved: &SavedNorm) -> Result<(), TchError> {
        let heads = grad.f_reshape([-1, self.dim])?;
        let mut grad_input = heads.f_empty_like()?;
        norm.backward(&mut grad_input, &heads, saved)?;
        grad.shallow_clone().f_copy_(&grad_input.f_view(grad.size().as_slice())?)
    }
}
