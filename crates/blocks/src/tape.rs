use sepal_core::{Span, Want};
use tch::{TchError, Tensor};

use crate::attention::Outputs;
use crate::layout::Layout;
use crate::norm::Stats;

/// What one forward leaves for its backward: the minimum that frozen blocks need, see
/// [`BlockStack::tape_bytes`](crate::BlockStack::tape_bytes).
#[derive(Debug)]
pub struct Tape {
    pub(crate) span: Span,
    pub(crate) want: Want,
    pub(crate) layout: Layout,
    pub(crate) has_deep_prompts: bool,
    /// Of each block.
    pub(crate) blocks: Vec<Saved>,
}

impl Tape {
    /// The blocks that it is of.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Its output: all positions or the last of each row.
    pub fn want(&self) -> Want {
        self.want
    }

    /// `[n or rows, hidden]`, of the output and of its gradient.
    pub fn output_shape(&self) -> [usize; 2] {
        let hidden = self.blocks.first().map_or(0, |saved| saved.input.size()[1]);
        [self.layout.outputs(), hidden].map(|dim| usize::try_from(dim).unwrap_or(0))
    }

    /// Memory held, in bytes: that of its tensors and masks.
    pub fn bytes(&self) -> usize {
        let floats: usize = self.blocks.iter().map(Saved::numel).sum();
        floats * size_of::<f32>() + self.layout.bytes()
    }
}

/// What one block keeps of one part.
#[derive(Debug)]
pub(crate) struct Saved {
    /// What went into the first norm, deep prompts included, `[n, hidden]`.
    pub(crate) input: Tensor,
    pub(crate) input_stats: Stats,
    /// Turned to their positions, `[n, q_size]`; `[rows, q_size]` where only last tokens asked.
    pub(crate) q: Tensor,
    /// `[n, 2 kv_size]`.
    pub(crate) kv: Tensor,
    pub(crate) outputs: Outputs,
    /// What went into the second norm, `[n or rows, hidden]`.
    pub(crate) middle: Tensor,
    pub(crate) middle_stats: Stats,
    /// What went into the activation.
    pub(crate) inner: Tensor,
}

impl Saved {
    /// With memory of its own: parts of several callers' matrices would keep all of them.
    pub(crate) fn alone(self) -> Result<Self, TchError> {
        Ok(Self {
            input: self.input.f_detach_copy()?,
            q: self.q.f_detach_copy()?,
            kv: self.kv.f_detach_copy()?,
            outputs: self.outputs.alone()?,
            middle: self.middle.f_detach_copy()?,
            inner: self.inner.f_detach_copy()?,
            ..self
        })
    }

    pub(crate) fn attention(&self) -> (&Tensor, &Tensor, &Outputs) {
        (&self.q, &self.kv, &self.outputs)
    }

    fn numel(&self) -> usize {
        let tensors = [&self.input, &self.q, &self.kv, &self.middle, &self.inner];
        let tensors: usize = tensors.into_iter().map(Tensor::numel).sum();
        tensors + self.input_stats.numel() + self.middle_stats.numel() + self.outputs.numel()
    }
}
