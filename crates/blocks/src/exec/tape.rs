use sepal_core::{Span, Want};
use tch::{TchError, Tensor};

use crate::adapters::{Injected, SavedAdapters};
use crate::attention::grouped::SavedAttention;
use crate::attention::layout::Layout;
use crate::layers::mlp::SavedMlp;
use crate::layers::norm::SavedNorm;

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
        let hidden = self.blocks.first().map_or(0, |saved| saved.input.input.size()[1]);
        [self.layout.n_outputs(self.want), hidden].map(|dim| usize::try_from(dim).unwrap_or(0))
    }

    /// Memory of the tensors and masks, in bytes.
    pub fn bytes(&self) -> usize {
        let floats: usize = self.blocks.iter().map(SavedBlock::numel).sum();
        floats * size_of::<f32>() + self.layout.bytes()
    }
}

/// Tensors that one block saves of one batch.
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
    /// Copies the tensors, because views of a packed batch would retain the memory of all its callers.
    pub(crate) fn into_owned(self) -> Result<Self, TchError> {
        let owned = |norm: Option<SavedNorm>| norm.map(SavedNorm::into_owned).transpose();
        Ok(Self {
            input: self.input.into_owned()?,
            q_norm: owned(self.q_norm)?,
            k_norm: owned(self.k_norm)?,
            attention: self.attention.into_owned()?,
            attention_norm: owned(self.attention_norm)?,
            middle: owned(self.middle)?,
            mlp: self.mlp.into_owned()?,
            mlp_norm: owned(self.mlp_norm)?,
            // Adapters compute each batch on its own.
            adapters: self.adapters,
        })
    }

    fn numel(&self) -> usize {
        let norms = [&self.q_norm, &self.k_norm, &self.attention_norm, &self.middle, &self.mlp_norm];
        let norms: usize = norms.into_iter().flatten().map(SavedNorm::numel).sum();
        let adapters: usize = self.adapters.iter().flatten().map(Tensor::numel).sum();
        norms + self.input.numel() + self.attention.numel() + self.mlp.numel() + adapters
    }
}
