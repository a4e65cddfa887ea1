use std::collections::HashSet;

use sepal_core::{LinearSite, SiteRole, TunableName};
use sepal_nn::Parameters;
use sepal_plugin::{BuildError, Plugin, Tunable, Tuning, TuningContext, TuningMode};
use tch::{Device, Kind, Tensor};

use super::{OTHER_SEED, SEED, check_gradients, check_options, check_start_and_files, numbers, parameters};

const N_BLOCKS: usize = 3;
const HIDDEN: usize = 16;
const KV_SIZE: usize = 12;
const FFN: usize = 24;
const VOCAB: usize = 256;

/// Checks a tuning mode.
pub fn check_tuning<P: Plugin<Tuning>>() {
    check_options::<Tuning, P>();
    let name = P::NAME;
    let embeddings = numbers(&[VOCAB as i64, HIDDEN as i64]);
    let before = embeddings.copy();
    let (params, mode) = build::<P>(SEED, &embeddings);
    let (again, _) = build::<P>(SEED, &embeddings);
    let (mut other, loaded) = build::<P>(OTHER_SEED, &embeddings);

    check_prefix(name, &*mode);
    check_tunables(name, &*mode);
    check_training(name, &params, &*mode);
    assert!(!embeddings.grad().defined() && embeddings == before, "`{name}`: the model's embeddings stay frozen");
    check_start_and_files(name, &params, &again, &mut other);
    let (expected, found) = (all_tensors(&*mode), all_tensors(&*loaded));
    assert!(expected.iter().zip(&found).all(|(a, b)| a == b), "`{name}`: a loaded mode gives what the saved one did");
}

/// Linear layers of the blocks.
fn sites() -> Vec<LinearSite> {
    vec![
        LinearSite::new("self_attn.q_proj", HIDDEN, HIDDEN, SiteRole::Query),
        LinearSite::new("self_attn.k_proj", KV_SIZE, HIDDEN, SiteRole::Key),
        LinearSite::new("self_attn.v_proj", KV_SIZE, HIDDEN, SiteRole::Value),
        LinearSite::new("self_attn.o_proj", HIDDEN, HIDDEN, SiteRole::AttentionOutput),
        LinearSite::new("mlp.gate_proj", FFN, HIDDEN, SiteRole::MlpInput),
        LinearSite::new("mlp.up_proj", FFN, HIDDEN, SiteRole::MlpInput),
        LinearSite::new("mlp.down_proj", HIDDEN, FFN, SiteRole::MlpOutput),
    ]
}

/// Builds a tuning mode for a model of five blocks with keys and values of size 3. Row `i` of its embeddings `[20, 4]`
/// begins with `4 * i`, and a text has one token, its number of bytes.
///
/// # Errors
/// Error of the plugin, if it refuses the options.
pub fn build_tuning<P: Plugin<Tuning>>(config: P::Config) -> Result<(Parameters, Box<dyn TuningMode>), BuildError> {
    build_tuning_of_sites::<P>(config, &[])
}

/// Builds a tuning mode for the model of [`build_tuning`], whose blocks have these linear layers.
///
/// # Errors
/// Error of the plugin, if it refuses the options.
pub fn build_tuning_of_sites<P: Plugin<Tuning>>(
    config: P::Config,
    sites: &[LinearSite],
) -> Result<(Parameters, Box<dyn TuningMode>), BuildError> {
    let mut params = Parameters::new();
    let mut cx = TuningContext {
        params: &mut params,
        n_blocks: 5,
        hidden: 4,
        kv_size: 3,
        sites,
        initializer_range: 0.5,
        embeddings: &Tensor::arange(80, (Kind::Float, Device::Cpu)).view([20, 4]),
        tokenize: &|text| Ok(vec![text.len() as i64]),
        labels: &["no".to_owned(), "yes".to_owned()],
        is_restored: false,
        seed: 42,
    };
    let mode = P::build(config, &mut cx)?;
    Ok((params, mode))
}

