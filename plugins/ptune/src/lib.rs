//! Tuning mode `ptune`: trainable soft prompts `prompts [pre_seq_len, hidden]` before every row.
//!
//! This crate trains nothing inside the blocks and does not know the model.
//!
//! Invariants: it adds one parameter, `prompts`, which is the prefix; blocks have no tunables.
//!
//! ```
//! use sepal_plugin::{Registry, Tuning};
//! use sepal_ptune::Ptune;
//!
//! let mut registry = Registry::new();
//! registry.register::<Tuning, Ptune>()?;
//! assert_eq!(registry.catalog().entries(sepal_plugin::PluginKind::Tuning).next().map(|entry| entry.name), Some("ptune"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::path::Path;

use sepal_plugin::{
    BuildError, Options, PROMPTS, Plugin, Tunable, Tuning, TuningContext, TuningError, TuningMode, initial_prompts,
};
use tch::Tensor;

pub use sepal_options::PtuneConfig;

/// Soft prompts before every row (Lester et al., arXiv 2104.08691).
#[derive(Debug)]
pub struct Ptune {
    prompts: Tensor, // [pre_seq_len, hidden]
    config: PtuneConfig,
}

impl Plugin<Tuning> for Ptune {
    const NAME: &'static str = PtuneConfig::NAME;
    type Config = PtuneConfig;

    fn example() -> PtuneConfig {
        PtuneConfig::example()
    }

    fn build(config: PtuneConfig, cx: &mut TuningContext<'_>) -> Result<Box<dyn TuningMode>, BuildError> {
        let init = initial_prompts(&config.init, config.pre_seq_len.get(), cx)?;
        Ok(Box::new(Self { prompts: cx.params.add(PROMPTS, &init)?, config }))
    }
}

impl TuningMode for Ptune {
    fn prefix(&self) -> Result<Option<Tensor>, TuningError> {
        Ok(Some(self.prompts.shallow_clone()))
    }

    fn tunables(&self) -> Result<Vec<Tunable>, TuningError> {
        Ok(Vec::new())
    }

    fn pre_seq_len(&self) -> usize {
        self.config.pre_seq_len.get()
    }

    fn starts_as(&self) -> Option<&Path> {
        self.config.init.adapter()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use sepal_nn::Parameters;
    use sepal_plugin::PromptInit;
    use sepal_testkit::contract;

    use super::*;

    fn built(init: PromptInit) -> (Parameters, Tensor) {
        let pre_seq_len = NonZeroUsize::MIN.saturating_add(9);
        let (params, mode) = contract::build_tuning::<Ptune>(PtuneConfig { pre_seq_len, init }).expect("built");
        (params, mode.prefix().expect("computed").expect("there are prompts"))
    }

    #[test]
    fn contract_holds() {
        contract::check_tuning::<Ptune>();
    }

    #[test]
    fn prompts_start_as_words() {
        let (params, prefix) = built(PromptInit::Vocabulary);
        let names: Vec<&str> = params.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["prompts"]);
        assert_eq!(prefix.size(), [10, 4]);
        let firsts = Vec::<f32>::try_from(prefix.detach().select(1, 0)).expect("numbers");
        assert!(firsts.iter().all(|first| first % 4.0 == 0.0), "each prompt is a row of the embeddings: {firsts:?}");
    }

    #[test]
    fn prompts_start_normal_if_asked() {
        let (_, prefix) = built(PromptInit::Normal);
        let largest = prefix.detach().abs().max().double_value(&[]);
        assert!(largest > 0.1 && largest < 3.0, "{largest} does not fit N(0, 0.5²)");
    }

    #[test]
    fn prompts_start_as_a_text_or_as_classes_if_asked() {
        let firsts = |init| Vec::<f32>::try_from(built(init).1.detach().select(1, 0)).expect("numbers");
        assert_eq!(firsts(PromptInit::Text("ten letter".to_owned())), [40.0; 10]);
        assert_eq!(firsts(PromptInit::ClassNames)[..2], [8.0, 12.0]);
    }

    #[test]
    fn no_prompts_are_refused() {
        let options = serde_json::json!({ "pre_seq_len": 0 });
        assert!(serde_json::from_value::<PtuneConfig>(options).is_err());
    }
}
