//! Options of the shipped task heads, tuning modes, optimizers and schedules: names, defaults, checks and their manual.
//!
//! A plugin crate takes its options from here and builds its object from them, with tensors of the shapes that
//! [`HeadOptions`] and [`TuningOptions`] state. A program that only reads pipeline files and counts what they train takes the
//! options alone, and needs no libtorch.
//!
//! Place in the crate graph: above `catalog`, `core` and `metrics`; `optim`, `plugin`, the plugins and `front` stand on it. It
//! builds nothing, and knows neither the numbers of tensors nor pipeline files. Plugins that are not shipped define their options
//! in their own crates.
//!
//! Invariants: every options type is registered by [`register`]; options with unknown keys are refused.
//!
//! ```
//! use sepal_catalog::{Catalog, PluginKind};
//! use serde_json::json;
//!
//! let mut catalog = Catalog::new();
//! sepal_options::register(&mut catalog)?;
//! let options = catalog.resolve(PluginKind::Tuning, "lora", json!({ "r": 4 }))?;
//! assert_eq!(options["alpha"], json!(16.0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod causal_lm;
mod class_weights;
mod deep_ptune;
mod ia3;
mod label_words;
mod lora;
mod multiple_choice;
mod optimizers;
mod p_tuning;
mod pooling;
mod prefix_kv;
mod prompt_init;
mod ptune;
mod schedules;
mod sequence_classification;
mod targets;
mod token_classification;
mod trained;
mod verbalizer;

pub use causal_lm::CausalLmConfig;
pub use class_weights::ClassWeights;
pub use deep_ptune::{DeepInit, DeepPtuneConfig};
pub use ia3::{Ia3Config, Ia3Init};
pub use label_words::{WordError, label_words, word_token};
pub use lora::{LoraConfig, LoraFactors, LoraInit, TunedBlocks};
pub use multiple_choice::MultipleChoiceConfig;
pub use optimizers::{AdafactorConfig, AdamConfig, AdamWConfig, LionConfig, SgdConfig};
pub use p_tuning::{EncoderKind, EncoderShape, PTuningConfig, PTuningInit};
pub use pooling::Pooling;
pub use prefix_kv::{PrefixInit, PrefixKvConfig};
pub use prompt_init::{PROMPTS, PromptInit, soft_prompts};
pub use ptune::PtuneConfig;
pub use schedules::{
    ConstantConfig, CosineConfig, CosineWithRestartsConfig, Decay, InverseSqrtConfig, LinearConfig, PlateauMode,
    PolynomialConfig, ReduceOnPlateauConfig, ThresholdMode, WarmupStableDecayConfig,
};
pub use sequence_classification::{HeadInit, SequenceClassificationConfig};
pub use targets::Targets;
pub use token_classification::TokenClassificationConfig;
pub use trained::{HeadOptions, ModelShape, OptionError, Tokenize, TuningOptions, head_options, tuning_options};
pub use verbalizer::{Aggregate, VerbalizerConfig};

use sepal_catalog::{Catalog, RegisterError};

/// Adds the options of all shipped heads, tuning modes, optimizers and schedules.
///
/// # Errors
/// [`RegisterError`] if one of the names is taken.
pub fn register(catalog: &mut Catalog) -> Result<(), RegisterError> {
    catalog.register::<CausalLmConfig>()?.register::<MultipleChoiceConfig>()?;
    catalog.register::<SequenceClassificationConfig>()?.register::<TokenClassificationConfig>()?;
    catalog.register::<VerbalizerConfig>()?;
    catalog.register::<DeepPtuneConfig>()?.register::<Ia3Config>()?.register::<LoraConfig>()?;
    catalog.register::<PTuningConfig>()?.register::<PrefixKvConfig>()?.register::<PtuneConfig>()?;
    catalog.register::<AdafactorConfig>()?.register::<AdamConfig>()?.register::<AdamWConfig>()?;
    catalog.register::<LionConfig>()?.register::<SgdConfig>()?;
    catalog.register::<ConstantConfig>()?.register::<CosineConfig>()?.register::<CosineWithRestartsConfig>()?;
    catalog.register::<InverseSqrtConfig>()?.register::<LinearConfig>()?.register::<PolynomialConfig>()?;
    catalog.register::<ReduceOnPlateauConfig>()?.register::<WarmupStableDecayConfig>()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn examples_are_accepted_and_unknown_keys_refused() {
        let mut catalog = Catalog::new();
        register(&mut catalog).expect("names are free");
        let mut n_entries = 0;
        for entry in sepal_catalog::PluginKind::ALL.into_iter().flat_map(|kind| catalog.entries(kind)) {
            n_entries += 1;
            let resolved = entry.resolve(entry.example.clone()).expect("an example is accepted");
            assert_eq!(resolved, entry.example, "{}", entry.name);
            assert_eq!(entry.check(entry.example.clone()).expect("options"), [], "{}", entry.name);
            assert!(entry.resolve(json!({ "no_such_option": 1 })).is_err(), "{}", entry.name);
            assert!(!entry.summary.is_empty(), "{}", entry.name);
        }
        assert_eq!(n_entries, 24);
        assert!(register(&mut catalog).is_err(), "the names are taken");
    }
}