fn build<P: Plugin<Tuning>>(seed: u64, embeddings: &Tensor) -> (Parameters, Box<dyn TuningMode>) {
    let mut params = parameters();
    let mut cx = TuningContext {
        params: &mut params,
        n_blocks: N_BLOCKS,
        hidden: HIDDEN,
        kv_size: KV_SIZE,
        sites: &sites(),
        initializer_range: 0.02,
        embeddings,
        tokenize: &|text| Ok(text.bytes().map(i64::from).collect()),
        labels: &["negative".to_owned(), "positive".to_owned()],
        is_restored: false,
        seed,
    };
    let mode = P::build(P::example(), &mut cx).expect("the example builds");
    (params, mode)
}

fn check_prefix(name: &str, mode: &dyn TuningMode) {
    let pre_seq_len = mode.pre_seq_len() as i64;
    match mode.prefix().expect("a prefix") {
        Some(prefix) => {
            let expected = [pre_seq_len, HIDDEN as i64];
            assert_eq!(prefix.size(), expected, "`{name}`: the prefix is [pre_seq_len, hidden]");
            assert!(pre_seq_len > 0, "`{name}`: a prefix that is there has positions");
        }
        None => assert_eq!(pre_seq_len, 0, "`{name}`: without a prefix, pre_seq_len is 0"),
    }
}

/// Checks names, blocks and shapes of the tunables.
fn check_tunables(name: &str, mode: &dyn TuningMode) {
    let tunables = tunables(mode);
    let mut names = HashSet::new();
    for tunable in &tunables {
        let Tunable { name: of_tunable, first_block, tensor } = tunable;
        assert!(names.insert(of_tunable), "`{name}`: there is one tunable `{of_tunable}`");
        let blocks = tensor.size().first().map_or(0, |&blocks| blocks as usize);
        let are_there = blocks > 0 && first_block + blocks <= N_BLOCKS;
        assert!(are_there, "`{name}`: `{of_tunable}` is stacked by block, for blocks that the model has");
        let expected = shape(name, tunable, &tunables, mode.pre_seq_len());
        let expected: Vec<i64> = [blocks].into_iter().chain(expected).map(|dim| dim as i64).collect();
        assert_eq!(tensor.size(), expected, "`{name}`: shape of `{of_tunable}`");
    }
}

/// Shape of a tunable in one block.
fn shape(name: &str, tunable: &Tunable, all: &[Tunable], pre_seq_len: usize) -> Vec<usize> {
    let sites = sites();
    let site = |wanted: &str| {
        let found = sites.iter().find(|site| site.name == wanted);
        found.unwrap_or_else(|| panic!("`{name}`: `{}` is for a layer that the blocks have", tunable.name))
    };
    let other_rank = |other: TunableName, dim: usize| {
        let other = other.to_string();
        let found = all.iter().find(|found| found.name == other && found.first_block == tunable.first_block);
        let found = found.unwrap_or_else(|| panic!("`{name}`: `{}` has `{other}` beside it", tunable.name));
        found.tensor.size()[dim] as usize
    };
    match TunableName::parse(&tunable.name) {
        Some(TunableName::DeepPrompts) => vec![pre_seq_len, HIDDEN],
        Some(TunableName::PrefixKeysValues) => vec![pre_seq_len, 2 * KV_SIZE],
        Some(TunableName::LoraA(of)) => vec![other_rank(TunableName::LoraB(of.clone()), 2), site(&of).inputs],
        Some(TunableName::LoraB(of)) => vec![site(&of).outputs, other_rank(TunableName::LoraA(of.clone()), 1)],
        Some(TunableName::ScaleOutput(of)) => vec![site(&of).outputs],
        Some(TunableName::ScaleInput(of)) => {
            let site = site(&of);
            assert_eq!(site.role, SiteRole::MlpOutput, "`{name}`: `{}` is for the last layer of an MLP", tunable.name);
            vec![site.inputs]
        }
        None => panic!("`{name}`: blocks take no tunable `{}`", tunable.name),
    }
}

