//! Contract tests of plugins, to be called by the tests of each plugin.
//!
//! Each check builds the plugin from its example. It covers the options (named, documented, an example that matches
//! its schema and survives a round trip, unknown keys refused), the parameters that the plugin adds (only these get
//! gradients, the same seed gives the same start, save and load agree), and the guarantees of its objects.
//!
//! # Panics
//! Every function here panics if the contract is broken.

mod head;
mod optimizer;
mod schedule;
mod tuning;

use std::collections::BTreeMap;

use sepal_nn::Parameters;
use sepal_plugin::{Entry, Plugin, Registry, Slot};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

pub use head::check_head;
pub use optimizer::check_optimizer;
pub use schedule::check_schedule;
pub use tuning::{build_tuning, build_tuning_of_sites, check_tuning};

/// Checks a plugin's name, documentation, example and schema, for any slot.
pub fn check_options<S: Slot, P: Plugin<S>>() {
    let mut registry = Registry::new();
    registry.register::<S, P>().expect("a plugin can be registered");
    let entry = registry.catalog().entries(S::KIND).next().expect("what was registered is listed").clone();
    check_documentation(&entry);
    check_example::<S, P>(&entry);
    check_strictness(&entry);
}

fn check_documentation(entry: &Entry) {
    let name = entry.name;
    let kebab = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    for name in [name].iter().chain(entry.aliases) {
        assert!(!name.is_empty() && name.chars().all(kebab), "`{name}`: a plugin's name is in kebab-case");
    }
    assert!(!entry.summary.is_empty(), "`{name}`: the options struct has a doc comment, which is the summary");
    for (key, property) in entry.schema["properties"].as_object().into_iter().flatten() {
        let documented = property["description"].as_str().is_some_and(|text| !text.is_empty());
        assert!(documented, "`{name}`: option `{key}` has a doc comment, which is its manual");
    }
}

fn check_example<S: Slot, P: Plugin<S>>(entry: &Entry) {
    let Entry { name, example, .. } = entry;
    if let Err(error) = validator(entry).validate(example) {
        panic!("`{name}`: the example fits the schema: {} {error}", error.instance_path());
    }
    let read = entry.resolve(example.clone()).expect("the example can be read");
    assert_eq!(&read, example, "`{name}`: the example is the same after writing and reading");
    let problems = P::check(&P::example());
    assert!(problems.is_empty(), "`{name}`: nothing is wrong with the example: {problems:?}");
}

fn check_strictness(entry: &Entry) {
    let Entry { name, example, .. } = entry;
    let mut extended = example.clone();
    extended["no_such_option"] = json!(1);
    let refused = entry.resolve(extended.clone()).is_err();
    assert!(refused, "`{name}`: unknown options are refused (#[serde(deny_unknown_fields)])");
    assert!(!validator(entry).is_valid(&extended), "`{name}`: the schema refuses unknown options");
    assert!(entry.resolve(Value::from(7)).is_err(), "`{name}`: options are a map");
}

fn validator(entry: &Entry) -> jsonschema::Validator {
    jsonschema::validator_for(&entry.schema).expect("a plugin's schema is a JSON schema")
}

/// Seed of the checked objects, and another one.
const SEED: u64 = 7;
const OTHER_SEED: u64 = 8;

/// Parameter that exists before the plugin is built.
const UNRELATED: &str = "unrelated";

fn parameters() -> Parameters {
    let mut params = Parameters::new();
    drop(params.add(UNRELATED, &Tensor::ones([2], (Kind::Float, tch::Device::Cpu))).expect("the store is empty"));
    params
}

/// Checks that the parameters that the plugin added, and only those, have a gradient.
fn check_gradients(name: &str, params: &Parameters) {
    for (parameter, tensor) in params.iter() {
        let has_gradient = tensor.grad().defined();
        assert_eq!(has_gradient, parameter != UNRELATED, "`{name}`: what it adds has a gradient: {parameter}");
    }
}

/// Checks that the same seed starts from the same numbers, and that an adapter saved from `params` and loaded into
/// `other`, which was built with another seed, makes them equal.
fn check_start_and_files(name: &str, params: &Parameters, again: &Parameters, other: &mut Parameters) {
    let digest = |params: &Parameters| params.digest().expect("parameters can be read");
    assert_eq!(digest(params), digest(again), "`{name}`: the same seed starts from the same numbers");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("adapter.safetensors");
    params.save(&path, &BTreeMap::new()).expect("parameters can be saved");
    other.load(&path).expect("parameters of the same options have the same names and shapes");
    assert_eq!(digest(params), digest(other), "`{name}`: loading gives back what was saved");
}

fn numbers(shape: &[i64]) -> Tensor {
    let n: i64 = shape.iter().product();
    (Tensor::arange(n, (Kind::Float, tch::Device::Cpu)) * 1.7 + 0.3).sin().view(shape)
}

