//! Trainable tensors that are injected into frozen blocks, each at a named site: the prefix, the prefix's keys and values,
//! or a linear layer. An adapter works on the part of one batch, so callers with different adapters are computed together.

mod hooks;
mod injected;
mod layer_input;
mod lora;
mod prefix;
mod scale;
mod stacked;
mod tunables;

use std::fmt::Debug;

use tch::{TchError, Tensor};

pub(crate) use self::hooks::{AdapterBackward, BlockAdapters, Forward, InnerGrads, SavedAdapters};
pub use self::injected::Injected;
pub(crate) use self::injected::check;
pub(crate) use self::layer_input::LayerInput;
pub use self::tunables::{TunableError, check_tunables, tunable_names};

/// Place in a block where adapters act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Site {
    /// Hidden states of the prefix before the block.
    Prefix,
    /// Keys and values of the prefix, after rotation.
    PrefixKeysValues,
    /// Output of the layer of queries.
    Queries,
    /// Output of the layer of keys and values.
    KeysValues,
    /// Output of the layer after attention.
    AttentionOutput,
    /// Output of the first layer of the MLP.
    MlpInput,
    /// Input of the last layer of the MLP.
    MlpActive,
    /// Output of the last layer of the MLP.
    MlpOutput,
}

/// An adapter of one block at its site.
#[derive(Debug)]
pub(crate) struct Injection {
    pub(crate) site: Site,
    pub(crate) adapter: Box<dyn Adapter>,
}

/// Trainable tensors at one site of one block. Tensors, products and gradients of adapters are fp32; inputs and outputs of
/// layers, and their gradients, may be in the format of the computation.
pub(crate) trait Adapter: Debug + Send {
    /// Changes `output [n, ..]`, the part of one batch, in place. `input [n, inputs]` is the input of the layer, if the
    /// site is the output of one. Returns the tensor that the backward pass needs, if any.
    fn forward(&self, input: Option<&Tensor>, output: &Tensor) -> Result<Option<Tensor>, TchError>;

    /// Replaces the gradient of the changed output by that of the unchanged one, in place, and returns the gradients of
    /// the adapter's tensors.
    fn backward(&self, pass: SiteBackward<'_>) -> Result<SiteGrads, TchError>;

    /// Adds the gradient of the layer's input to `grad_input [n, inputs]`, given [`SiteGrads::inner`] of the same rows.
    fn add_input_grad(&self, inner: &Tensor, grad_input: &Tensor) -> Result<(), TchError> {
        let _ = (inner, grad_input);
        Ok(())
    }

    /// True if the adapter only adds to the output, so that the output may already include other addends.
    fn is_additive(&self) -> bool {
        true
    }

    /// Returns an adapter with the same memory.
    fn share(&self) -> Box<dyn Adapter>;
}

/// Inputs of an adapter's backward pass for one batch.
pub(crate) struct SiteBackward<'a> {
    /// Input of the layer.
    pub(crate) input: Option<&'a LayerInput>,
    /// Gradient of the output, `[n, ..]`.
    pub(crate) grad: &'a Tensor,
    /// Result of [`Adapter::forward`].
    pub(crate) saved: Option<&'a Tensor>,
    /// True if the gradients of the adapter's tensors are returned.
    pub(crate) wants_tensors: bool,
}

/// Results of an adapter's backward pass.
#[derive(Default)]
pub(crate) struct SiteGrads {
    /// Gradients by the index of their tunable.
    pub(crate) tensors: Vec<(usize, Tensor)>,
    /// Gradient from which that of the layer's input follows.
    pub(crate) inner: Option<Tensor>,
}

impl Injection {
    fn share(&self) -> Self {
        Self { site: self.site, adapter: self.adapter.share() }
    }
}

/// Error of saved tensors that do not belong to the adapter.
fn mismatch() -> TchError {
    TchError::Kind("saved tensors of another adapter".to_owned())
}
