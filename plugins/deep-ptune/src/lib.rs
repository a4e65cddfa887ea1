//! The tuning mode `deep-ptune`: trainable soft prompts `prompts [pre_seq_len, hidden]` in front of every row, and
//! `deep_prompts [n_blocks, pre_seq_len, hidden]` added to the prefix's hidden states before every block.
//!
//! This crate does not add the deep prompts itself; the blocks do. It does not know which model they belong to.
//!
//! Invariants: it adds two parameters, `prompts` and `deep_prompts`; what a span is given is the part of
//! `deep_prompts` for its blocks; deep prompts of zero leave the model as it is.
//!
//! ```
//! use sepal_deep_ptune::DeepPtune;
//! use sepal_plugin::{Registry, Tuning};
//!
//! let mut registry = Registry::new();
//! registry.register::<Tuning, DeepPtune>()?;
//! assert_eq!(registry.entries::<Tuning>().next().map(|entry| entry.name), Some("deep-ptune"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::num::NonZeroUsize;

use schemars::JsonSchema;
use sepal_core::{DEEP_PROMPTS, Span};
use sepal_nn::init::{normal, rng, sample_rows};
use sepal_plugin::{BuildError, NamedTensor, Plugin, Tuning, TuningContext, TuningError, TuningMode};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Trains soft prompts in front of every row and prompts that are added before every block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DeepPtuneConfig {
    /// How many prompts, each as wide as a hidden state.
    pub pre_seq_len: NonZeroUsize,
    /// How the prompts in front of the rows start.
    pub init: Init,
    /// How the prompts before each block start.
    pub deep_init: DeepInit,
}

impl Default for DeepPtuneConfig {
    /// 16 prompts that start as words, and nothing added before the blocks.
    fn default() -> Self {
        let pre_seq_len = NonZeroUsize::MIN.saturating_add(15);
        Self { pre_seq_len, init: Init::Vocabulary, deep_init: DeepInit::Zero }
    }
}

/// How the prompts in front of the rows start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// As the embeddings of words drawn from the vocabulary.
    Vocabulary,
    /// From N(0, `initializer_range`²), as the model's own weights did.
    Normal,
}

/// How the prompts before each block start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeepInit {
    /// As zero: the first step sees the untouched model.
    Zero,
    /// From N(0, `initializer_range`²); slow to train.
    Normal,
}

/// Soft prompts in front of every row, and additions to them before every block.
#[derive(Debug)]
pub struct DeepPtune {
    prompts: Tensor,      // [pre_seq_len, hidden]
    deep_prompts: Tensor, // [n_blocks, pre_seq_len, hidden]
    pre_seq_len: usize,
    n_blocks: usize,
}

/// The prompts' name in an adapter; the deep prompts have the one that the blocks know.
const PROMPTS: &str = "prompts";

impl Plugin<Tuning> for DeepPtune {
    const NAME: &'static str = "deep-ptune";
    type Config = DeepPtuneConfig;

    fn example() -> DeepPtuneConfig {
        DeepPtuneConfig::default()
    }

    fn build(config: DeepPtuneConfig, cx: &mut TuningContext<'_>) -> Result<Box<dyn TuningMode>, BuildError> {
        let (pre_seq_len, n_blocks) = (config.pre_seq_len.get(), cx.n_blocks);
        let prompts = initial_prompts(config.init, pre_seq_len, cx)?;
        let deep_prompts = initial_deep_prompts(config.deep_init, pre_seq_len, cx)?;
        Ok(Box::new(Self {
            prompts: cx.params.add(PROMPTS, &prompts)?,
            deep_prompts: cx.params.add(DEEP_PROMPTS, &deep_prompts)?,
            pre_seq_len,
            n_blocks,
        }))
    }
}

impl TuningMode for DeepPtune {
    fn prefix(&self) -> Result<Option<Tensor>, TuningError> {
        Ok(Some(self.prompts.shallow_clone()))
    }

