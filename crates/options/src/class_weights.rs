//! Weights of labels in the loss.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Factors of the loss by label.
#[derive(Debug, Clone, PartialEq)]
pub enum ClassWeights {
    /// Weights that give all labels the same influence.
    Balanced,
    /// One weight for each label.
    Each(Vec<f64>),
}

impl Serialize for ClassWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            ClassWeights::Balanced => serializer.serialize_str(BALANCED),
            ClassWeights::Each(weights) => weights.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for ClassWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ClassWeightsVisitor)
    }
}

struct ClassWeightsVisitor;

impl<'de> Visitor<'de> for ClassWeightsVisitor {
    type Value = ClassWeights;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`balanced` or one number to a label")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ClassWeights, E> {
        if text == BALANCED { Ok(ClassWeights::Balanced) } else { Err(E::invalid_value(Unexpected::Str(text), &self)) }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, numbers: A) -> Result<ClassWeights, A::Error> {
        Deserialize::deserialize(SeqAccessDeserializer::new(numbers)).map(ClassWeights::Each)
    }
}

impl JsonSchema for ClassWeights {
    fn schema_name() -> Cow<'static, str> {
        "ClassWeights".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "string", "enum": [BALANCED] },
                { "type": "array", "items": { "type": "number", "minimum": 0.0 }, "minItems": 2 },
            ]
        })
    }
}

const BALANCED: &str = "balanced";
