//! Inputs of the blocks from a trained adapter.

use sepal_blocks::Ends;
use sepal_core::{ModelConfig, TunableName};
use sepal_nn::{Tunable, share_from_host};
use tch::{Device, Kind, Tensor};

use crate::adapter::Adapter;
use crate::compute::ComputeError;

/// Prefix of the first block, and the tunables of all blocks.
#[derive(Debug)]
pub(crate) struct BlockInputs {
    /// `[prefix_len, hidden]`, without rows for an adapter without a prefix.
    pub(crate) prefix: Tensor,
    pub(crate) tunables: Vec<Tunable>,
}

impl BlockInputs {
    /// `factor` is that of the low-rank additions. The adapter must fit the model.
    pub(crate) fn new(adapter: &Adapter, factor: f64, ends: &Ends, config: &ModelConfig) -> Result<Self, ComputeError> {
        let tunables = adapter.tunables().map(|(name, host)| {
            let tensor = share_from_host(host)?;
            let tensor = match name {
                TunableName::LoraB(_) => tensor.f_mul_scalar(factor)?,
                _ => tensor,
            };
            let blocks = host.shape().first().copied().unwrap_or(0);
            Ok(Tunable { name: name.to_string(), first_block: config.n_blocks.saturating_sub(blocks), tensor })
        });
        let tunables = tunables.collect::<Result<Vec<_>, ComputeError>>()?;
        let places = |len: usize| {
            Tensor::f_zeros([len as i64, config.hidden as i64], (Kind::Float, Device::Cpu)) // [len, hidden]
        };
        let prefix = match adapter.prompts() {
            Some(prompts) => ends.embed_prompts(&share_from_host(prompts)?)?,
            None if adapter.prefix_len() > 0 => ends.embed_prompts(&places(adapter.prefix_len())?)?,
            None => places(0)?,
        };
        Ok(Self { prefix, tunables })
    }

    pub(crate) fn prefix_len(&self) -> usize {
        self.prefix.size().first().map_or(0, |len| len.unsigned_abs() as usize)
    }
}