    fn tunables(&self, span: Span) -> Result<Vec<NamedTensor>, TuningError> {
        if span.end() > self.n_blocks {
            return Err(TuningError::Span { span, n_blocks: self.n_blocks });
        }
        let tensor = self.deep_prompts.f_narrow(0, span.start() as i64, span.len() as i64)?; // [span, pre_seq_len, hidden]
        Ok(vec![NamedTensor { name: DEEP_PROMPTS.to_owned(), tensor }])
    }

    fn pre_seq_len(&self) -> usize {
        self.pre_seq_len
    }
}

fn initial_prompts(init: Init, pre_seq_len: usize, cx: &TuningContext<'_>) -> Result<Tensor, BuildError> {
    let mut rng = rng(cx.seed, PROMPTS);
    Ok(match init {
        Init::Vocabulary => sample_rows(cx.embeddings, pre_seq_len, &mut rng)?,
        Init::Normal => normal(&[pre_seq_len as i64, cx.hidden as i64], cx.initializer_range, &mut rng)?,
    })
}

fn initial_deep_prompts(init: DeepInit, pre_seq_len: usize, cx: &TuningContext<'_>) -> Result<Tensor, BuildError> {
    let shape = [cx.n_blocks as i64, pre_seq_len as i64, cx.hidden as i64];
    Ok(match init {
        DeepInit::Zero => Tensor::f_zeros(shape, (Kind::Float, Device::Cpu))?,
        DeepInit::Normal => normal(&shape, cx.initializer_range, &mut rng(cx.seed, DEEP_PROMPTS))?,
    })
}

#[cfg(test)]
mod tests {
    use sepal_nn::Parameters;
    use sepal_testkit::contract;

    use super::*;

    fn built(deep_init: DeepInit) -> (Parameters, Box<dyn TuningMode>) {
        let embeddings = Tensor::arange(80, (Kind::Float, Device::Cpu)).view([20, 4]);
        let mut params = Parameters::new();
        let mut cx = TuningContext {
            params: &mut params,
            n_blocks: 5,
            hidden: 4,
            initializer_range: 0.5,
            embeddings: &embeddings,
            seed: 42,
        };
        let pre_seq_len = NonZeroUsize::MIN.saturating_add(2);
        let config = DeepPtuneConfig { pre_seq_len, init: Init::Vocabulary, deep_init };
        let mode = DeepPtune::build(config, &mut cx).expect("built");
        (params, mode)
    }

    fn deep_prompts(mode: &dyn TuningMode, span: &str) -> Tensor {
        let span = span.parse().expect("a span");
        let [NamedTensor { name, tensor }] =
            <[_; 1]>::try_from(mode.tunables(span).expect("given")).expect("one tensor");
        assert_eq!(name, "deep_prompts");
        tensor
    }

    #[test]
    fn it_keeps_the_contract() {
        contract::check_tuning::<DeepPtune>();
    }

    #[test]
    fn nothing_is_added_at_first() {
        let (params, mode) = built(DeepInit::Zero);
        let names: Vec<&str> = params.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["prompts", "deep_prompts"]);
        assert_eq!(deep_prompts(&*mode, "0:5").detach().abs().max().double_value(&[]), 0.0);
        assert_eq!(deep_prompts(&*mode, "1:3").size(), [2, 3, 4]);
    }

    #[test]
    fn a_span_has_its_own_blocks() {
        let (params, mode) = built(DeepInit::Normal);
        let all = params.get("deep_prompts").expect("added");
        assert!(all.detach().abs().max().double_value(&[]) > 0.1);
        let part = deep_prompts(&*mode, "1:3");
        assert_eq!(part, all.narrow(0, 1, 2));
        part.sum(Kind::Float).backward();
        let touched = all.grad().sum_dim_intlist([1_i64, 2].as_slice(), false, Kind::Float);
        assert_eq!(Vec::<f32>::try_from(touched).expect("numbers"), [0.0, 12.0, 12.0, 0.0, 0.0]);
    }

    #[test]
    fn other_blocks_are_refused() {
        let (_, mode) = built(DeepInit::Zero);
        let error = mode.tunables("3:6".parse().expect("a span")).expect_err("there are five blocks");
        assert_eq!(error.to_string(), "tune blocks 3:6 of a model with 5 blocks");
    }
}
