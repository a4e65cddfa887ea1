use sepal_core::{Span, Want};
use tch::{TchError, Tensor};

use crate::attention::Outputs;
use crate::layout::Layout;
use crate::mlp::Inner;
use crate::norm::Normed;

/// What one forward leaves for its backward: the minimum that frozen blocks need, see
/// [`BlockStack::tape_bytes`](crate::BlockStack::tape_bytes).
#[derive(Debug)]
pub struct Tape {
    pub(crate) span: Span,
    pub(crate) want: Want,
    pub(crate) layout: Layout,
    pub(crate) has_deep_prompts: bool,
    /// True if the prefix's keys and values were given.
    pub(crate) has_keys_values: bool,
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
        let hidden = self.blocks.first().map_or(0, |saved| saved.input.input.size()[1]);
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
    pub(crate) input: Normed,
    /// Turned to their positions, `[n, q_size]`; `[rows, q_size]` where only last tokens asked.
    pub(crate) q: Tensor,
    /// What went into the norm of queries, `[.. * heads, head_dim]`.
    pub(crate) q_normed: Option<Normed>,
    /// `[n, 2 kv_size]`.
    pub(crate) kv: Tensor,
    /// What went into the norm of keys, `[n * kv heads, head_dim]`.
    pub(crate) k_normed: Option<Normed>,
    pub(crate) outputs: Outputs,
    /// What went into the norm of what attention adds, `[n or rows, hidden]`.
    pub(crate) attention_normed: Option<Normed>,
    /// What went into the second norm, `[n or rows, hidden]`; nothing in a parallel block.
    pub(crate) middle: Option<Normed>,
    /// What went into the activation.
    pub(crate) inner: Inner,
    /// What went into the norm of what the MLP adds, `[n or rows, hidden]`.
    pub(crate) mlp_normed: Option<Normed>,
}

impl Saved {
    /// With memory of its own: parts of several callers' matrices would keep all of them.
    pub(crate) fn alone(self) -> Result<Self, TchError> {
        let alone = |normed: Option<Normed>| normed.map(Normed::alone).transpose();
        Ok(Self {
            input: self.input.alone()?,
            q: self.q.f_detach_copy()?,
            q_normed: alone(self.q_normed)?,
            kv: self.kv.f_detach_copy()?,
            k_normed: alone(self.k_normed)?,
            outputs: self.outputs.alone()?,
            attention_normed: alone(self.attention_normed)?,
            middle: alone(self.middle)?,
            inner: self.inner.alone()?,
            mlp_normed: alone(self.mlp_normed)?,
        })
    }

    pub(crate) fn attention(&self) -> (&Tensor, &Tensor, &Outputs) {
        (&self.q, &self.kv, &self.outputs)
    }

    fn numel(&self) -> usize {
        let normed = [&self.q_normed, &self.k_normed, &self.attention_normed, &self.middle, &self.mlp_normed];
        let normed: usize = normed.into_iter().flatten().map(Normed::numel).sum();
        normed + self.input.numel() + self.q.numel() + self.kv.numel() + self.outputs.numel() + self.inner.numel()
    }
}
