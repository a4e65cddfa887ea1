use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fmt;

use schemars::JsonSchema;
use sepal_catalog::{Catalog, Entry, OptionProblem, PluginKind, RegisterError, ResolveError};
use sepal_nn::{AddError, RowsError, init::InitError};
use sepal_options::OptionError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tch::TchError;

use crate::Slot;

/// A named implementation of a slot, with documented options and a function that builds it from them.
pub trait Plugin<S: Slot>: 'static {
    /// Name after `use:` in a pipeline file, in kebab-case.
    const NAME: &'static str;

    /// Earlier names, which pipeline files may still use. They are not listed.
    const ALIASES: &'static [&'static str] = &[];

    /// Options under `with:` in a pipeline file. Their doc comments are the manual, and the struct's first paragraph is the
    /// plugin's summary. The type refuses unknown fields (`#[serde(deny_unknown_fields)]`), and optional fields have a
    /// default.
    type Config: DeserializeOwned + Serialize + JsonSchema;

    /// Returns valid options, for the documentation.
    fn example() -> Self::Config;

    /// Returns the problems of well-formed options that can be found without building anything.
    fn check(config: &Self::Config) -> Vec<OptionProblem> {
        let _ = config;
        Vec::new()
    }

    /// Builds the object of the slot.
    ///
    /// # Errors
    /// [`BuildError`] if the options do not fit the context.
    fn build(config: Self::Config, cx: &mut S::Context<'_>) -> Result<Box<S::Object>, BuildError>;
}

/// Plugins by slot and name: a [`Catalog`] of their options, and the functions that build them.
#[derive(Default)]
pub struct Registry {
    catalog: Catalog,
    /// A [`Builders`] of each slot that has plugins.
    builders: HashMap<TypeId, Box<dyn Any + Send + Sync>>,
}

type Build<S> = fn(Value, &mut <S as Slot>::Context<'_>) -> Result<Box<<S as Slot>::Object>, BuildError>;
type Builders<S> = BTreeMap<&'static str, Build<S>>;

impl Registry {
    /// Returns a registry without plugins.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names, options and schemas of the registered plugins.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Adds the plugin `P` to the slot `S`.
    ///
    /// # Errors
    /// [`RegisterError`] if the slot has a plugin of this name, or the example has no JSON form.
    pub fn register<S: Slot, P: Plugin<S>>(&mut self) -> Result<&mut Self, RegisterError> {
        let entry = Entry::new(P::NAME, &P::example(), P::check).map_err(|source| RegisterError::Example {
            kind: S::KIND,
            name: P::NAME,
            source,
        })?;
        self.catalog.insert(S::KIND, entry.with_aliases(P::ALIASES))?;
        let build: Build<S> = |options, context| {
            let (kind, name) = (S::KIND, P::NAME);
            let config =
                sepal_catalog::parse(options).map_err(|source| ResolveError::Options { kind, name, source })?;
            P::build(config, context)
        };
        let builders = self.builders.entry(TypeId::of::<S>()).or_insert_with(|| Box::new(Builders::<S>::new()));
        if let Some(builders) = builders.downcast_mut::<Builders<S>>() {
            builders.insert(P::NAME, build);
        }
        Ok(self)
    }

    /// Builds a plugin from its options; `null` stands for no options.
    ///
    /// # Errors
    /// [`BuildError`] if there is no such plugin, it does not accept the options, or cannot be built with them.
    pub fn build<S: Slot>(
        &self,
        name: &str,
        options: Value,
        context: &mut S::Context<'_>,
    ) -> Result<Box<S::Object>, BuildError> {
        let entry = self.catalog.find(S::KIND, name)?;
        let builders: Option<&Builders<S>> =
            self.builders.get(&TypeId::of::<S>()).and_then(|builders| builders.downcast_ref());
        match builders.and_then(|builders| builders.get(entry.name)) {
            Some(build) => build(options, context),
            None => Err(BuildError::OtherSlot { kind: S::KIND, name: entry.name }),
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("catalog", &self.catalog).finish_non_exhaustive()
    }
}

/// A plugin that cannot be built.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum BuildError {
    /// Unknown name, or options that the plugin does not accept.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Plugin of another slot of the same kind.
    #[error("build {kind} `{name}`: it is registered for another slot")]
    OtherSlot { kind: PluginKind, name: &'static str },
    /// One of several tuning modes that cannot be built.
    #[error("build `{mode}`")]
    Mode { mode: String, source: Box<BuildError> },
    /// Two tuning modes with a prefix.
    #[error("combine `{first}` and `{second}`: only one of the modes may have prompts or another prefix")]
    Prefixes { first: String, second: String },
    /// Two tuning modes with a parameter or a tunable of the same name.
    #[error("combine `{first}` and `{second}`: both train `{tensor}`")]
    Shared { tensor: String, first: String, second: String },
    /// Option that does not fit the model.
    #[error("use option `{key}`: {message}")]
    Option { key: &'static str, message: String },
    /// Parameter that cannot be added.
    #[error("add a trained tensor")]
    Parameter(#[from] AddError),
    /// Parameter that cannot be initialised.
    #[error("initialise a trained tensor")]
    Init(#[from] InitError),
    /// Embeddings that cannot be read.
    #[error("read embeddings for trained tensors")]
    Rows(#[from] RowsError),
    /// Failure of libtorch.
    #[error("build the plugin")]
    Torch(#[from] TchError),
    /// Failure specific to the plugin.
    #[error("build the plugin")]
    Other(#[source] Box<dyn Error + Send + Sync>),
}

impl From<OptionError> for BuildError {
    fn from(OptionError { key, message }: OptionError) -> Self {
        Self::Option { key, message }
    }
}
