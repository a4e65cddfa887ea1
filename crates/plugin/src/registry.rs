use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fmt;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use sepal_nn::{AddError, init::InitError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tch::TchError;

use crate::{Slot, nearest};

/// One filling of a slot: a name, documented options, and how it is built from them.
pub trait Plugin<S: Slot>: 'static {
    /// What a pipeline file writes after `use:`; kebab-case.
    const NAME: &'static str;

    /// What a pipeline file writes under `with:`. Its doc comments are the manual: the struct's first line is
    /// the plugin's summary. It refuses unknown fields (`#[serde(deny_unknown_fields)]`) and has a default for
    /// whatever need not be written.
    type Config: DeserializeOwned + Serialize + JsonSchema;

    /// Options that work, as documentation shows them.
    fn example() -> Self::Config;

    /// What is wrong with options that are well-formed, as far as it can be known without building anything.
    fn check(config: &Self::Config) -> Vec<OptionProblem> {
        let _ = config;
        Vec::new()
    }

    /// Builds it.
    ///
    /// # Errors
    /// [`BuildError`] if these options do not fit this context.
    fn build(config: Self::Config, cx: &mut S::Context<'_>) -> Result<Box<S::Object>, BuildError>;
}

/// Something wrong with one option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionProblem {
    /// The option, for example `labels`.
    pub key: String,
    /// What is wrong, for example ``expected different names, found `good` twice``.
    pub message: String,
}

/// What is known of a registered plugin.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What a pipeline file writes after `use:`.
    pub name: &'static str,
    /// The first line of its options' documentation.
    pub summary: String,
    /// The JSON schema of its options, complete in itself.
    pub schema: Value,
    /// Options that work.
    pub example: Value,
}

/// Plugins by slot and name.
#[derive(Default)]
pub struct Registry {
    /// A [`Table`] of each slot that has plugins.
    tables: HashMap<TypeId, Box<dyn Any + Send + Sync>>,
}

