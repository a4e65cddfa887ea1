use tch::{Kind, TchError, Tensor};

use super::{Adapter, SiteBackward, SiteGrads};

/// Deep prompts of one block, `[prefix_len, hidden]`, added to the prefix (P-Tuning v2, arXiv 2110.07602).
#[derive(Debug)]
pub(super) struct DeepPrompts {
    pub(super) tunable: usize,
    pub(super) prompts: Tensor,
}

impl Adapter for DeepPrompts {
    fn forward(&self, _: Option<&Tensor>, output: &Tensor) -> Result<Option<Tensor>, TchError> {
        let _ = output.shallow_clone().f_add_(&self.prompts)?;
        Ok(None)
    }

    fn backward(&self, pass: SiteBackward<'_>) -> Result<SiteGrads, TchError> {
        // A copy, because the gradient goes on to the block before.
        let grad = pass.wants_tensors.then(|| pass.grad.f_detach_copy()).transpose()?;
        Ok(SiteGrads { tensors: grad.map(|grad| (self.tunable, grad)).into_iter().collect(), inner: None })
    }

    fn share(&self) -> Box<dyn Adapter> {
        Box::new(Self { tunable: self.tunable, prompts: self.prompts.shallow_clone() })
    }
}

/// Keys and values of one block, `[prefix_len, 2 kv_size]`, in the place of those that it computes for the prefix (prefix
/// tuning, arXiv 2101.00190).
#[derive(Debug)]
pub(super) struct PrefixKeysValues {
    pub(super) tunable: usize,
    pub(super) keys_values: Tensor,
}

impl Adapter for PrefixKeysValues {
    fn forward(&self, _: Option<&Tensor>, output: &Tensor) -> Result<Option<Tensor>, TchError> {
        output.shallow_clone().f_copy_(&self.keys_values)?;
        Ok(None)
    }

    /// The replaced keys and values have no gradient.
    fn backward(&self, pass: SiteBackward<'_>) -> Result<SiteGrads, TchError> {
        // A copy, also of fp32, because the gradient is cleared.
        let grad = pass.wants_tensors.then(|| pass.grad.f_to_dtype(Kind::Float, false, true)).transpose()?;
        let _ = pass.grad.shallow_clone().f_zero_()?;
        Ok(SiteGrads { tensors: grad.map(|grad| (self.tunable, grad)).into_iter().collect(), inner: None })
    }

    fn share(&self) -> Box<dyn Adapter> {
        Box::new(Self { tunable: self.tunable, keys_values: self.keys_values.shallow_clone() })
    }
}
