use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use sepal_core::WindowPool;
use sepal_tokenize::Windows;
use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

/// Use of texts that are longer than `max_length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LongTexts {
    /// Truncation.
    #[default]
    Cut,
    /// Windows, whose logits are joined.
    Windows(WindowsSpec),
}

/// Windows of a long text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WindowsSpec {
    /// Tokens of the text that neighbouring windows share.
    pub stride: usize,
    /// Joining of the logits of the windows to those of the text.
    pub pool: PoolSpec,
    /// Maximum number of windows of one text. A text of more is an error.
    #[schemars(range(min = 1))]
    pub max_windows: usize,
}

impl Default for WindowsSpec {
    fn default() -> Self {
        let Windows { stride, max_windows } = Windows::default();
        Self { stride, pool: PoolSpec::default(), max_windows }
    }
}

/// Joining of the logits of windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolSpec {
    /// Mean of the logits.
    #[default]
    Mean,
    /// Largest logit of each label.
    Max,
}

impl LongTexts {
    pub(crate) fn is_cut(&self) -> bool {
        *self == Self::Cut
    }

    /// Windows of the tokenizer; `None` for truncation.
    pub fn windows(self) -> Option<Windows> {
        match self {
            Self::Cut => None,
            Self::Windows(WindowsSpec { stride, max_windows, .. }) => Some(Windows { stride, max_windows }),
        }
    }

    /// Joining of the logits of windows.
    pub fn pool(self) -> WindowPool {
        match self {
            Self::Windows(WindowsSpec { pool: PoolSpec::Max, .. }) => WindowPool::Max,
            Self::Windows(_) | Self::Cut => WindowPool::Mean,
        }
    }

    /// Description for people; `None` for truncation.
    pub fn description(self) -> Option<String> {
        let Self::Windows(WindowsSpec { stride, pool, .. }) = self else { return None };
        let pool = match pool {
            PoolSpec::Mean => "the mean",
            PoolSpec::Max => "the largest",
        };
        Some(format!("windows that share {stride} tokens, and {pool} of their logits"))
    }
}

impl Serialize for LongTexts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Cut => serializer.serialize_str("cut"),
            Self::Windows(windows) => serializer.collect_map([("windows", windows)]),
        }
    }
}

impl<'de> Deserialize<'de> for LongTexts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// Form with options.
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct WithOptions {
            windows: WindowsSpec,
        }
        match Value::deserialize(deserializer)? {
            Value::String(text) if text == "cut" => Ok(Self::Cut),
            Value::String(text) if text == "windows" => Ok(Self::Windows(WindowsSpec::default())),
            value @ Value::Object(_) => {
                let WithOptions { windows } = serde_json::from_value(value).map_err(Error::custom)?;
                Ok(Self::Windows(windows))
            }
            other => Err(Error::custom(format!("expected `cut`, `windows` or options of windows, found {other}"))),
        }
    }
}

/// Schema of [`LongTexts`].
pub(crate) fn long_texts(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "oneOf": [
            {
                "type": "string",
                "enum": ["cut", "windows"],
                "enumDescriptions": ["Truncation.", "Windows that share no tokens, and the mean of their logits."],
            },
            {
                "type": "object",
                "properties": { "windows": generator.subschema_for::<WindowsSpec>() },
                "required": ["windows"],
                "additionalProperties": false,
                "description": "Windows with options.",
            },
        ],
        "default": "cut",
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn long_texts_have_a_short_form() {
        let read = |value: Value| serde_json::from_value::<LongTexts>(value);
        let windows = |stride, pool| LongTexts::Windows(WindowsSpec { stride, pool, ..WindowsSpec::default() });
        assert_eq!(read(json!("cut")).expect("read"), LongTexts::Cut);
        assert_eq!(read(json!("windows")).expect("read"), windows(0, PoolSpec::Mean));
        let found = read(json!({ "windows": { "stride": 32, "pool": "max" } })).expect("read");
        assert_eq!(found, windows(32, PoolSpec::Max));
        let few = read(json!({ "windows": { "max_windows": 9 } })).expect("read");
        assert_eq!(few.windows(), Some(Windows { stride: 0, max_windows: 9 }));
        for found in [LongTexts::Cut, found, few] {
            let written = serde_json::to_value(found).expect("written");
            assert_eq!(read(written).expect("read"), found, "a written value reads as itself");
        }
        for wrong in [json!("split"), json!({ "windows": { "strid": 1 } }), json!({ "cut": {} }), json!(3)] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