fn check_training(name: &str, params: &Parameters, mode: &dyn TuningMode) {
    // With trained keys and values, the prefix holds only positions.
    let keys_values = TunableName::PrefixKeysValues.to_string();
    let is_keys_values = tunables(mode).iter().any(|tunable| tunable.name == keys_values);
    for tensor in all_tensors(mode).into_iter().skip(usize::from(is_keys_values)) {
        assert!(tensor.requires_grad(), "`{name}`: prefix and tunables are attached to the parameters");
        (&tensor * numbers(&tensor.size())).sum(Kind::Float).backward();
    }
    check_gradients(name, params);
}

/// Returns the prefix and the tunables.
fn all_tensors(mode: &dyn TuningMode) -> Vec<Tensor> {
    let prefix = mode.prefix().expect("a prefix");
    prefix.into_iter().chain(tunables(mode).into_iter().map(|tunable| tunable.tensor)).collect()
}

fn tunables(mode: &dyn TuningMode) -> Vec<Tunable> {
    mode.tunables().expect("tunables")
}

#[cfg(test)]
mod tests {
    use schemars::JsonSchema;
    use sepal_plugin::{BuildError, TuningError};
    use serde::{Deserialize, Serialize};

    use super::*;

    /// Declares a mode with the name and shape of its only tunable.
    macro_rules! mode {
        ($tunable:literal, $first_block:expr, $shape:expr) => {
            /// Options.
            #[derive(Default, Serialize, Deserialize, JsonSchema)]
            #[serde(deny_unknown_fields, default)]
            struct Config {}

            struct Broken(Tensor);

            impl Plugin<Tuning> for Broken {
                const NAME: &'static str = "broken";
                type Config = Config;

                fn example() -> Config {
                    Config::default()
                }

                fn build(_: Config, cx: &mut TuningContext<'_>) -> Result<Box<dyn TuningMode>, BuildError> {
                    Ok(Box::new(Self(cx.params.add($tunable, &numbers(&$shape))?)))
                }
            }

            impl TuningMode for Broken {
                fn prefix(&self) -> Result<Option<Tensor>, TuningError> {
                    Ok(None)
                }

                fn tunables(&self) -> Result<Vec<Tunable>, TuningError> {
                    let tensor = self.0.shallow_clone();
                    Ok(vec![Tunable { name: $tunable.to_owned(), first_block: $first_block, tensor }])
                }

                fn pre_seq_len(&self) -> usize {
                    0
                }
            }
        };
    }

    #[test]
    fn factors_of_the_last_block_keep_the_contract() {
        mode!("scale_output:self_attn.k_proj", 2, [1, KV_SIZE as i64]);
        check_tuning::<Broken>();
    }

    #[test]
    #[should_panic(expected = "`broken`: blocks take no tunable `scale:self_attn.k_proj`")]
    fn tunable_of_another_name_breaks_the_contract() {
        mode!("scale:self_attn.k_proj", 0, [3, KV_SIZE as i64]);
        check_tuning::<Broken>();
    }

    #[test]
    #[should_panic(expected = "`scale_output:k_proj` is for a layer that the blocks have")]
    fn tunable_of_an_unknown_layer_breaks_the_contract() {
        mode!("scale_output:k_proj", 0, [3, KV_SIZE as i64]);
        check_tuning::<Broken>();
    }

    #[test]
    #[should_panic(expected = "`broken`: shape of `scale_output:self_attn.k_proj`")]
    fn tunable_of_another_shape_breaks_the_contract() {
        mode!("scale_output:self_attn.k_proj", 0, [3, HIDDEN as i64]);
        check_tuning::<Broken>();
    }

    #[test]
    #[should_panic(expected = "is stacked by block, for blocks that the model has")]
    fn tunable_beyond_the_last_block_breaks_the_contract() {
        mode!("scale_output:self_attn.k_proj", 1, [3, KV_SIZE as i64]);
        check_tuning::<Broken>();
    }

    #[test]
    #[should_panic(expected = "`lora_A:self_attn.q_proj` has `lora_B:self_attn.q_proj` beside it")]
    fn factor_without_the_other_breaks_the_contract() {
        mode!("lora_A:self_attn.q_proj", 0, [3, 2, HIDDEN as i64]);
        check_tuning::<Broken>();
    }
}
