//! Trained tensors of the shipped heads and tuning modes: names and shapes, from options and the shape of a model.
//!
//! The plugins build their tensors of these shapes, and a plan counts them without libtorch.

use std::error::Error;
use std::path::Path;

use sepal_catalog::{Entry, Options, parse, schema_of};
use sepal_core::{LinearSite, Task, TrainedTensor};
use serde_json::Value;

use crate::{
    CausalLmConfig, DeepPtuneConfig, Ia3Config, LoraConfig, MultipleChoiceConfig, PTuningConfig, PrefixKvConfig,
    PtuneConfig, SequenceClassificationConfig, TokenClassificationConfig, VerbalizerConfig,
};

/// Function from a text to its token ids, without special tokens.
pub type Tokenize<'a> = dyn Fn(&str) -> Result<Vec<i64>, Box<dyn Error + Send + Sync>> + 'a;

/// Option that does not fit the model or the task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("use option `{key}`: {message}")]
pub struct OptionError {
    pub key: &'static str,
    pub message: String,
}

/// Sizes of a model that trained tensors depend on.
#[derive(Debug, Clone, Copy)]
pub struct ModelShape<'a> {
    /// Number of blocks.
    pub n_blocks: usize,
    /// Size of a hidden state.
    pub hidden: usize,
    /// Size of one position's keys in a block, over all heads.
    pub kv_size: usize,
    /// Linear layers of each block that adapters can change.
    pub sites: &'a [LinearSite],
}

/// Options of a task head.
pub trait HeadOptions {
    /// Returns the description of the task.
    ///
    /// # Errors
    /// [`OptionError`] if the labels describe none.
    fn task(&self) -> Result<Task, OptionError>;

    /// Returns the tensors that the head trains for hidden states of size `hidden`.
    fn tensors(&self, hidden: usize) -> Vec<TrainedTensor>;

    /// Checks the words that stand for labels.
    ///
    /// # Errors
    /// [`OptionError`] if one is not a single token, or stands for two labels.
    fn check_words(&self, tokenize: &Tokenize<'_>) -> Result<(), OptionError> {
        let _ = tokenize;
        Ok(())
    }
}

/// Options of a tuning mode.
pub trait TuningOptions {
    /// Returns the tensors that the mode trains. Tunables have the names and shapes of parameters.
    ///
    /// # Errors
    /// [`OptionError`] if the model does not have the named layers, or they are too small.
    fn tensors(&self, model: &ModelShape<'_>) -> Result<Vec<TrainedTensor>, OptionError>;

    /// Number of positions before each row.
    fn pre_seq_len(&self) -> usize;

    /// Adapter that initial values are read from.
    fn adapter(&self) -> Option<&Path>;

    /// Checks the texts that initial values are made of.
    ///
    /// # Errors
    /// [`OptionError`] if a text has no tokens, or there are more classes than prompts.
    fn check_words(&self, labels: &[String], tokenize: &Tokenize<'_>) -> Result<(), OptionError> {
        let _ = (labels, tokenize);
        Ok(())
    }
}

type ReadHead = fn(&Entry, &Value) -> Option<Box<dyn HeadOptions>>;
type ReadTuning = fn(&Entry, &Value) -> Option<Box<dyn TuningOptions>>;

/// Reads the options of a shipped head; `None` if `entry` describes another plugin.
pub fn head_options(entry: &Entry, options: &Value) -> Option<Box<dyn HeadOptions>> {
    fn boxed<C: Options + HeadOptions>(entry: &Entry, options: &Value) -> Option<Box<dyn HeadOptions>> {
        Some(Box::new(read::<C>(entry, options)?))
    }
    let readers: [ReadHead; 5] = [
        boxed::<CausalLmConfig>,
        boxed::<MultipleChoiceConfig>,
        boxed::<SequenceClassificationConfig>,
        boxed::<TokenClassificationConfig>,
        boxed::<VerbalizerConfig>,
    ];
    readers.iter().find_map(|read| read(entry, options))
}

/// Reads the options of a shipped tuning mode; `None` if `entry` describes another plugin.
pub fn tuning_options(entry: &Entry, options: &Value) -> Option<Box<dyn TuningOptions>> {
    fn boxed<C: Options + TuningOptions>(entry: &Entry, options: &Value) -> Option<Box<dyn TuningOptions>> {
        Some(Box::new(read::<C>(entry, options)?))
    }
    let readers: [ReadTuning; 6] = [
        boxed::<DeepPtuneConfig>,
        boxed::<Ia3Config>,
        boxed::<LoraConfig>,
        boxed::<PTuningConfig>,
        boxed::<PrefixKvConfig>,
        boxed::<PtuneConfig>,
    ];
    readers.iter().find_map(|read| read(entry, options))
}

/// Options of the plugin that `C` describes. A plugin of another program may have its name, with other options.
fn read<C: Options>(entry: &Entry, options: &Value) -> Option<C> {
    let is_this = entry.name == C::NAME && entry.schema == schema_of::<C>();
    is_this.then(|| parse(options.clone()).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use sepal_catalog::{Catalog, PluginKind};

    use super::*;

    #[test]
    fn every_shipped_head_and_tuning_mode_is_read() {
        let mut catalog = Catalog::new();
        crate::register(&mut catalog).expect("names are free");
        let sites = [
            LinearSite::new("self_attn.q_proj", 32, 32, sepal_core::SiteRole::Query),
            LinearSite::new("self_attn.k_proj", 16, 32, sepal_core::SiteRole::Key),
        ];
        let model = ModelShape { n_blocks: 3, hidden: 32, kv_size: 16, sites: &sites };
        for entry in catalog.entries(PluginKind::Head) {
            let head = head_options(entry, &entry.example).unwrap_or_else(|| panic!("{}", entry.name));
            assert!(head.task().is_ok(), "{}", entry.name);
            assert!(tuning_options(entry, &entry.example).is_none());
        }
        for entry in catalog.entries(PluginKind::Tuning) {
            let mode = tuning_options(entry, &entry.example).unwrap_or_else(|| panic!("{}", entry.name));
            assert!(!mode.tensors(&model).expect("tensors").is_empty(), "{}", entry.name);
        }
    }

    #[test]
    fn plugin_of_the_same_name_with_other_options_is_not_read() {
        let example = LoraConfig::default();
        let entry = Entry::new("ptune", &example, |_: &LoraConfig| Vec::new()).expect("an entry");
        assert!(tuning_options(&entry, &entry.example).is_none());
    }
}