#[cfg(test)]
mod tests {
    use schemars::JsonSchema;
    use sepal_optim::{
        Adafactor, Adam, AdamW, Constant, ConstantConfig, Cosine, CosineWithRestarts, InverseSqrt, Linear, Lion,
        Polynomial, ReduceOnPlateau, Schedule, Sgd, WarmupStableDecay,
    };
    use sepal_plugin::{
        BuildError, Head, HeadContext, HeadError, HiddenView, LabelKind, Labels, Logits, Phase, Prediction, Sched,
        SchedContext, Task, TaskHead, Track, label_tensor,
    };
    use sepal_track::{Mlflow, TensorBoard, Wandb};
    use serde::{Deserialize, Serialize};

    use super::*;

    #[test]
    fn standard_plugins_keep_the_contract() {
        check_optimizer::<Adafactor>();
        check_optimizer::<Adam>();
        check_optimizer::<AdamW>();
        check_optimizer::<Lion>();
        check_optimizer::<Sgd>();
        check_options::<Track, Mlflow>();
        check_options::<Track, TensorBoard>();
        check_options::<Track, Wandb>();
        check_schedule::<Constant>();
        check_schedule::<Cosine>();
        check_schedule::<CosineWithRestarts>();
        check_schedule::<InverseSqrt>();
        check_schedule::<Linear>();
        check_schedule::<Polynomial>();
        check_schedule::<ReduceOnPlateau>();
        check_schedule::<WarmupStableDecay>();
    }

    /// Declares a constant schedule with these options.
    macro_rules! schedule {
        ($name:literal, $config:ty) => {
            struct Broken;

            impl Plugin<Sched> for Broken {
                const NAME: &'static str = $name;
                type Config = $config;

                fn example() -> Self::Config {
                    Self::Config::default()
                }

                fn build(_: Self::Config, _: &mut SchedContext) -> Result<Box<dyn Schedule>, BuildError> {
                    Ok(Box::new(Constant::new(ConstantConfig::default(), 1)))
                }
            }
        };
    }

    #[test]
    #[should_panic(expected = "`Loud`: a plugin's name is in kebab-case")]
    fn upper_case_name_breaks_the_contract() {
        schedule!("Loud", ConstantConfig);
        check_schedule::<Broken>();
    }

    #[test]
    #[should_panic(expected = "option `warmup` has a doc comment")]
    fn undocumented_option_breaks_the_contract() {
        /// Options.
        #[derive(Default, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        struct Config {
            warmup: usize,
        }
        schedule!("undocumented", Config);
        check_schedule::<Broken>();
    }

    #[test]
    #[should_panic(expected = "unknown options are refused")]
    fn config_accepting_unknown_options_breaks_the_contract() {
        /// Options.
        #[derive(Default, Serialize, Deserialize, JsonSchema)]
        #[serde(default)]
        struct Config {
            /// Steps.
            warmup: usize,
        }
        schedule!("loose", Config);
        check_schedule::<Broken>();
    }

    #[test]
    #[should_panic(expected = "the example fits the schema")]
    fn example_out_of_range_breaks_the_contract() {
        /// Options.
        #[derive(Default, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        struct Config {
            /// Steps.
            #[schemars(range(min = 1))]
            warmup: usize,
        }
        schedule!("wrong-example", Config);
        check_schedule::<Broken>();
    }

    struct UnusedParameter {
        used: Tensor,
        task: Task,
    }

    impl Plugin<Head> for UnusedParameter {
        const NAME: &'static str = "unused-parameter";
        type Config = ConstantConfig;

        fn example() -> ConstantConfig {
            ConstantConfig::default()
        }

        fn build(_: ConstantConfig, cx: &mut HeadContext<'_>) -> Result<Box<dyn TaskHead>, BuildError> {
            let used = cx.params.add("used", &numbers(&[1, cx.hidden as i64]))?;
            drop(cx.params.add("unused", &numbers(&[1]))?);
            Ok(Box::new(Self { used, task: Task::new(LabelKind::Value, vec!["score".to_owned()]) }))
        }
    }

    impl TaskHead for UnusedParameter {
        fn forward(&self, hidden: &HiddenView<'_>, _: Phase) -> Result<Logits, HeadError> {
            Ok(Logits::new(hidden.states().f_linear(&self.used, None::<Tensor>)?))
        }

        fn loss(&self, logits: &Logits, labels: &Labels) -> Result<Tensor, HeadError> {
            Ok((&logits.values.f_squeeze()? - label_tensor(labels)?).f_square()?.f_mean(Kind::Float)?)
        }

        fn predict(&self, _: &Logits) -> Result<Prediction, HeadError> {
            Ok(Prediction::default())
        }

        fn task(&self) -> &Task {
            &self.task
        }
    }

    #[test]
    #[should_panic(expected = "`unused-parameter`: what it adds has a gradient: unused")]
    fn parameter_without_gradient_breaks_the_contract() {
        check_head::<UnusedParameter>();
    }
}
