//! Tuning mode `p-tuning`: soft prompts before every row that a small network computes (Liu et al., arXiv 2103.10385).
//!
//! The network and its trained inputs are those of PEFT's P_TUNING: an MLP, or a bidirectional LSTM and an MLP. This crate
//! trains nothing inside the blocks and does not know the model.
//!
//! Invariants: all parameters begin with `p_tuning.`, followed by their names in PEFT's prompt encoder; blocks have no
//! tunables; after training, the prompts alone are enough for predictions.
//!
//! ```
//! use sepal_p_tuning::PTuning;
//! use sepal_plugin::{PluginKind, Registry, Tuning};
//! use serde_json::json;
//!
//! let mut registry = Registry::new();
//! registry.register::<Tuning, PTuning>()?;
//! let options = registry.catalog().resolve(PluginKind::Tuning, "p-tuning", json!({ "encoder": "lstm" }))?;
//! assert_eq!((&options["pre_seq_len"], &options["hidden"]), (&json!(16), &json!(null)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod encoder;

use std::path::Path;

use sepal_plugin::{BuildError, Options, Plugin, Tunable, Tuning, TuningContext, TuningError, TuningMode};
use tch::Tensor;

pub use sepal_options::{EncoderKind, PTuningConfig, PTuningInit};

use crate::encoder::Encoder;

/// Soft prompts from a prompt encoder.
#[derive(Debug)]
pub struct PTuning {
    encoder: Encoder,
    config: PTuningConfig,
}

impl Plugin<Tuning> for PTuning {
    const NAME: &'static str = PTuningConfig::NAME;
    type Config = PTuningConfig;

    fn example() -> PTuningConfig {
        PTuningConfig::example()
    }

    fn build(config: PTuningConfig, cx: &mut TuningContext<'_>) -> Result<Box<dyn TuningMode>, BuildError> {
        let hidden = config.encoder_hidden(cx.hidden);
        let encoder = Encoder::new(&config.encoder_shape(cx.hidden), hidden, config.init.adapter(), cx)?;
        Ok(Box::new(Self { encoder, config }))
    }
}

