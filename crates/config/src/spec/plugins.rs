//! Choices of plugins with their options.

use std::fmt;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

/// A plugin and its options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PluginSpec {
    /// Name of the plugin.
    #[serde(rename = "use")]
    pub name: String,
    /// Options, with every default filled in.
    #[serde(default)]
    pub with: Map<String, Value>,
}

impl PluginSpec {
    /// Options as JSON, for the registry.
    pub fn options(&self) -> Value {
        Value::Object(self.with.clone())
    }
}

/// A tuning mode, or several that train together: at least one.
///
/// In a pipeline file it is a plugin, or a list of plugins. One mode is always written as a plugin.
#[derive(Debug, Clone, PartialEq)]
pub struct TuningSpec(Vec<PluginSpec>);

impl TuningSpec {
    /// The modes, in the order of the file.
    pub fn modes(&self) -> &[PluginSpec] {
        &self.0
    }

    /// The modes, for changes.
    pub fn modes_mut(&mut self) -> &mut [PluginSpec] {
        &mut self.0
    }

    /// Names of the modes, separated by commas.
    pub fn names(&self) -> String {
        self.0.iter().map(|mode| mode.name.as_str()).collect::<Vec<_>>().join(",")
    }
}

impl Serialize for TuningSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [mode] => mode.serialize(serializer),
            modes => modes.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for TuningSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TuningVisitor)
    }
}

struct TuningVisitor;

impl<'de> Visitor<'de> for TuningVisitor {
    type Value = TuningSpec;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tuning mode or a list of tuning modes")
    }

    fn visit_map<A: MapAccess<'de>>(self, mode: A) -> Result<TuningSpec, A::Error> {
        Ok(TuningSpec(vec![PluginSpec::deserialize(MapAccessDeserializer::new(mode))?]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, modes: A) -> Result<TuningSpec, A::Error> {
        match Vec::<PluginSpec>::deserialize(SeqAccessDeserializer::new(modes))? {
            modes if modes.is_empty() => Err(A::Error::custom("expected at least one tuning mode, found none")),
            modes => Ok(TuningSpec(modes)),
        }
    }
}

/// An optimizer, its options, and groups of parameters with options of their own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSpec {
    /// Name of the optimizer.
    #[serde(rename = "use")]
    pub name: String,
    /// Options, with every default filled in.
    #[serde(default)]
    pub with: Map<String, Value>,
    // Not written without groups: checkpoints hold a digest of the written form.
    /// Groups of parameters with options of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<ParameterGroup>,
}

/// Parameters with options of their own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParameterGroup {
    /// Patterns of the parameters' names, in which `*` stands for any text and `?` for one character.
    pub params: Vec<String>,
    /// Options that differ from those of the other parameters.
    #[serde(flatten)]
    pub with: Map<String, Value>,
}

impl OptimizerSpec {
    /// Options of the parameters outside of all groups as JSON, for the registry.
    pub fn options(&self) -> Value {
        Value::Object(self.with.clone())
    }

    /// Options of the parameters in `group` as JSON, for the registry.
    pub fn options_of(&self, group: &ParameterGroup) -> Value {
        overridden(&self.with, &group.with)
    }
}

/// Options with those of a group over them.
pub(crate) fn overridden(options: &Map<String, Value>, group: &Map<String, Value>) -> Value {
    let mut options = options.clone();
    options.extend(group.iter().map(|(key, value)| (key.clone(), value.clone())));
    Value::Object(options)
}
