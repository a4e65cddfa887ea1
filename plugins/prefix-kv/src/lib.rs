//! Tuning mode `prefix-kv`: the keys and values of a prefix, `prefix_keys_values [n_blocks, pre_seq_len, 2 * kv_size]`,
//! which every row attends to in every block. Its earlier name `prefix-tuning` is an alias.
//!
//! The blocks inject the keys and values; this crate does not, and it does not know the model.
//!
//! Invariants: it adds one parameter, `prefix_keys_values`; the prefix itself is a placeholder for the positions and is
//! not trained. A text as initial prefix is not an option, because only the blocks can compute its keys and values.
//!
//! ```
//! use sepal_plugin::{Registry, Tuning};
//! use sepal_prefix_kv::PrefixKv;
//!
//! let mut registry = Registry::new();
//! registry.register::<Tuning, PrefixKv>()?;
//! assert_eq!(registry.catalog().entries(sepal_plugin::PluginKind::Tuning).next().map(|entry| entry.name), Some("prefix-kv"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::path::Path;

use sepal_core::PREFIX_KEYS_VALUES;
use sepal_nn::init::{normal, rng};
use sepal_options::TuningOptions;
use sepal_plugin::{
    BuildError, Options, Plugin, Tunable, Tuning, TuningContext, TuningError, TuningMode, saved_tensor,
};
use tch::{Device, Kind, Tensor};

pub use sepal_options::{PrefixInit, PrefixKvConfig};

/// Keys and values of a prefix in every block (Li and Liang, arXiv 2101.00190).
#[derive(Debug)]
pub struct PrefixKv {
    keys_values: Tensor, // [n_blocks, pre_seq_len, 2 * kv_size]
    places: Tensor,      // [pre_seq_len, hidden]
    config: PrefixKvConfig,
}

impl Plugin<Tuning> for PrefixKv {
    const NAME: &'static str = PrefixKvConfig::NAME;
    const ALIASES: &'static [&'static str] = PrefixKvConfig::ALIASES;
    type Config = PrefixKvConfig;

    fn example() -> PrefixKvConfig {
        PrefixKvConfig::example()
    }

    fn build(config: PrefixKvConfig, cx: &mut TuningContext<'_>) -> Result<Box<dyn TuningMode>, BuildError> {
        let pre_seq_len = config.pre_seq_len.get() as i64;
        let shape = config.keys_values(cx.n_blocks, cx.kv_size).signed_shape();
        let init = match &config.init {
            PrefixInit::Zero => Tensor::f_zeros(shape.as_slice(), (Kind::Float, Device::Cpu))?,
            PrefixInit::Normal => normal(&shape, cx.initializer_range, &mut rng(cx.seed, PREFIX_KEYS_VALUES))?,
            PrefixInit::Adapter(path) => saved_tensor("init", path, PREFIX_KEYS_VALUES, &shape, cx)?,
        };
        let places = Tensor::f_zeros([pre_seq_len, cx.hidden as i64], (Kind::Float, Device::Cpu))?;
        Ok(Box::new(Self { keys_values: cx.params.add(PREFIX_KEYS_VALUES, &init)?, places, config }))
    }
}

impl TuningMode for PrefixKv {
    fn prefix(&self) -> Result<Option<Tensor>, TuningError> {
        Ok(Some(self.places.shallow_clone()))
    }

    fn tunables(&self) -> Result<Vec<Tunable>, TuningError> {
        Ok(vec![Tunable::new(PREFIX_KEYS_VALUES, self.keys_values.shallow_clone())])
    }

    fn pre_seq_len(&self) -> usize {
        self.config.pre_seq_len.get()
    }

    fn starts_as(&self) -> Option<&Path> {
        self.config.adapter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroUsize;

    use sepal_nn::Parameters;
    use sepal_plugin::{PluginKind, Registry};
    use sepal_testkit::contract;

    use super::*;

    fn try_build(init: PrefixInit) -> Result<(Parameters, Box<dyn TuningMode>), BuildError> {
        let pre_seq_len = NonZeroUsize::MIN.saturating_add(1);
        contract::build_tuning::<PrefixKv>(PrefixKvConfig { pre_seq_len, init })
    }

    #[test]
    fn contract_holds() {
        contract::check_tuning::<PrefixKv>();
    }

    #[test]
    fn keys_and_values_are_the_parameter_of_all_blocks() {
        let (params, mode) = try_build(PrefixInit::Normal).expect("built");
        let all = params.get(PREFIX_KEYS_VALUES).expect("added");
        assert_eq!((all.size(), params.len()), (vec![5, 2, 6], 1));
        let spread = all.detach().std(true).double_value(&[]);
        assert!((0.35..0.65).contains(&spread), "{spread} does not fit N(0, 0.5²)");
        let tunables = mode.tunables().expect("tunables");
        assert_eq!((tunables.len(), tunables[0].name.as_str(), tunables[0].first_block), (1, PREFIX_KEYS_VALUES, 0));
        assert_eq!(tunables[0].tensor, *all);
        let places = mode.prefix().expect("computed").expect("there is one");
        assert!(places.size() == [2, 4] && !places.requires_grad());
    }

    #[test]
    fn zero_init_is_zero() {
        let (params, mode) = try_build(PrefixInit::Zero).expect("built");
        let all = params.get(PREFIX_KEYS_VALUES).expect("added");
        assert_eq!(all.detach(), Tensor::zeros([5, 2, 6], (Kind::Float, Device::Cpu)));
        assert!(mode.starts_as().is_none());
    }

    #[test]
    fn earlier_name_builds_the_same_mode() {
        let mut registry = Registry::new();
        registry.register::<Tuning, PrefixKv>().expect("the name is free");
        let catalog = registry.catalog();
        let names: Vec<&str> = catalog.entries(PluginKind::Tuning).map(|entry| entry.name).collect();
        assert_eq!(names, ["prefix-kv"], "an alias is not listed");
        let options = |name| catalog.resolve(PluginKind::Tuning, name, serde_json::Value::Null).expect("options");
        assert_eq!(options("prefix-tuning"), options("prefix-kv"));
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
