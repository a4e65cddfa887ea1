use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Problem with one option of a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionProblem {
    /// The option, for example `labels`.
    pub key: String,
    /// Description, for example ``expected different names, found `good` twice``.
    pub message: String,
}

/// Name, documentation and options of one plugin.
#[derive(Clone)]
#[non_exhaustive]
pub struct Entry {
    /// Name after `use:` in a pipeline file.
    pub name: &'static str,
    /// Earlier names, which are found but not listed.
    pub aliases: &'static [&'static str],
    /// First paragraph of the documentation of its options.
    pub summary: String,
    /// JSON schema of its options, without references to other schemas.
    pub schema: Value,
    /// Example of valid options.
    pub example: Value,
    resolve: fn(Value) -> Result<Value, serde_json::Error>,
    check: Arc<Check>,
}

type Check = dyn Fn(Value) -> Result<Vec<OptionProblem>, serde_json::Error> + Send + Sync;

impl Entry {
    /// Describes the plugin `name` by its options type. `check` returns the problems of well-formed options.
    ///
    /// # Errors
    /// [`serde_json::Error`] if the example has no JSON form.
    pub fn new<C: DeserializeOwned + Serialize + JsonSchema + 'static>(
        name: &'static str,
        example: &C,
        check: fn(&C) -> Vec<OptionProblem>,
    ) -> Result<Self, serde_json::Error> {
        let schema = schema_of::<C>();
        let example = serde_json::to_value(example)?;
        Ok(Self {
            name,
            aliases: &[],
            summary: summary(&schema),
            schema,
            example,
            resolve: |options| serde_json::to_value(parse::<C>(options)?),
            check: Arc::new(move |options: Value| parse::<C>(options).map(|options| check(&options))),
        })
    }

    /// Adds earlier names of the plugin.
    #[must_use]
    pub fn with_aliases(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    /// True if this is the name or an earlier name of the plugin.
    pub fn is_named(&self, name: &str) -> bool {
        self.name == name || self.aliases.contains(&name)
    }

    /// Returns the options as the plugin reads them, with every default filled in.
    ///
    /// # Errors
    /// [`serde_json::Error`] if the plugin does not accept them.
    pub fn resolve(&self, options: Value) -> Result<Value, serde_json::Error> {
        (self.resolve)(options)
    }

    /// Returns the problems of options that [`resolve`](Self::resolve) accepts.
    ///
    /// # Errors
    /// [`serde_json::Error`] if the plugin does not accept them.
    pub fn check(&self, options: Value) -> Result<Vec<OptionProblem>, serde_json::Error> {
        (self.check)(options)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("name", &self.name).field("summary", &self.summary).finish_non_exhaustive()
    }
}

/// Reads options from JSON; `null` stands for no options.
///
/// # Errors
/// [`serde_json::Error`] if `C` does not accept them.
pub fn parse<C: DeserializeOwned>(options: Value) -> Result<C, serde_json::Error> {
    serde_json::from_value(if options.is_null() { Value::Object(Map::new()) } else { options })
}

/// Returns the JSON schema of a type, without references to other schemas.
pub fn schema_of<C: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    settings.into_generator().into_root_schema_for::<C>().to_value()
}

/// First paragraph of a schema's description, on one line.
fn summary(schema: &Value) -> String {
    let description = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    let paragraph = description.split("\n\n").next().unwrap_or_default();
    paragraph.split_whitespace().collect::<Vec<_>>().join(" ")
}
