//! The tuning mode `ptune`: trainable soft prompts `prompts [pre_seq_len, hidden]` in front of every row.
//!
//! This crate trains nothing inside the blocks and does not know which model they belong to.
//!
//! Invariants: it adds one parameter, `prompts`; the prefix is that parameter itself; no block is given anything.
//!
//! ```
//! use sepal_plugin::{Registry, Tuning};
//! use sepal_ptune::Ptune;
//!
//! let mut registry = Registry::new();
//! registry.register::<Tuning, Ptune>()?;
//! assert_eq!(registry.entries::<Tuning>().next().map(|entry| entry.name), Some("ptune"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::num::NonZeroUsize;

use schemars::JsonSchema;
use sepal_core::Span;
use sepal_nn::init::{normal, rng, sample_rows};
use sepal_plugin::{BuildError, NamedTensor, Plugin, Tuning, TuningContext, TuningError, TuningMode};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Trains soft prompts in front of every row; the model stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PtuneConfig {
    /// How many prompts, each as wide as a hidden state.
    pub pre_seq_len: NonZeroUsize,
    /// How the prompts start.
    pub init: Init,
}

impl Default for PtuneConfig {
    /// 16 prompts that start as words.
    fn default() -> Self {
        Self { pre_seq_len: NonZeroUsize::MIN.saturating_add(15), init: Init::Vocabulary }
    }
}

/// How prompts start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// As the embeddings of words drawn from the vocabulary.
    Vocabulary,
    /// From N(0, `initializer_range`²), as the model's own weights did.
    Normal,
}

/// Soft prompts in front of every row (Lester et al., arXiv 2104.08691).
#[derive(Debug)]
pub struct Ptune {
    prompts: Tensor, // [pre_seq_len, hidden]
    pre_seq_len: usize,
}

/// The parameter's name in an adapter.
const PROMPTS: &str = "prompts";

impl Plugin<Tuning> for Ptune {
    const NAME: &'static str = "ptune";
    type Config = PtuneConfig;

    fn example() -> PtuneConfig {
        PtuneConfig::default()
    }

    fn build(config: PtuneConfig, cx: &mut TuningContext<'_>) -> Result<Box<dyn TuningMode>, BuildError> {
        let pre_seq_len = config.pre_seq_len.get();
        let mut rng = rng(cx.seed, PROMPTS);
        let init = match config.init {
            Init::Vocabulary => sample_rows(cx.embeddings, pre_seq_len, &mut rng)?,
            Init::Normal => normal(&[pre_seq_len as i64, cx.hidden as i64], cx.initializer_range, &mut rng)?,
        };
        Ok(Box::new(Self { prompts: cx.params.add(PROMPTS, &init)?, pre_seq_len }))
    }
}

impl TuningMode for Ptune {
    fn prefix(&self) -> Result<Option<Tensor>, TuningError> {
        Ok(Some(self.prompts.shallow_clone()))
    }

    fn tunables(&self, _: Span) -> Result<Vec<NamedTensor>, TuningError> {
        Ok(Vec::new())
    }

    fn pre_seq_len(&self) -> usize {
        self.pre_seq_len
    }
}

#[cfg(test)]
mod tests {
    use sepal_nn::Parameters;
    use sepal_testkit::contract;
    use tch::{Device, Kind};

    use super::*;

    fn built(init: Init) -> (Parameters, Tensor) {
        let embeddings = Tensor::arange(80, (Kind::Float, Device::Cpu)).view([20, 4]);
        let mut params = Parameters::new();
        let mut cx = TuningContext {
            params: &mut params,
            n_blocks: 2,
            hidden: 4,
            initializer_range: 0.5,
            embeddings: &embeddings,
            seed: 42,
        };
        let config = PtuneConfig { pre_seq_len: NonZeroUsize::MIN.saturating_add(9), init };
        let mode = Ptune::build(config, &mut cx).expect("built");
        let prefix = mode.prefix().expect("computed").expect("there are prompts");
        (params, prefix)
    }

    #[test]
    fn it_keeps_the_contract() {
        contract::check_tuning::<Ptune>();
    }

    #[test]
    fn prompts_start_as_words() {
        let (params, prefix) = built(Init::Vocabulary);
        let names: Vec<&str> = params.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["prompts"]);
        assert_eq!(prefix.size(), [10, 4]);
        let firsts = Vec::<f32>::try_from(prefix.detach().select(1, 0)).expect("numbers");
        assert!(firsts.iter().all(|first| first % 4.0 == 0.0), "each prompt is a row of the embeddings: {firsts:?}");
    }

    #[test]
    fn prompts_start_normal_if_asked() {
        let (_, prefix) = built(Init::Normal);
        let largest = prefix.detach().abs().max().double_value(&[]);
        assert!(largest > 0.1 && largest < 3.0, "{largest} does not fit N(0, 0.5²)");
    }

    #[test]
    fn no_prompts_are_refused() {
        let options = serde_json::json!({ "pre_seq_len": 0 });
        assert!(serde_json::from_value::<PtuneConfig>(options).is_err());
    }
}