type Table<S> = BTreeMap<&'static str, Registered<S>>;
type Build<S> = fn(Value, &mut <S as Slot>::Context<'_>) -> Result<Box<<S as Slot>::Object>, BuildError>;

/// A plugin without its type: what is known of it and plain functions.
struct Registered<S: Slot> {
    entry: Entry,
    resolve: fn(Value) -> Result<Value, serde_json::Error>,
    check: fn(Value) -> Result<Vec<OptionProblem>, serde_json::Error>,
    build: Build<S>,
}

impl Registry {
    /// A registry without plugins.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the plugin `P` to the slot `S`.
    ///
    /// # Errors
    /// [`RegisterError`] if the name is taken in that slot, or the example cannot be written.
    pub fn register<S: Slot, P: Plugin<S>>(&mut self) -> Result<&mut Self, RegisterError> {
        let name = P::NAME;
        if self.table::<S>().is_some_and(|table| table.contains_key(name)) {
            return Err(RegisterError::Duplicate { slot: S::NAME, name });
        }
        let example = serde_json::to_value(P::example()).map_err(|source| RegisterError::Example {
            slot: S::NAME,
            name,
            source,
        })?;
        let schema = schema::<P::Config>();
        let registered = Registered::<S> {
            entry: Entry { name, summary: summary(&schema), schema, example },
            resolve: |options| serde_json::to_value(parse::<P::Config>(options)?),
            check: |options| parse(options).map(|config| P::check(&config)),
            build: |options, cx| {
                let config =
                    parse(options).map_err(|source| BuildError::Options { slot: S::NAME, name: P::NAME, source })?;
                P::build(config, cx)
            },
        };
        let table = self.tables.entry(TypeId::of::<S>()).or_insert_with(|| Box::new(Table::<S>::new()));
        if let Some(table) = table.downcast_mut::<Table<S>>() {
            table.insert(name, registered);
        }
        Ok(self)
    }

    /// The plugins of a slot, by name.
    pub fn entries<S: Slot>(&self) -> impl Iterator<Item = &Entry> {
        self.table::<S>().into_iter().flat_map(|table| table.values().map(|registered| &registered.entry))
    }

    /// The options as the plugin reads them, with every default filled in.
    ///
    /// # Errors
    /// [`BuildError`] if there is no such plugin, or it does not accept the options.
    pub fn resolve<S: Slot>(&self, name: &str, options: Value) -> Result<Value, BuildError> {
        let found = self.find::<S>(name)?;
        (found.resolve)(options).map_err(|source| BuildError::Options { slot: S::NAME, name: found.entry.name, source })
    }

    /// What is wrong with options that [`resolve`](Self::resolve) accepts.
    ///
    /// # Errors
    /// [`BuildError`] as there.
    pub fn check<S: Slot>(&self, name: &str, options: Value) -> Result<Vec<OptionProblem>, BuildError> {
        let found = self.find::<S>(name)?;
        (found.check)(options).map_err(|source| BuildError::Options { slot: S::NAME, name: found.entry.name, source })
    }

    /// Builds a plugin from its options; `null` stands for no options.
    ///
    /// # Errors
    /// [`BuildError`] if there is no such plugin, it does not accept the options, or cannot be built with them.
    pub fn build<S: Slot>(
        &self,
        name: &str,
        options: Value,
        cx: &mut S::Context<'_>,
    ) -> Result<Box<S::Object>, BuildError> {
        (self.find::<S>(name)?.build)(options, cx)
    }

    fn find<S: Slot>(&self, name: &str) -> Result<&Registered<S>, BuildError> {
        self.table::<S>().and_then(|table| table.get(name)).ok_or_else(|| {
            let known: Vec<&'static str> = self.entries::<S>().map(|entry| entry.name).collect();
            let nearest = nearest(name, known.iter().copied()).map(str::to_owned);
            BuildError::Unknown { slot: S::NAME, name: name.to_owned(), known, nearest }
        })
    }

    fn table<S: Slot>(&self) -> Option<&Table<S>> {
        self.tables.get(&TypeId::of::<S>())?.downcast_ref()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("slots", &self.tables.len()).finish_non_exhaustive()
    }
}

/// Options from their JSON; `null` stands for none.
fn parse<C: DeserializeOwned>(options: Value) -> Result<C, serde_json::Error> {
    serde_json::from_value(if options.is_null() { Value::Object(serde_json::Map::new()) } else { options })
}

/// The schema of options, without references to elsewhere.
fn schema<C: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    settings.into_generator().into_root_schema_for::<C>().to_value()
}

/// The first paragraph of a schema's description, on one line.
fn summary(schema: &Value) -> String {
    let description = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    let paragraph = description.split("\n\n").next().unwrap_or_default();
    paragraph.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A plugin that cannot be registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The name is taken.
    #[error("register {slot} `{name}`: there is one of this name already")]
    Duplicate {
        /// The slot.
        slot: &'static str,
        /// The name.
        name: &'static str,
    },
    /// The example cannot be written as JSON.
    #[error("write the example of {slot} `{name}`")]
    Example {
        /// The slot.
        slot: &'static str,
        /// The plugin.
        name: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// A plugin that cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No plugin of that name.
    #[error("find {slot} `{name}`{} (known: {})", did_you_mean(nearest), known.join(", "))]
    Unknown {
        /// The slot.
        slot: &'static str,
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<&'static str>,
        /// The one that was probably meant.
        nearest: Option<String>,
    },
    /// Options that the plugin does not accept.
    #[error("read the options of {slot} `{name}`")]
    Options {
        /// The slot.
        slot: &'static str,
        /// The plugin.
        name: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// An option that does not fit the model.
    #[error("use option `{key}`: {message}")]
    Option {
        /// The option.
        key: &'static str,
        /// What is wrong.
        message: String,
    },
    /// A parameter that cannot be added.
    #[error("add what trains")]
    Parameter(#[from] AddError),
    /// A parameter that cannot be initialised.
    #[error("initialise what trains")]
    Init(#[from] InitError),
    /// libtorch refused.
    #[error("build the plugin")]
    Torch(#[from] TchError),
    /// A reason of the plugin's own.
    #[error("build the plugin")]
    Other(#[source] Box<dyn Error + Send + Sync>),
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}
