use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{OptionProblem, PluginKind};

/// Options of a plugin that are known without the plugin itself.
pub trait Options: DeserializeOwned + Serialize + JsonSchema + 'static {
    /// Kind of the plugin.
    const KIND: PluginKind;

    /// Name after `use:` in a pipeline file, in kebab-case.
    const NAME: &'static str;

    /// Earlier names, which pipeline files may still use. They are not listed.
    const ALIASES: &'static [&'static str] = &[];

    /// Returns valid options, for the documentation.
    fn example() -> Self;

    /// Returns the problems of well-formed options that can be found without building anything.
    fn check(&self) -> Vec<OptionProblem> {
        Vec::new()
    }
}
