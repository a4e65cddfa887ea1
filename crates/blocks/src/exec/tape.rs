use sepal_core::{Span, Want};
use tch::{Kind, TchError};

use crate::adapters::{Injected, SavedAdapters};
use crate::attention::grouped::SavedAttention;
use crate::attention::layout::Layout;
use crate::layers::mlp::SavedMlp;
use crate::layers::norm::SavedNorm;
use crate::tensor_bytes::tensor_bytes;

/// Tensors that a forward pass saves for its backward pass: the minimum that frozen blocks need, see
/// [`BlockStack::tape_bytes`](crate::BlockStack::tape_bytes).
#[derive(Debug)]
pub struct Tape {
    pub(crate) span: Span,
    pub(crate) want: Want,
    pub(crate) layout: Layout,
    pub(crate) injected: Box<Injected>,
    pub(crate) blocks: Vec<SavedBlock>,
}

impl Tape {
    /// Span of the blocks.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Positions of the output.
    pub fn want(&self) -> Want {
        self.want
    }

    /// Shape of the output and of its gradient, `[positions, hidden]`.
    pub fn output_shape(&self) -> [usize; 2] {
        let hidden = self.blocks.first().map_or(0, |saved| saved.input.width());
        [self.layout.n_outputs(self.want), hidden].map(|dim| usize::try_from(dim).unwrap_or(0))
    }

    /// Memory of the tensors and masks, in bytes.
    pub fn bytes(&self) -> usize {
        self.blocks.iter().map(SavedBlock::bytes).sum::<usize>() + self.layout.bytes()
    }
}

/// Tensors that one block saves of one batch, in the format of the computation; statistics, log-sums, weights of experts
/// and the products of adapters are fp32.
#[derive(Debug)]
pub(crate) struct SavedBlock {
    /// Input of the first norm, deep prompts included, `[n, hidden]`.
    pub(crate) input: SavedNorm,
    /// Input of the queries' norm, `[.. * heads, head_dim]` or `[.., q_size]`.
    pub(crate) q_norm: Option<SavedNorm>,
    /// Input of the keys' norm, `[n * kv heads, head_dim]` or `[n, kv_size]`.
    pub(crate) k_norm: Option<SavedNorm>,
    pub(crate) attention: SavedAttention,
    /// Input of the norm on attention's output, `[n or rows, hidden]`.
    pub(crate) attention_norm: Option<SavedNorm>,
    /// Input of the second norm, `[n or rows, hidden]`; none in a parallel block.
    pub(crate) middle: Option<SavedNorm>,
    pub(crate) mlp: SavedMlp,
    /// Input of the norm on the MLP's output, `[n or rows, hidden]`.
    pub(crate) mlp_norm: Option<SavedNorm>,
    /// In the order of the block's injections.
    pub(crate) adapters: SavedAdapters,
}

impl SavedBlock {
    /// Converts the inputs of norms to the kind of the computation. If the batch `is_shared` with other callers, all tensors
    /// are copied, because views would retain the memory of all of them.
    pub(crate) fn into_tape(self, compute: Kind, is_shared: bool) -> Result<Self, TchError> {
        let norm = |norm: SavedNorm| norm.into_tape(compute, is_shared);
        let optional = |saved: Option<SavedNorm>| saved.map(norm).transpose();
        Ok(Self {
            input: norm(self.input)?,
            q_norm: optional(self.q_norm)?,
            k_norm: optional(self.k_norm)?,
            attention: if is_shared { self.attention.into_owned()? } else { self.attention },
            attention_norm: optional(self.attention_norm)?,
            middle: optional(self.middle)?,
            mlp: if is_shared { self.mlp.into_owned()? } else { self.mlp },
            mlp_norm: optional(self.mlp_norm)?,
            // Adapters compute each batch on its own.
            adapters: self.adapters,
        })
    }

    fn bytes(&self) -> usize {
        let norms = [&self.q_norm, &self.k_norm, &self.attention_norm, &self.middle, &self.mlp_norm];
        let norms: usize = norms.into_iter().flatten().map(SavedNorm::bytes).sum();
        let adapters: usize = self.adapters.iter().flatten().map(tensor_bytes).sum();
        norms + self.input.bytes() + self.attention.bytes() + self.mlp.bytes() + adapters
    }
}
