use sepal_autograd::fused;
use tch::{TchError, Tensor};

use crate::run::{Share, of};

/// A norm without weights: the next layer has taken them in.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Norm {
    /// arXiv 1910.07467
    Rms { eps: f64 },
    /// arXiv 1607.06450
    Layer { eps: f64 },
}

impl Norm {
    /// `x [n, width]` to the same, and the numbers for each row that [`add_grad`](Self::add_grad) needs.
    pub(crate) fn forward(self, x: &Tensor) -> Result<(Tensor, Stats), TchError> {
        match self {
            Norm::Rms { eps } => fused::rms_norm(x, eps).map(|(y, scales)| (y, Stats(vec![scales]))),
            Norm::Layer { eps } => fused::layer_norm(x, eps).map(|(y, means, scales)| (y, Stats(vec![means, scales]))),
        }
    }

    /// Adds the gradient of the norm's input to `sum`.
    pub(crate) fn add_grad(self, sum: &mut Tensor, grad: &Tensor, normed: &Normed) -> Result<(), TchError> {
        let Normed { input, stats } = normed;
        match (self, &stats.0[..]) {
            (Norm::Rms { .. }, [scales]) => fused::add_rms_norm_grad(sum, grad, input, scales),
            (Norm::Layer { .. }, [means, scales]) => fused::add_layer_norm_grad(sum, grad, input, means, scales),
            _ => Err(TchError::Kind("a norm with the numbers of another".to_owned())),
        }
    }

    /// Numbers that it keeps for each row.
    pub(crate) fn stats(self) -> usize {
        match self {
            Norm::Rms { .. } => 1,
            Norm::Layer { .. } => 2,
        }
    }
}

/// Numbers for each row, each `[n, 1]`.
#[derive(Debug)]
pub(crate) struct Stats(Vec<Tensor>);

impl Stats {
    pub(crate) fn of(&self, share: Share) -> Result<Self, TchError> {
        Ok(Self(self.0.iter().map(|numbers| of(numbers, share)).collect::<Result<_, _>>()?))
    }

    fn numel(&self) -> usize {
        self.0.iter().map(Tensor::numel).sum()
    }
}

/// What went into a norm, `[n, width]`, and its numbers.
#[derive(Debug)]
pub(crate) struct Normed {
    pub(crate) input: Tensor,
    pub(crate) stats: Stats,
}

impl Normed {
    pub(crate) fn of(&self, share: Share) -> Result<Self, TchError> {
        Ok(Self { input: of(&self.input, share)?, stats: self.stats.of(share)? })
    }

    /// With memory of its own: parts of several callers' matrices would keep all of them.
    pub(crate) fn alone(self) -> Result<Self, TchError> {
        Ok(Self { input: self.input.f_detach_copy()?, ..self })
    }

    /// Numbers held.
    pub(crate) fn numel(&self) -> usize {
        self.input.numel() + self.stats.numel()
    }
}

/// The weights of a norm in a checkpoint.
#[derive(Debug)]
pub(crate) struct NormWeights {
    /// `[hidden]`
    pub(crate) scale: Tensor,
    /// `[hidden]`
    pub(crate) shift: Option<Tensor>,
}

/// A norm with a weight `[width]`, on what attention or the MLP adds, or on heads.
#[derive(Debug)]
pub(crate) struct WeightedNorm {
    pub(crate) norm: Norm,
    pub(crate) weight: Tensor,
}

impl WeightedNorm {
    /// `x [n, width]` to the same, and what [`backward`](Self::backward) needs.
    pub(crate) fn forward(&self, x: Tensor) -> Result<(Tensor, Normed), TchError> {
        let (mut y, stats) = self.norm.forward(&x)?;
        Ok((y.f_mul_(&self.weight)?, Normed { input: x, stats }))
    }

    /// From the gradient of the output to that of the input, `[n, width]`, which it writes into `into`.
    pub(crate) fn backward(&self, into: &mut Tensor, grad: &Tensor, normed: &Normed) -> Result<(), TchError> {
        let _ = into.f_zero_()?;
        self.norm.add_grad(into, &grad.f_mul(&self.weight)?, normed)
    }
}

/// Norms of each head's queries and keys, before they turn.
#[derive(Debug)]
pub(crate) struct HeadNorms {
    pub(crate) q: WeightedNorm,
    pub(crate) k: WeightedNorm,
    pub(crate) dim: i64,
}

impl HeadNorms {
    /// Norms the heads of `x [n, heads * dim]` in place; `norm` is one of these.
    pub(crate) fn forward(&self, norm: &WeightedNorm, x: &Tensor) -> Result<Normed, TchError> {
        let heads = x.f_detach_copy()?.f_reshape([-1, self.dim])?;
        let (y, normed) = norm.forward(heads)?;
        x.shallow_clone().f_copy_(&y.f_view(x.size().as_slice())?)?;
        Ok(normed)
    }

    /// The gradient of the output of such heads becomes that of the input, in place.
    pub(crate) fn backward(&self, norm: &WeightedNorm, grad: &Tensor, normed: &Normed) -> Result<(), TchError> {
        let heads = grad.f_reshape([-1, self.dim])?;
        let mut back = heads.f_empty_like()?;
        norm.backward(&mut back, &heads, normed)?;
        grad.shallow_clone().f_copy_(&back.f_view(grad.size().as_slice())?)
    }
}
