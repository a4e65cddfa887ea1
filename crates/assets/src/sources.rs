use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Source;

/// One source, or several in the order of preference. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sources(Vec<Source>);

impl Sources {
    /// Creates a list of sources, the preferred one first.
    ///
    /// # Errors
    /// [`NoSourceError`] if the list is empty.
    pub fn new(sources: Vec<Source>) -> Result<Self, NoSourceError> {
        if sources.is_empty() { Err(NoSourceError) } else { Ok(Self(sources)) }
    }
}

impl Deref for Sources {
    type Target = [Source];

    fn deref(&self) -> &[Source] {
        &self.0
    }
}

impl From<Source> for Sources {
    fn from(source: Source) -> Self {
        Self(vec![source])
    }
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(Source::to_string).collect();
        f.write_str(&texts.join(", else "))
    }
}

impl Serialize for Sources {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            many => many.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Sources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrMany)
    }
}

struct OneOrMany;

impl<'de> Visitor<'de> for OneOrMany {
    type Value = Sources;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a source or a list of sources")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Sources, E> {
        text.parse::<Source>().map(Sources::from).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Sources, A::Error> {
        let sources = Vec::deserialize(SeqAccessDeserializer::new(list))?;
        Sources::new(sources).map_err(A::Error::custom)
    }
}

impl JsonSchema for Sources {
    fn schema_name() -> Cow<'static, str> {
        "Sources".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let source = generator.subschema_for::<Source>();
        json_schema!({
            "description": "One source, or a list of sources of which the first available one is used.",
            "anyOf": [source, { "type": "array", "items": source, "minItems": 1 }],
        })
    }
}

/// Empty list of sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("choose a source: the list is empty")]
pub struct NoSourceError;

#[cfg(test)]
mod tests {
    use super::*;

    fn from_json(text: &str) -> Result<Sources, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn serde_reads_one_or_many() {
        for text in ["\"hub:a/b\"", "[\"hub:a/b\",\"x.csv\"]"] {
            let sources = from_json(text).expect("sources");
            assert_eq!(serde_json::to_string(&sources).expect("json"), text);
        }
        let one = from_json("[\"hub:a/b\"]").expect("sources");
        assert_eq!(one, from_json("\"hub:a/b\"").expect("sources"));
        assert_eq!(from_json("[\"hub:a/b\",\"x.csv\"]").expect("sources").to_string(), "hub:a/b, else x.csv");
    }

    #[test]
    fn deserialize_invalid_names_problem() {
        assert!(from_json("[]").expect_err("empty").contains("the list is empty"));
        assert!(from_json("3").expect_err("a number").contains("a source or a list of sources"));
        assert!(from_json("[\"hub:a\"]").expect_err("no name").contains("write hub:OWNER/NAME"));
    }

    #[test]
    fn schema_has_both_forms() {
        let schema = schemars::schema_for!(Sources).to_value();
        assert_eq!(schema["anyOf"][1]["type"], "array");
        assert_eq!(schema["anyOf"][1]["minItems"], 1);
    }
}
