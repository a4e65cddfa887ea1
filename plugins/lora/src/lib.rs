//! Tuning mode `lora`: low-rank additions to linear layers of the frozen blocks (Hu et al., arXiv 2106.09685).
//!
//! A tuned layer `W [outputs, inputs]` computes `(W + scaling * B A) x` with `A [r, inputs]` and `B [outputs, r]`, as PEFT's
//! LORA does. The blocks compute the additions; this crate does not, and it does not know the model. There is no dropout,
//! because it acts on inputs that only the blocks have.
//!
//! Invariants: it adds the parameters `lora_A:SITE [blocks, r, inputs]` and `lora_B:SITE [blocks, outputs, r]` for each site,
//! in PEFT's shapes and without the scaling; initial additions are zero, so that the first step sees the unchanged model.
//!
//! ```
//! use sepal_lora::Lora;
//! use sepal_plugin::{PluginKind, Registry, Tuning};
//! use serde_json::json;
//!
//! let mut registry = Registry::new();
//! registry.register::<Tuning, Lora>()?;
//! let options = registry.catalog().resolve(PluginKind::Tuning, "lora", json!({ "r": 4, "targets": "all-linear" }))?;
//! assert_eq!((&options["r"], &options["alpha"], &options["blocks"]), (&json!(4), &json!(16.0), &json!("all")));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::path::Path;

use sepal_nn::init::{rng, uniform};
use sepal_options::{LoraFactors, TuningOptions};
use sepal_plugin::{
    BuildError, Options, Plugin, Tunable, TunableName, Tuning, TuningContext, TuningError, TuningMode, saved_tensor,
};
use tch::{Device, Kind, Tensor};

pub use sepal_options::{LoraConfig, LoraInit, TunedBlocks};

/// Low-rank additions to linear layers.
#[derive(Debug)]
pub struct Lora {
    factors: Vec<Factors>,
    first_block: usize,
    config: LoraConfig,
}

/// Factors of the additions to one layer of each block.
#[derive(Debug)]
struct Factors {
    site: String,
    a: Tensor, // [blocks, r, inputs]
    b: Tensor, // [blocks, outputs, r], without the scaling
}

impl Plugin<Tuning> for Lora {
    const NAME: &'static str = LoraConfig::NAME;
    type Config = LoraConfig;

    fn example() -> LoraConfig {
        LoraConfig::example()
    }

    fn build(config: LoraConfig, cx: &mut TuningContext<'_>) -> Result<Box<dyn TuningMode>, BuildError> {
        let first_block = config.first_block(cx.n_blocks)?;
        let shapes = config.factors(cx.n_blocks, cx.sites)?;
        let factors = shapes.into_iter().map(|shape| Factors::new(shape, &config, cx));
        let factors = factors.collect::<Result<Vec<_>, BuildError>>()?;
        Ok(Box::new(Self { factors, first_block, config }))
    }
}

impl Factors {
    fn new(shape: LoraFactors, config: &LoraConfig, cx: &mut TuningContext<'_>) -> Result<Self, BuildError> {
        let LoraFactors { site, inputs, a, b } = shape;
        let (shape_a, shape_b) = (a.signed_shape(), b.signed_shape());
        let (initial_a, initial_b) = match &config.init {
            LoraInit::KaimingUniform => (
                uniform(&shape_a, 1.0 / (inputs as f64).sqrt(), &mut rng(cx.seed, &a.name))?,
                Tensor::f_zeros(shape_b, (Kind::Float, Device::Cpu))?,
            ),
            LoraInit::Adapter(path) => {
                (saved_tensor("init", path, &a.name, &shape_a, cx)?, saved_tensor("init", path, &b.name, &shape_b, cx)?)
            }
        };
        Ok(Self { site, a: cx.params.add(a.name, &initial_a)?, b: cx.params.add(b.name, &initial_b)? })
    }
}

impl TuningMode for Lora {
    fn prefix(&self) -> Result<Option<Tensor>, TuningError> {
        Ok(None)
    }

