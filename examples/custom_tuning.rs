//! A tuning mode of your own: one addition to the prefix that all blocks share, as a plugin.
//!
//! The mode `shared-deep` trains `[pre_seq_len, hidden]` values where `deep-ptune` trains as many for every block.
//! `custom_tuning` registers it and shows the tensors that the blocks of a span get.

use std::error::Error;
use std::num::NonZeroUsize;

use schemars::JsonSchema;
use sepal_core::{DEEP_PROMPTS, Span};
use sepal_nn::Parameters;
use sepal_plugin::{
    BuildError, NamedTensor, PROMPTS, Plugin, PromptInit, Registry, Tuning, TuningContext, TuningError, TuningMode,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Device, Kind, Tensor};

/// Soft prompts before every row, and one addition to them that all blocks share.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SharedDeepConfig {
    /// Number of prompts, each of the hidden size.
    pre_seq_len: NonZeroUsize,
}

struct SharedDeep {
    prompts: Tensor,  // [pre_seq_len, hidden]
    addition: Tensor, // [pre_seq_len, hidden]
    n_blocks: usize,
}

impl Plugin<Tuning> for SharedDeep {
    const NAME: &'static str = "shared-deep";
    type Config = SharedDeepConfig;

    fn example() -> SharedDeepConfig {
        SharedDeepConfig { pre_seq_len: NonZeroUsize::MIN.saturating_add(15) }
    }

    fn build(config: SharedDeepConfig, context: &mut TuningContext<'_>) -> Result<Box<dyn TuningMode>, BuildError> {
        let init = PromptInit::Vocabulary.prompts(config.pre_seq_len.get(), context)?;
        let prompts = context.params.add(PROMPTS, &init)?;
        // Zeros, so that the first step sees the unchanged model.
        let addition = context.params.add("shared_addition", &init.f_zeros_like()?)?;
        Ok(Box::new(Self { prompts, addition, n_blocks: context.n_blocks }))
    }
}

impl TuningMode for SharedDeep {
    fn prefix(&self) -> Result<Option<Tensor>, TuningError> {
        Ok(Some(self.prompts.shallow_clone()))
    }

    fn tunables(&self, span: Span) -> Result<Vec<NamedTensor>, TuningError> {
        if span.end() > self.n_blocks {
            return Err(TuningError::Span { span, n_blocks: self.n_blocks });
        }
        // The gradient of an expanded tensor is the sum over the blocks.
        let shape = [&[span.len() as i64][..], &self.addition.size()].concat();
        let tensor = self.addition.f_unsqueeze(0)?.f_expand(shape, false)?; // [span, pre_seq_len, hidden]
        Ok(vec![NamedTensor { name: DEEP_PROMPTS.to_owned(), tensor }])
    }

    fn pre_seq_len(&self) -> usize {
        self.prompts.size()[0].unsigned_abs() as usize
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut registry = Registry::new();
    registry.register::<Tuning, SharedDeep>()?;

    let mut params = Parameters::new();
    let embeddings = Tensor::randn([100, 16], (Kind::Float, Device::Cpu)); // [vocab_size, hidden]
    let mut context = TuningContext {
        params: &mut params,
        n_blocks: 12,
        hidden: 16,
        kv_size: 16,
        initializer_range: 0.02,
        embeddings: &embeddings,
        tokenize: &|_| Ok(Vec::new()),
        labels: &[],
        is_restored: false,
        seed: 42,
    };
    let mode = registry.build::<Tuning>("shared-deep", json!({ "pre_seq_len": 4 }), &mut context)?;
    for NamedTensor { name, tensor } in mode.tunables(Span::new(0, 6)?)? {
        println!("blocks 0:6 get {name} {:?}; {} values train", tensor.size(), params.count());
    }
    Ok(())
}
