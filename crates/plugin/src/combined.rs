use std::fmt;
use std::path::Path;

use sepal_nn::{AddError, Tunable};
use serde_json::Value;
use tch::Tensor;

use crate::{BuildError, Registry, Tuning, TuningContext, TuningError, TuningMode};

/// Several tuning modes that train together. At most one has a prefix, and no two have a parameter or a tunable of the
/// same name.
pub struct CombinedTuning {
    modes: Vec<NamedMode>,
}

struct NamedMode {
    name: String,
    mode: Box<dyn TuningMode>,
    /// Names of its parameters and tunables.
    tensors: Vec<String>,
}

impl CombinedTuning {
    /// Builds the modes of `choices`, pairs of name and options, in their order. A single mode is returned as it is.
    ///
    /// # Errors
    /// [`BuildError`] of a mode; [`BuildError::Prefixes`] and [`BuildError::Shared`] if two of them do not go together.
    pub fn build(
        registry: &Registry,
        choices: &[(&str, Value)],
        cx: &mut TuningContext<'_>,
    ) -> Result<Box<dyn TuningMode>, BuildError> {
        if let [(name, options)] = choices {
            return registry.build::<Tuning>(name, options.clone(), cx);
        }
        let mut combined = Self { modes: Vec::new() };
        for (name, options) in choices {
            let first_param = cx.params.len();
            let built = registry.build::<Tuning>(name, options.clone(), cx);
            let mode = built.map_err(|error| combined.explain(name, error))?;
            let params = cx.params.iter().skip(first_param).map(|(name, _)| name.to_owned()).collect();
            combined.add(NamedMode { name: (*name).to_owned(), mode, tensors: params })?;
        }
        Ok(Box::new(combined))
    }

    fn add(&mut self, mut added: NamedMode) -> Result<(), BuildError> {
        let has_prefix = |named: &&NamedMode| named.mode.pre_seq_len() > 0;
        if let Some(first) = self.modes.iter().find(has_prefix).filter(|_| has_prefix(&&added)) {
            return Err(BuildError::Prefixes { first: first.name.clone(), second: added.name });
        }
        let tunables = added.mode.tunables().map_err(|error| BuildError::Other(error.into()))?;
        for Tunable { name, .. } in tunables {
            if let Some(first) = self.owner(&name) {
                return Err(BuildError::Shared { tensor: name, first: first.to_owned(), second: added.name });
            }
            added.tensors.push(name);
        }
        self.modes.push(added);
        Ok(())
    }

    /// Mode with a parameter or a tunable of this name.
    fn owner(&self, tensor: &str) -> Option<&str> {
        let owner = self.modes.iter().find(|named| named.tensors.iter().any(|name| name == tensor));
        owner.map(|named| named.name.as_str())
    }

    /// Adds the name of the mode that failed, and of the one that it does not go with.
    fn explain(&self, mode: &str, error: BuildError) -> BuildError {
        if let BuildError::Parameter(AddError::Duplicate { name }) = &error
            && let Some(first) = self.owner(name)
        {
            return BuildError::Shared { tensor: name.clone(), first: first.to_owned(), second: mode.to_owned() };
        }
        BuildError::Mode { mode: mode.to_owned(), source: Box::new(error) }
    }
}

impl TuningMode for CombinedTuning {
    fn prefix(&self) -> Result<Option<Tensor>, TuningError> {
        match self.modes.iter().find(|named| named.mode.pre_seq_len() > 0) {
            Some(named) => named.mode.prefix(),
            None => Ok(None),
        }
    }

    fn tunables(&self) -> Result<Vec<Tunable>, TuningError> {
        let mut tunables = Vec::new();
        for named in &self.modes {
            tunables.extend(named.mode.tunables()?);
        }
        Ok(tunables)
    }

    fn pre_seq_len(&self) -> usize {
        self.modes.iter().map(|named| named.mode.pre_seq_len()).sum()
    }

    fn starts_as(&self) -> Option<&Path> {
        self.modes.iter().find_map(|named| named.mode.starts_as())
    }
}

