use sepal_nn::Tunable;
use tch::{Device, Kind, TchError, Tensor};

/// A tunable's blocks within a span, for the gradients that are collected block by block.
#[derive(Debug, Clone)]
pub(super) struct Stacked {
    pub(super) name: String,
    pub(super) first_block: usize,
    /// Index of the tunable's first block in the span's blocks; negative if it starts before the span.
    pub(super) offset: i64,
    /// `[blocks, ..]`
    pub(super) shape: Vec<i64>,
}

impl Stacked {
    /// Stacks gradients by the block of the span that they belong to; two of the same block are added. Blocks without a
    /// gradient have zeros.
    pub(super) fn stack(&self, grads: Vec<(usize, Tensor)>, device: Device) -> Result<Tunable, TchError> {
        let total = Tensor::f_zeros(self.shape.as_slice(), (Kind::Float, device))?;
        for (block, grad) in grads {
            let _ = total.f_select(0, block as i64 - self.offset)?.f_add_(&grad)?;
        }
        Ok(Tunable { name: self.name.clone(), first_block: self.first_block, tensor: total })
    }
}