    fn tunables(&self) -> Result<Vec<Tunable>, TuningError> {
        let tunable = |name: TunableName, tensor: Tensor| Tunable {
            name: name.to_string(),
            first_block: self.first_block,
            tensor,
        };
        let mut tunables = Vec::with_capacity(2 * self.factors.len());
        for Factors { site, a, b } in &self.factors {
            let scaled = b.f_mul_scalar(self.config.scaling())?; // [blocks, outputs, r]
            tunables.push(tunable(TunableName::LoraA(site.clone()), a.shallow_clone()));
            tunables.push(tunable(TunableName::LoraB(site.clone()), scaled));
        }
        Ok(tunables)
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

    fn try_build(options: serde_json::Value) -> Result<(Parameters, Box<dyn TuningMode>), BuildError> {
        let sites = [
            LinearSite::new("self_attn.q_proj", 8, 4, SiteRole::Query),
            LinearSite::new("self_attn.k_proj", 2, 4, SiteRole::Key),
            LinearSite::new("self_attn.v_proj", 6, 4, SiteRole::Value),
            LinearSite::new("mlp.down_proj", 4, 12, SiteRole::MlpOutput),
        ];
        let config = serde_json::from_value(options).expect("options");
        contract::build_tuning_of_sites::<Lora>(config, &sites)
    }

    fn built(options: serde_json::Value) -> (Parameters, Box<dyn TuningMode>) {
        try_build(options).expect("built")
    }

    fn refusal(options: serde_json::Value) -> String {
        try_build(options).err().expect("it does not fit").to_string()
    }

    fn names(params: &Parameters) -> Vec<&str> {
        params.iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn contract_holds() {
        contract::check_tuning::<Lora>();
    }

    #[test]
    fn default_targets_are_queries_and_values() {
        let (params, mode) = built(json!({ "r": 2 }));
        let (q, v) = ("self_attn.q_proj", "self_attn.v_proj");
        let expected = [q, v].map(|site| [format!("lora_A:{site}"), format!("lora_B:{site}")]).concat();
        assert_eq!(names(&params), expected);
        let size = |name: &str| params.get(name).expect("added").size();
        assert_eq!((size("lora_A:self_attn.q_proj"), size("lora_B:self_attn.q_proj")), (vec![5, 2, 4], vec![5, 8, 2]));
        assert_eq!(size("lora_B:self_attn.v_proj"), [5, 6, 2]);
        let tunables = mode.tunables().expect("tunables");
        assert_eq!(tunables.iter().map(|tunable| tunable.name.as_str()).collect::<Vec<_>>(), expected);
        assert!(tunables.iter().all(|tunable| tunable.first_block == 0));
        assert!(mode.prefix().expect("computed").is_none() && mode.starts_as().is_none());
        assert_eq!(names(&built(json!({ "r": 2, "targets": ["k_proj"] })).0).len(), 2);
        assert_eq!(names(&built(json!({ "r": 2, "targets": "all-linear" })).0).len(), 8);
    }

    #[test]
    fn initial_a_is_uniform_and_initial_b_is_zero() {
        let (params, _) = built(json!({ "r": 2, "targets": ["down_proj"] }));
        let a = params.get("lora_A:mlp.down_proj").expect("added").detach();
        let bound = 1.0 / 12.0_f64.sqrt();
        let largest = a.abs().max().double_value(&[]);
        assert!(largest <= bound && largest > 0.9 * bound, "{largest} does not fit U(-{bound}, {bound})");
        assert_eq!(params.get("lora_B:mlp.down_proj").expect("added").abs().max().double_value(&[]), 0.0);
        let (more, _) = built(json!({ "r": 2, "targets": "all-linear" }));
        assert_eq!(more.get("lora_A:mlp.down_proj").expect("added").detach(), a, "other layers do not shift it");
    }

    #[test]
    fn tunables_hold_the_scaling() {
        for (options, scaling) in [
            (json!({ "r": 2 }), 8.0),
            (json!({ "r": 4, "alpha": 2.0 }), 0.5),
            (json!({ "r": 4, "alpha": 2.0, "rslora": true }), 1.0),
        ] {
            let (params, mode) = built(options.clone());
            let b = params.get("lora_B:self_attn.q_proj").expect("added");
            drop(tch::no_grad(|| b.shallow_clone().fill_(3.0)));
            let tunables = mode.tunables().expect("tunables");
            assert_eq!(tunables[0].tensor, *params.get("lora_A:self_attn.q_proj").expect("added"), "{options}");
            assert_eq!(tunables[1].tensor.detach(), b.detach() * scaling, "{options}");
            tunables[1].tensor.sum(Kind::Float).backward();
            assert_eq!(b.grad().max().double_value(&[]), scaling, "{options}");
        }
    }

    #[test]
    fn last_blocks_are_numbered_from_the_first_of_them() {
        let (params, mode) = built(json!({ "r": 2, "blocks": { "last": 2 } }));
        assert_eq!(params.get("lora_A:self_attn.q_proj").expect("added").size(), [2, 2, 4]);
        assert!(mode.tunables().expect("tunables").iter().all(|tunable| tunable.first_block == 3));
        let expected = "use option `blocks`: the model has 5 blocks, not 6";
        assert_eq!(refusal(json!({ "r": 2, "blocks": { "last": 6 } })), expected);
    }

    #[test]
    fn adapter_init_sets_both_factors() {
        let folder = tempfile::tempdir().expect("a folder");
        let (saved, _) = built(json!({ "r": 2 }));
        for (_, tensor) in saved.iter() {
            drop(tch::no_grad(|| tensor.shallow_clone().uniform_(-1.0, 1.0)));
        }
        saved.save(&folder.path().join("adapter.safetensors"), &BTreeMap::new()).expect("saved");
        let adapter = json!({ "adapter": folder.path() });
        let (params, mode) = built(json!({ "r": 2, "init": adapter }));
        assert_eq!(params.digest().expect("read"), saved.digest().expect("read"));
        assert_eq!(mode.starts_as(), Some(folder.path()));
        let text = refusal(json!({ "r": 4, "init": adapter }));
        assert!(text.starts_with("use option `init`: expected `lora_A:self_attn.q_proj` of shape [5, 4, 4]"), "{text}");
    }

    #[test]
    fn rank_larger_than_a_layer_is_refused() {
        let (site, sizes) = ("`self_attn.k_proj`", "2 outputs and 4 inputs");
        let expected = format!("use option `r`: rank 3 is larger than {site}, which has {sizes}; use at most 2");
        assert_eq!(refusal(json!({ "r": 3, "targets": "all-linear" })), expected);
        assert!(try_build(json!({ "r": 2, "targets": "all-linear" })).is_ok());
    }

    #[test]
    fn targets_without_layers_are_refused() {
        // Layers of Mixtral's experts take no adapters.
        let text = refusal(json!({ "r": 2, "targets": ["q_proj", "w1"] }));
        let expected = "use option `targets`: `w1` matches no linear layer that adapters can change; there are \
                        self_attn.q_proj, self_attn.k_proj, self_attn.v_proj, mlp.down_proj";
        assert_eq!(text, expected);
        assert!(refusal(json!({ "r": 2, "targets": [] })).starts_with("use option `targets`: name at least one"));
    }
}
