//! Tuning mode `prefix-tuning`: the keys and values of a prefix, `prefix_keys_values [n_blocks, pre_seq_len, 2 *
//! kv_size]`, which every row attends to in every block.
//!
//! The blocks inject the keys and values; this crate does not, and it does not know the model.
//!
//! Invariants: it adds one parameter, `prefix_keys_values`; a span gets the part for its blocks; the prefix itself is a
//! placeholder for the positions and is not trained.
//!
//! ```
//! use sepal_plugin::{Registry, Tuning};
//! use sepal_prefix_tuning::PrefixTuning;
//!
//! let mut registry = Registry::new();
//! registry.register::<Tuning, PrefixTuning>()?;
//! assert_eq!(registry.catalog().entries(sepal_plugin::PluginKind::Tuning).next().map(|entry| entry.name), Some("prefix-tuning"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use sepal_core::{PREFIX_KEYS_VALUES, Span};
use sepal_nn::init::{normal, rng};
use sepal_plugin::{BuildError, NamedTensor, Plugin, Tuning, TuningContext, TuningError, TuningMode, saved_tensor};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Trains independent keys and values of a prefix in every block, like PEFT's PREFIX_TUNING.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PrefixTuningConfig {
    /// Number of positions of the prefix.
    pub pre_seq_len: NonZeroUsize,
    /// Initial keys and values.
    pub init: PrefixInit,
}

impl Default for PrefixTuningConfig {
    /// 16 positions with small random values.
    fn default() -> Self {
        Self { pre_seq_len: NonZeroUsize::MIN.saturating_add(15), init: PrefixInit::Normal }
    }
}

/// Initialisation of the keys and values of a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PrefixInit {
    /// Drawn from N(0, `initializer_range`²).
    Normal,
    /// Keys and values of an earlier run with the same number of positions and a model of the same shape. A task with
    /// the same labels also starts with its head.
    Adapter(
        /// Folder of the run, or its `adapter.safetensors`.
        #[schemars(with = "String")]
        PathBuf,
    ),
}

/// Keys and values of a prefix in every block (Li and Liang, arXiv 2101.00190).
#[derive(Debug)]
pub struct PrefixTuning {
    keys_values: Tensor, // [n_blocks, pre_seq_len, 2 * kv_size]
    places: Tensor,      // [pre_seq_len, hidden]
    config: PrefixTuningConfig,
    n_blocks: usize,
}

impl Plugin<Tuning> for PrefixTuning {
    const NAME: &'static str = "prefix-tuning";
    type Config = PrefixTuningConfig;

    fn example() -> PrefixTuningConfig {
        PrefixTuningConfig::default()
    }

    fn build(config: PrefixTuningConfig, cx: &mut TuningContext<'_>) -> Result<Box<dyn TuningMode>, BuildError> {
        let pre_seq_len = config.pre_seq_len.get() as i64;
        let shape = [cx.n_blocks as i64, pre_seq_len, 2 * cx.kv_size as i64];
        let init = match &config.init {
            PrefixInit::Normal => normal(&shape, cx.initializer_range, &mut rng(cx.seed, PREFIX_KEYS_VALUES))?,
            PrefixInit::Adapter(path) => saved_tensor("init", path, PREFIX_KEYS_VALUES, &shape, cx)?,
        };
        let places = Tensor::f_zeros([pre_seq_len, cx.hidden as i64], (Kind::Float, Device::Cpu))?;
        Ok(Box::new(Self {
            keys_values: cx.params.add(PREFIX_KEYS_VALUES, &init)?,
            places,
            config,
            n_blocks: cx.n_blocks,
        }))
    }
}

impl TuningMode for PrefixTuning {
    fn prefix(&self) -> Result<Option<Tensor>, TuningError> {
        Ok(Some(self.places.shallow_clone()))
    }

    fn tunables(&self, span: Span) -> Result<Vec<NamedTensor>, TuningError> {
        if span.end() > self.n_blocks {
            return Err(TuningError::Span { span, n_blocks: self.n_blocks });
        }
        let tensor = self.keys_values.f_narrow(0, span.start() as i64, span.len() as i64)?; // [span, pre_seq_len, ..]
        Ok(vec![NamedTensor { name: PREFIX_KEYS_VALUES.to_owned(), tensor }])
    }

    fn pre_seq_len(&self) -> usize {
        self.config.pre_seq_len.get()
    }

    fn starts_as(&self) -> Option<&Path> {
        match &self.config.init {
            PrefixInit::Adapter(path) => Some(path),
            PrefixInit::Normal => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sepal_nn::Parameters;
    use sepal_testkit::contract;

    use super::*;

    fn try_build(init: PrefixInit) -> Result<(Parameters, Box<dyn TuningMode>), BuildError> {
        let pre_seq_len = NonZeroUsize::MIN.saturating_add(1);
        contract::build_tuning::<PrefixTuning>(PrefixTuningConfig { pre_seq_len, init })
    }

    #[test]
    fn contract_holds() {
        contract::check_tuning::<PrefixTuning>();
    }

    #[test]
    fn tunables_of_span_are_those_of_its_blocks() {
        let (params, mode) = try_build(PrefixInit::Normal).expect("built");
        let all = params.get(PREFIX_KEYS_VALUES).expect("added");
        assert_eq!((all.size(), params.len()), (vec![5, 2, 6], 1));
        let spread = all.detach().std(true).double_value(&[]);
        assert!((0.35..0.65).contains(&spread), "{spread} does not fit N(0, 0.5²)");
        let given = mode.tunables("1:3".parse().expect("a span")).expect("given");
        assert_eq!(given[0].tensor, all.narrow(0, 1, 2));
        let places = mode.prefix().expect("computed").expect("there is one");
        assert!(places.size() == [2, 4] && !places.requires_grad());
        let error = mode.tunables("3:6".parse().expect("a span")).expect_err("there are five blocks");
        assert_eq!(error.to_string(), "tune blocks 3:6 of a model with 5 blocks");
    }

    #[test]
    fn adapter_init_takes_file_or_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("adapter.safetensors");
        let (saved, _) = try_build(PrefixInit::Normal).expect("built");
        saved.save(&path, &BTreeMap::new()).expect("saved");
        for named in [path.as_path(), folder.path()] {
            let (params, mode) = try_build(PrefixInit::Adapter(named.to_owned())).expect("built");
            assert_eq!(params.digest().expect("read"), saved.digest().expect("read"));
            assert_eq!(mode.starts_as(), Some(named));
        }
    }
}