impl fmt::Debug for CombinedTuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.modes.iter().map(|named| &named.name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use schemars::JsonSchema;
    use sepal_core::in_one_line;
    use sepal_nn::Parameters;
    use serde::{Deserialize, Serialize};
    use serde_json::json;
    use tch::{Device, Kind};

    use super::*;
    use crate::Plugin;

    /// Trains one parameter as a prefix or as a tunable.
    #[derive(Default, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Config {
        param: String,
        tunable: Option<String>,
        adapter: Option<String>,
    }

    struct Single {
        tensor: Tensor,
        config: Config,
    }

    macro_rules! plugin {
        ($plugin:ident, $name:literal) => {
            struct $plugin;

            impl Plugin<Tuning> for $plugin {
                const NAME: &'static str = $name;
                type Config = Config;

                fn example() -> Config {
                    Config::default()
                }

                fn build(config: Config, cx: &mut TuningContext<'_>) -> Result<Box<dyn TuningMode>, BuildError> {
                    if config.param.is_empty() {
                        return Err(BuildError::Option { key: "param", message: "expected a name".to_owned() });
                    }
                    let zeros = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
                    Ok(Box::new(Single { tensor: cx.params.add(config.param.clone(), &zeros)?, config }))
                }
            }
        };
    }

    plugin!(First, "first");
    plugin!(Second, "second");

    impl TuningMode for Single {
        fn prefix(&self) -> Result<Option<Tensor>, TuningError> {
            Ok(self.config.tunable.is_none().then(|| self.tensor.shallow_clone()))
        }

        fn tunables(&self) -> Result<Vec<Tunable>, TuningError> {
            let tunable = |name: &String| Tunable::new(name.clone(), self.tensor.shallow_clone());
            Ok(self.config.tunable.iter().map(tunable).collect())
        }

        fn pre_seq_len(&self) -> usize {
            if self.config.tunable.is_none() { 2 } else { 0 }
        }

        fn starts_as(&self) -> Option<&Path> {
            self.config.adapter.as_deref().map(Path::new)
        }
    }

    /// Builds `first` and `second` with these options beside the parameter `score.weight` of a head.
    fn built(first: Value, second: Value) -> Result<(Parameters, Box<dyn TuningMode>), String> {
        let mut registry = Registry::new();
        registry.register::<Tuning, First>().expect("free").register::<Tuning, Second>().expect("free");
        let embeddings = Tensor::zeros([4, 3], (Kind::Float, Device::Cpu));
        let mut params = Parameters::new();
        drop(params.add("score.weight", &embeddings).expect("new"));
        let mut cx = TuningContext {
            params: &mut params,
            n_blocks: 2,
            hidden: 3,
            kv_size: 3,
            sites: &[],
            initializer_range: 0.5,
            embeddings: &embeddings,
            tokenize: &|_| Ok(Vec::new()),
            labels: &[],
            is_restored: false,
            seed: 42,
        };
        let mode = CombinedTuning::build(&registry, &[("first", first), ("second", second)], &mut cx);
        let mode = mode.map_err(|error| in_one_line(&error))?;
        Ok((params, mode))
    }

    #[test]
    fn combined_modes_have_the_tensors_of_all() {
        let prompts = || json!({ "param": "prompts" });
        let deep = || json!({ "param": "deep", "tunable": "deep_prompts", "adapter": "runs/a" });
        for (first, second) in [(prompts(), deep()), (deep(), prompts())] {
            let (params, mode) = built(first, second).expect("built");
            assert_eq!((params.len(), mode.pre_seq_len()), (3, 2));
            let prefix = mode.prefix().expect("computed").expect("there is one");
            assert_eq!(prefix.data_ptr(), params.get("prompts").expect("added").data_ptr());
            let tunables = mode.tunables().expect("tunables");
            assert_eq!((tunables.len(), tunables[0].name.as_str()), (1, "deep_prompts"));
            assert_eq!(mode.starts_as(), Some(Path::new("runs/a")));
        }
        let (_, mode) = built(deep(), json!({ "param": "b", "tunable": "lora_A:q" })).expect("built");
        assert!(mode.prefix().expect("computed").is_none() && mode.pre_seq_len() == 0);
        assert_eq!(mode.tunables().expect("tunables").len(), 2);
    }

    #[test]
    fn modes_that_do_not_go_together_are_refused() {
        let refusal = |first, second| built(first, second).err().expect("they do not go together");
        let expected = "combine `first` and `second`: only one of the modes may have prompts or another prefix";
        assert_eq!(refusal(json!({ "param": "a" }), json!({ "param": "b" })), expected);
        let expected = "combine `first` and `second`: both train `prompts`";
        assert_eq!(refusal(json!({ "param": "prompts" }), json!({ "param": "prompts", "tunable": "x" })), expected);
        let expected = "combine `first` and `second`: both train `deep_prompts`";
        let deep = |param| json!({ "param": param, "tunable": "deep_prompts" });
        assert_eq!(refusal(deep("a"), deep("b")), expected);
        let taken = "build `second`: add a trained tensor: add parameter `score.weight`: the name exists already";
        assert_eq!(refusal(deep("a"), json!({ "param": "score.weight" })), taken);
        assert_eq!(refusal(deep("a"), json!({})), "build `second`: use option `param`: expected a name");
    }
}
