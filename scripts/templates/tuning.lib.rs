//! The tuning mode `@NAME@`: soft prompts in front of every row, each with a scale of its own.
//!
//! Start here: change the options, what trains, and what the blocks are given. Names and shapes of what blocks take are
//! those of `sepal_plugin::TunableName`; `cx.sites` lists the linear layers that adapters can change.

use std::num::NonZeroUsize;

use schemars::JsonSchema;
use sepal_nn::init::{rng, sample_rows};
use sepal_plugin::{BuildError, Plugin, Tunable, Tuning, TuningContext, TuningError, TuningMode};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Trains soft prompts in front of every row, and a factor of each of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct @TYPE@Config {
    /// Number of prompts, each of the hidden size.
    pub pre_seq_len: NonZeroUsize,
}

/// Soft prompts with scales.
#[derive(Debug)]
pub struct @TYPE@ {
    prompts: Tensor, // [pre_seq_len, hidden]
    scales: Tensor,  // [pre_seq_len, 1]
    pre_seq_len: usize,
}

impl Plugin<Tuning> for @TYPE@ {
    const NAME: &'static str = "@NAME@";
    type Config = @TYPE@Config;

    fn example() -> @TYPE@Config {
        @TYPE@Config { pre_seq_len: NonZeroUsize::MIN.saturating_add(7) }
    }

    fn build(config: @TYPE@Config, cx: &mut TuningContext<'_>) -> Result<Box<dyn TuningMode>, BuildError> {
        let pre_seq_len = config.pre_seq_len.get();
        let prompts = sample_rows(cx.embeddings, pre_seq_len, &mut rng(cx.seed, "prompts"))?;
        let scales = Tensor::f_ones([pre_seq_len as i64, 1], (Kind::Float, Device::Cpu))?;
        Ok(Box::new(Self {
            prompts: cx.params.add("prompts", &prompts)?,
            scales: cx.params.add("scales", &scales)?,
            pre_seq_len,
        }))
    }
}

impl TuningMode for @TYPE@ {
    fn prefix(&self) -> Result<Option<Tensor>, TuningError> {
        Ok(Some(self.prompts.f_mul(&self.scales)?)) // [pre_seq_len, hidden]
    }

    fn tunables(&self) -> Result<Vec<Tunable>, TuningError> {
        Ok(Vec::new())
    }

    fn pre_seq_len(&self) -> usize {
        self.pre_seq_len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contract_holds() {
        sepal_testkit::contract::check_tuning::<@TYPE@>();
    }
}
