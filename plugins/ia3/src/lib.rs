//! Tuning mode `ia3`: factors of the outputs and inputs of linear layers of the frozen blocks (Liu et al., arXiv
//! 2205.05638).
//!
//! Every output of a tuned layer is multiplied by a factor; of the last layer of an MLP, every input is, as in PEFT's
//! `feedforward_modules`. The blocks compute the products; this crate does not, and it does not know the model.
//!
//! Invariants: it adds a parameter for each site, `scale_output:SITE [n_blocks, outputs]` or `scale_input:SITE [n_blocks,
//! inputs]`; initial factors are one, so that the first step sees the unchanged model.
//!
//! ```
//! use sepal_ia3::Ia3;
//! use sepal_plugin::{PluginKind, Registry, Tuning};
//! use serde_json::json;
//!
//! let mut registry = Registry::new();
//! registry.register::<Tuning, Ia3>()?;
//! let options = registry.catalog().resolve(PluginKind::Tuning, "ia3", json!({ "targets": ["k_proj", "v_proj"] }))?;
//! assert_eq!(options["init"], json!("ones"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::path::Path;

use sepal_options::TuningOptions;
use sepal_plugin::{
    BuildError, Options, Plugin, Tunable, Tuning, TuningContext, TuningError, TuningMode, saved_tensor,
};
use tch::{Device, Kind, Tensor};

pub use sepal_options::{Ia3Config, Ia3Init};

/// Factors of the outputs and inputs of linear layers.
#[derive(Debug)]
pub struct Ia3 {
    factors: Vec<(String, Tensor)>, // [n_blocks, outputs] or [n_blocks, inputs]
    config: Ia3Config,
}

impl Plugin<Tuning> for Ia3 {
    const NAME: &'static str = Ia3Config::NAME;
    type Config = Ia3Config;

    fn example() -> Ia3Config {
        Ia3Config::example()
    }

    fn build(config: Ia3Config, cx: &mut TuningContext<'_>) -> Result<Box<dyn TuningMode>, BuildError> {
        let mut factors = Vec::new();
        for factor in config.factors(cx.n_blocks, cx.sites)? {
            let (name, shape) = (factor.name.as_str(), factor.signed_shape());
            let init = match &config.init {
                Ia3Init::Ones => Tensor::f_ones(shape, (Kind::Float, Device::Cpu))?,
                Ia3Init::Adapter(path) => saved_tensor("init", path, name, &shape, cx)?,
            };
            let tensor = cx.params.add(name, &init)?;
            factors.push((factor.name, tensor));
        }
        Ok(Box::new(Self { factors, config }))
    }
}

impl TuningMode for Ia3 {
    fn prefix(&self) -> Result<Option<Tensor>, TuningError> {
        Ok(None)
    }

    fn tunables(&self) -> Result<Vec<Tunable>, TuningError> {
        Ok(self.factors.iter().map(|(name, tensor)| Tunable::new(name.clone(), tensor.shallow_clone())).collect())
    }

    fn pre_seq_len(&self) -> usize {
        0
    }

    fn starts_as(&self) -> Option<&Path> {
        self.config.adapter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sepal_nn::Parameters;
    use sepal_plugin::{LinearSite, SiteRole};
    use sepal_testkit::contract;
    use serde_json::json;

    use super::*;

    fn try_build(
        sites: &[LinearSite],
        options: serde_json::Value,
    ) -> Result<(Parameters, Box<dyn TuningMode>), BuildError> {
        contract::build_tuning_of_sites::<Ia3>(serde_json::from_value(options).expect("options"), sites)
    }

    fn llama() -> [LinearSite; 5] {
        [
            LinearSite::new("self_attn.q_proj", 4, 4, SiteRole::Query),
            LinearSite::new("self_attn.k_proj", 2, 4, SiteRole::Key),
            LinearSite::new("self_attn.v_proj", 2, 4, SiteRole::Value),
            LinearSite::new("mlp.up_proj", 12, 4, SiteRole::MlpInput),
            LinearSite::new("mlp.down_proj", 4, 12, SiteRole::MlpOutput),
        ]
    }

    /// Asserts the names and sizes of the tunables.
    fn check(sites: &[LinearSite], options: serde_json::Value, expected: &[(&str, i64)]) {
        let (params, mode) = try_build(sites, options).expect("built");
        let tunables = mode.tunables().expect("tunables");
        let found: Vec<(&str, i64)> = tunables.iter().map(|t| (t.name.as_str(), t.tensor.size()[1])).collect();
        assert_eq!(found, expected);
        for Tunable { name, first_block, tensor } in &tunables {
            assert_eq!((*first_block, tensor.size()[0]), (0, 5), "{name}");
            assert_eq!(*tensor, tensor.ones_like(), "{name}");
            assert_eq!(tensor, params.get(name).expect("a parameter of the same name"), "{name}");
        }
        assert_eq!(params.len(), tunables.len());
    }

    #[test]
    fn contract_holds() {
        contract::check_tuning::<Ia3>();
    }

    #[test]
    fn default_targets_are_keys_values_and_the_input_of_the_last_layer() {
        let expected = [
            ("scale_output:self_attn.k_proj", 2),
            ("scale_output:self_attn.v_proj", 2),
            ("scale_input:mlp.down_proj", 12),
        ];
        check(&llama(), json!({}), &expected);
        let gpt2 = [
            LinearSite::new("attn.c_attn", 12, 4, SiteRole::QueryKeyValue),
            LinearSite::new("attn.c_proj", 4, 4, SiteRole::AttentionOutput),
            LinearSite::new("mlp.c_proj", 4, 16, SiteRole::MlpOutput),
        ];
        check(&gpt2, json!({}), &[("scale_output:attn.c_attn", 12), ("scale_input:mlp.c_proj", 16)]);
        check(
            &gpt2,
            json!({ "targets": ["c_proj"] }),
            &[("scale_output:attn.c_proj", 4), ("scale_input:mlp.c_proj", 16)],
        );
    }

    #[test]
    fn targets_without_layers_are_refused() {
        let error = try_build(&llama(), json!({ "targets": ["w2"] })).err().expect("no layer").to_string();
        assert!(error.starts_with("use option `targets`: `w2` matches no linear layer"), "{error}");
        let error = try_build(&llama()[..1], json!({})).err().expect("no layer").to_string();
        assert_eq!(error, "use option `targets`: name at least one of the layers self_attn.q_proj");
    }

    #[test]
    fn adapter_init_sets_the_factors() {
        let folder = tempfile::tempdir().expect("a folder");
        let (saved, _) = try_build(&llama(), json!({})).expect("built");
        for (_, tensor) in saved.iter() {
            drop(tch::no_grad(|| tensor.shallow_clone().uniform_(0.5, 1.5)));
        }
        saved.save(&folder.path().join("adapter.safetensors"), &BTreeMap::new()).expect("saved");
        let options = json!({ "init": { "adapter": folder.path() } });
        let (params, mode) = try_build(&llama(), options).expect("built");
        assert_eq!(params.digest().expect("read"), saved.digest().expect("read"));
        assert_eq!(mode.starts_as(), Some(folder.path()));
    }
}
