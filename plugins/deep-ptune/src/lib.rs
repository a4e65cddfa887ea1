//! Tuning mode `deep-ptune`: trainable soft prompts `prompts [pre_seq_len, hidden]` before every row, and `deep_prompts
//! [n_blocks, pre_seq_len, hidden]` added to the prefix's hidden states before every block.
//!
//! The blocks add the deep prompts; this crate does not, and it does not know the model.
//!
//! Invariants: it adds two parameters, `prompts` and `deep_prompts`; deep prompts of zero leave the model unchanged.
//!
//! ```
//! use sepal_deep_ptune::DeepPtune;
//! use sepal_plugin::{Registry, Tuning};
//!
//! let mut registry = Registry::new();
//! registry.register::<Tuning, DeepPtune>()?;
//! assert_eq!(registry.catalog().entries(sepal_plugin::PluginKind::Tuning).next().map(|entry| entry.name), Some("deep-ptune"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::path::Path;

use sepal_core::DEEP_PROMPTS;
use sepal_nn::init::{normal, rng};
use sepal_plugin::{
    BuildError, Options, PROMPTS, Plugin, PromptInit, Tunable, Tuning, TuningContext, TuningError, TuningMode,
    initial_prompts, saved_tensor,
};
use tch::{Device, Kind, Tensor};

pub use sepal_options::{DeepInit, DeepPtuneConfig};

/// Soft prompts before every row, and additions to them before every block.
#[derive(Debug)]
pub struct DeepPtune {
    prompts: Tensor,      // [pre_seq_len, hidden]
    deep_prompts: Tensor, // [n_blocks, pre_seq_len, hidden]
    config: DeepPtuneConfig,
}

impl Plugin<Tuning> for DeepPtune {
    const NAME: &'static str = DeepPtuneConfig::NAME;
    type Config = DeepPtuneConfig;

    fn example() -> DeepPtuneConfig {
        DeepPtuneConfig::example()
    }

    fn build(config: DeepPtuneConfig, cx: &mut TuningContext<'_>) -> Result<Box<dyn TuningMode>, BuildError> {
        let prompts = initial_prompts(&config.init, config.pre_seq_len.get(), cx)?;
        let deep_prompts = initial_deep_prompts(&config, cx)?;
        Ok(Box::new(Self {
            prompts: cx.params.add(PROMPTS, &prompts)?,
            deep_prompts: cx.params.add(DEEP_PROMPTS, &deep_prompts)?,
            config,
        }))
    }
}

impl TuningMode for DeepPtune {
    fn prefix(&self) -> Result<Option<Tensor>, TuningError> {
        Ok(Some(self.prompts.shallow_clone()))
    }

    fn tunables(&self) -> Result<Vec<Tunable>, TuningError> {
        Ok(vec![Tunable::new(DEEP_PROMPTS, self.deep_prompts.shallow_clone())])
    }

    fn pre_seq_len(&self) -> usize {
        self.config.pre_seq_len.get()
    }

    fn starts_as(&self) -> Option<&Path> {
        self.config.init.adapter()
    }
}

fn initial_deep_prompts(config: &DeepPtuneConfig, cx: &TuningContext<'_>) -> Result<Tensor, BuildError> {
    let shape = config.deep_prompts(cx.n_blocks, cx.hidden).signed_shape();
    match (&config.deep_init, &config.init) {
        (Some(DeepInit::Adapter(path)), _) => saved_tensor("deep_init", path, DEEP_PROMPTS, &shape, cx),
        (None, PromptInit::Adapter(path)) => saved_tensor("init", path, DEEP_PROMPTS, &shape, cx),
        (Some(DeepInit::Normal), _) => Ok(normal(&shape, cx.initializer_range, &mut rng(cx.seed, DEEP_PROMPTS))?),
        (Some(DeepInit::Zero) | None, _) => Ok(Tensor::f_zeros(shape, (Kind::Float, Device::Cpu))?),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroUsize;

    use sepal_nn::Parameters;
    use sepal_testkit::contract;

    use super::*;

    fn try_build(
        init: PromptInit,
        deep_init: Option<DeepInit>,
    ) -> Result<(Parameters, Box<dyn TuningMode>), BuildError> {
        let pre_seq_len = NonZeroUsize::MIN.saturating_add(2);
        contract::build_tuning::<DeepPtune>(DeepPtuneConfig { pre_seq_len, init, deep_init })
    }

    fn built(deep_init: DeepInit) -> (Parameters, Box<dyn TuningMode>) {
        try_build(PromptInit::Vocabulary, Some(deep_init)).expect("built")
    }

    fn deep_prompts(mode: &dyn TuningMode) -> Tensor {
        let [Tunable { name, first_block, tensor }] =
            <[_; 1]>::try_from(mode.tunables().expect("tunables")).expect("one tensor");
        assert_eq!((name.as_str(), first_block), ("deep_prompts", 0));
        tensor
    }

    #[test]
    fn contract_holds() {
        contract::check_tuning::<DeepPtune>();
    }

    #[test]
    fn zero_init_adds_nothing() {
        let (params, mode) = built(DeepInit::Zero);
        let names: Vec<&str> = params.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["prompts", "deep_prompts"]);
        assert_eq!(deep_prompts(&*mode), Tensor::zeros([5, 3, 4], (Kind::Float, Device::Cpu)));
    }

    #[test]
    fn adapter_init_sets_both_kinds_of_prompts() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("adapter.safetensors");
        let adapter = || PromptInit::Adapter(path.clone());
        let (saved, _) = built(DeepInit::Normal);
        saved.save(&path, &BTreeMap::new()).expect("saved");
        let digest = |params: &Parameters| params.digest().expect("read");
        assert_eq!(digest(&try_build(adapter(), None).expect("built").0), digest(&saved));
        let both = try_build(PromptInit::Vocabulary, Some(DeepInit::Adapter(path.clone()))).expect("built");
        assert_eq!(digest(&both.0), digest(&saved), "the same seed draws the same words");
        let (_, mode) = try_build(adapter(), Some(DeepInit::Zero)).expect("built");
        assert_eq!(deep_prompts(&*mode).detach().abs().max().double_value(&[]), 0.0);

        let mut prompts = Parameters::new();
        drop(prompts.add("prompts", saved.get("prompts").expect("there")).expect("new"));
        prompts.save(&path, &BTreeMap::new()).expect("saved");
        let error = try_build(adapter(), None).err().expect("no deep prompts").to_string();
        assert!(error.ends_with("adapter.safetensors has no `deep_prompts`, only prompts"), "{error}");
        assert!(try_build(adapter(), Some(DeepInit::Zero)).is_ok());
    }

    #[test]
    fn tunables_are_attached_to_the_parameter() {
        let (params, mode) = built(DeepInit::Normal);
        let all = params.get("deep_prompts").expect("added");
        assert!(all.detach().abs().max().double_value(&[]) > 0.1);
        let tunable = deep_prompts(&*mode);
        assert_eq!(tunable, *all);
        tunable.narrow(0, 1, 2).sum(Kind::Float).backward();
        let touched = all.grad().sum_dim_intlist([1_i64, 2].as_slice(), false, Kind::Float);
        assert_eq!(Vec::<f32>::try_from(touched).expect("numbers"), [0.0, 12.0, 12.0, 0.0, 0.0]);
    }
}
