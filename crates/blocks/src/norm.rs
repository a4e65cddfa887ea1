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
    /// `x [n, hidden]` to the same, and the numbers for each row that [`add_grad`](Self::add_grad) needs.
    pub(crate) fn forward(self, x: &Tensor) -> Result<(Tensor, Stats), TchError> {
        match self {
            Norm::Rms { eps } => fused::rms_norm(x, eps).map(|(y, scales)| (y, Stats(vec![scales]))),
            Norm::Layer { eps } => fused::layer_norm(x, eps).map(|(y, means, scales)| (y, Stats(vec![means, scales]))),
        }
    }

    /// Adds the gradient of the norm's input to `sum`.
    pub(crate) fn add_grad(self, sum: &mut Tensor, grad: &Tensor, x: &Tensor, stats: &Stats) -> Result<(), TchError> {
        match (self, &stats.0[..]) {
            (Norm::Rms { .. }, [scales]) => fused::add_rms_norm_grad(sum, grad, x, scales),
            (Norm::Layer { .. }, [means, scales]) => fused::add_layer_norm_grad(sum, grad, x, means, scales),
            _ => Err(TchError::Kind("a norm with the numbers of another".to_owned())),
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

    pub(crate) fn numel(&self) -> usize {
        self.0.iter().map(Tensor::numel).sum()
    }
}