impl TuningMode for PTuning {
    fn prefix(&self) -> Result<Option<Tensor>, TuningError> {
        Ok(Some(self.encoder.forward()?))
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
    use std::collections::BTreeMap;

    use sepal_nn::{Parameters, file, from_host};
    use sepal_testkit::{contract, tiny};
    use serde_json::json;
    use tch::{Device, Kind};

    use super::*;

    fn try_build(options: serde_json::Value) -> Result<(Parameters, Box<dyn TuningMode>), BuildError> {
        contract::build_tuning::<PTuning>(serde_json::from_value(options).expect("options"))
    }

    fn built(options: serde_json::Value) -> (Parameters, Box<dyn TuningMode>) {
        try_build(options).expect("built")
    }

    fn prompts(mode: &dyn TuningMode) -> Tensor {
        mode.prefix().expect("computed").expect("there are prompts")
    }

    /// Plain PTuning with an LSTM, for the contract.
    struct LstmPTuning;

    impl Plugin<Tuning> for LstmPTuning {
        const NAME: &'static str = "p-tuning-lstm";
        type Config = PTuningConfig;

        fn example() -> PTuningConfig {
            PTuningConfig { encoder: EncoderKind::Lstm, ..PTuningConfig::default() }
        }

        fn build(config: PTuningConfig, cx: &mut TuningContext<'_>) -> Result<Box<dyn TuningMode>, BuildError> {
            PTuning::build(config, cx)
        }
    }

    #[test]
    fn contract_holds() {
        contract::check_tuning::<PTuning>();
        contract::check_tuning::<LstmPTuning>();
    }

    #[test]
    fn parameters_have_the_names_and_shapes_of_peft() {
        let shapes = |options| -> Vec<(String, Vec<i64>)> {
            built(options).0.iter().map(|(name, tensor)| (name.to_owned(), tensor.size())).collect()
        };
        let named = |shapes: &[(&str, &[i64])]| -> Vec<(String, Vec<i64>)> {
            shapes.iter().map(|(name, shape)| (format!("p_tuning.{name}"), shape.to_vec())).collect()
        };
        let mlp: [(&str, &[i64]); 7] = [
            ("embedding.weight", &[5, 4]),
            ("mlp_head.0.weight", &[6, 4]),
            ("mlp_head.0.bias", &[6]),
            ("mlp_head.2.weight", &[6, 6]),
            ("mlp_head.2.bias", &[6]),
            ("mlp_head.4.weight", &[4, 6]),
            ("mlp_head.4.bias", &[4]),
        ];
        assert_eq!(shapes(json!({ "pre_seq_len": 5, "hidden": 6 })), named(&mlp));
        let found = shapes(json!({ "pre_seq_len": 5, "encoder": "lstm" }));
        assert_eq!(found.len(), 1 + 16 + 4);
        let lstm: [(&str, &[i64]); 9] = [
            ("embedding.weight", &[5, 4]),
            ("lstm_head.weight_ih_l0", &[16, 4]),
            ("lstm_head.weight_hh_l0", &[16, 4]),
            ("lstm_head.bias_ih_l0", &[16]),
            ("lstm_head.bias_hh_l0", &[16]),
            ("lstm_head.weight_ih_l0_reverse", &[16, 4]),
            ("lstm_head.weight_hh_l0_reverse", &[16, 4]),
            ("lstm_head.bias_ih_l0_reverse", &[16]),
            ("lstm_head.bias_hh_l0_reverse", &[16]),
        ];
        assert_eq!(found[..9], named(&lstm));
        assert_eq!(found[9], ("p_tuning.lstm_head.weight_ih_l1".to_owned(), vec![16, 8]));
        let last: [(&str, &[i64]); 4] = [
            ("mlp_head.0.weight", &[8, 8]),
            ("mlp_head.0.bias", &[8]),
            ("mlp_head.2.weight", &[4, 8]),
            ("mlp_head.2.bias", &[4]),
        ];
        assert_eq!(found[17..], named(&last));
    }

    /// Asserts that a tensor is that of PEFT, relative to the largest entry.
    fn assert_close(name: &str, found: &Tensor, expected: &Tensor) {
        assert_eq!(found.size(), expected.size(), "{name}");
        let largest = |tensor: &Tensor| tensor.abs().max().double_value(&[]);
        let far = tch::no_grad(|| largest(&(found - expected)) / largest(expected));
        assert!(far < 1e-5, "{name} is off by {far:.2e} of its largest entry");
    }

    #[test]
    fn prompts_and_gradients_equal_those_of_peft() {
        let path = tiny::goldens().join("adapters/p_tuning.safetensors");
        let goldens = file::read(&path).expect("goldens").tensors;
        for encoder in ["mlp", "lstm"] {
            let golden = |name: &str| {
                let name = format!("{encoder}.{name}");
                let found = goldens.iter().find(|named| named.name == name);
                from_host(&found.unwrap_or_else(|| panic!("no `{name}`")).tensor).expect("numbers")
            };
            let mut params = Parameters::new();
            let mut cx = TuningContext {
                params: &mut params,
                n_blocks: 2,
                hidden: 32,
                kv_size: 16,
                sites: &[],
                initializer_range: 0.02,
                embeddings: &Tensor::zeros([20, 32], (Kind::Float, Device::Cpu)),
                tokenize: &|_| Ok(Vec::new()),
                labels: &[],
                is_restored: false,
                seed: 42,
            };
            let options = json!({ "pre_seq_len": 4, "encoder": encoder, "hidden": 8 });
            let mode = PTuning::build(serde_json::from_value(options).expect("options"), &mut cx).expect("built");
            let peft_name = |name: &str| name.strip_prefix("p_tuning.").expect("the common prefix").to_owned();
            for (name, param) in params.iter() {
                let copied = tch::no_grad(|| param.shallow_clone().f_copy_(&golden(&peft_name(name))));
                copied.expect("the same shape");
            }
            let prompts = prompts(&*mode);
            assert_close(encoder, &prompts, &golden("prompts"));
            (prompts * golden("upstream")).sum(Kind::Float).backward();
            for (name, param) in params.iter() {
                assert_close(name, &param.grad(), &golden(&format!("grad.{}", peft_name(name))));
            }
        }
    }

    #[test]
    fn mlp_prompts_equal_manual_values() {
        let (params, mode) = built(json!({ "pre_seq_len": 3, "hidden": 2 }));
        for (name, tensor) in params.iter() {
            let value = if name.ends_with("bias") { 0.5 } else { -0.25 };
            drop(tch::no_grad(|| tensor.shallow_clone().fill_(value)));
        }
        // The four inputs of -0.25 give 0.25 + 0.5 = 0.75; two of these -0.375 + 0.5 = 0.125; two of these
        // -0.0625 + 0.5.
        let expected = Tensor::full([3, 4], 0.4375, (Kind::Float, Device::Cpu));
        assert_eq!(prompts(&*mode).detach(), expected);
        drop(tch::no_grad(|| params.get("p_tuning.mlp_head.2.bias").expect("added").shallow_clone().fill_(-9.0)));
        assert_eq!(prompts(&*mode).detach(), Tensor::full([3, 4], 0.5, (Kind::Float, Device::Cpu)), "by the ReLU");
    }

    #[test]
    fn lstm_prompts_depend_on_all_inputs() {
        let (params, mode) = built(json!({ "pre_seq_len": 3, "encoder": "lstm", "hidden": 5 }));
        let before = prompts(&*mode).detach();
        assert_eq!(before.size(), [3, 4]);
        let inputs = params.get("p_tuning.embedding.weight").expect("added");
        drop(tch::no_grad(|| inputs.narrow(0, 2, 1).fill_(3.0)));
        let moved = (prompts(&*mode).detach() - before).abs().sum_dim_intlist([1_i64].as_slice(), false, Kind::Float);
        let moved = Vec::<f32>::try_from(moved).expect("numbers");
        assert!(moved.iter().all(|&distance| distance > 0.0), "the LSTM reads in both directions: {moved:?}");
    }

    #[test]
    fn layers_start_within_the_bounds_of_pytorch() {
        let (params, _) = built(json!({ "pre_seq_len": 50, "encoder": "lstm", "hidden": 16 }));
        let largest = |name: &str| params.get(name).expect("added").abs().max().double_value(&[]);
        for (name, bound) in [
            ("p_tuning.lstm_head.weight_ih_l0", 0.25),
            ("p_tuning.lstm_head.bias_hh_l1_reverse", 0.25),
            ("p_tuning.mlp_head.0.weight", 1.0 / 32.0_f64.sqrt()),
            ("p_tuning.mlp_head.2.weight", 1.0 / 32.0_f64.sqrt()),
        ] {
            assert!(largest(name) <= bound && largest(name) > 0.3 * bound, "{name}: {}", largest(name));
        }
        let spread = params.get("p_tuning.embedding.weight").expect("added").detach().std(true).double_value(&[]);
        assert!((0.8..1.2).contains(&spread), "{spread} does not fit N(0, 1)");
    }

    #[test]
    fn adapter_init_sets_the_network() {
        let folder = tempfile::tempdir().expect("a folder");
        let (saved, mode) = built(json!({ "pre_seq_len": 3, "encoder": "lstm" }));
        drop(tch::no_grad(|| saved.get("p_tuning.embedding.weight").expect("added").shallow_clone().fill_(0.5)));
        saved.save(&folder.path().join("adapter.safetensors"), &BTreeMap::new()).expect("saved");
        let init = json!({ "adapter": folder.path() });
        let (params, again) = built(json!({ "pre_seq_len": 3, "encoder": "lstm", "init": init }));
        assert_eq!(params.digest().expect("read"), saved.digest().expect("read"));
        assert_eq!(prompts(&*again), prompts(&*mode));
        assert_eq!(again.starts_as(), Some(folder.path()));
        let error = try_build(json!({ "pre_seq_len": 3, "init": init })).err().expect("an LSTM").to_string();
        assert!(
            error.starts_with("use option `init`: expected `p_tuning.mlp_head.0.weight` of shape [4, 4]"),
            "{error}"
        );
    }
}
