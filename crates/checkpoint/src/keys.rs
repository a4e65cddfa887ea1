//! The keys of a configuration, `config.json` or GGUF metadata. Every error names file and key.

use std::ops::RangeInclusive;
use std::path::Path;

use sepal_core::{MAX_BLOCKS, MAX_HIDDEN};
use serde_json::{Map, Value};

use crate::error::OpenError;

/// Valid counts: far above those of any model, and small enough that sums do not overflow.
const COUNTS: RangeInclusive<usize> = 1..=1 << 24;

/// The most experts of a block: far above those of any model. Each has an entry among the tensors.
const MAX_EXPERTS: usize = 4096;

/// An object of a configuration file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keys<'a> {
    path: &'a Path,
    /// Key of the object that holds the map, with a dot, for messages.
    scope: &'a str,
    /// Prefix of each requested key.
    prefix: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(path: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self { path, scope: "", prefix: "", map }
    }

    /// The keys of an object in this one; `scope` is its key and a dot.
    pub(crate) fn inside(self, scope: &'a str, map: &'a Map<String, Value>) -> Self {
        Self { scope, map, ..self }
    }

    /// The keys of the same map that begin with `prefix`, requested without it.
    pub(crate) fn with_prefix(self, prefix: &'a str) -> Self {
        Self { prefix, ..self }
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>, OpenError> {
        self.optional(key, "an object", Value::as_object)
    }

    /// A count of at least one. A list is valid if it has the same value for every block.
    pub(crate) fn count(&self, key: &str) -> Result<usize, OpenError> {
        self.optional_count(key)?.ok_or_else(|| self.missing(key))
    }

    pub(crate) fn optional_count(&self, key: &str) -> Result<Option<usize>, OpenError> {
        let whole = |value: &Value| {
            value.as_u64().and_then(|count| usize::try_from(count).ok()).filter(|count| COUNTS.contains(count))
        };
        self.optional(key, "a whole number from 1 to 16777216, the same for all blocks", |value| match value {
            Value::Array(values) if values.windows(2).all(|pair| pair[0] == pair[1]) => values.first().and_then(whole),
            value => whole(value),
        })
    }

    /// A count under the first of `keys` that is present and not `null`, else `default`.
    pub(crate) fn count_of(&self, keys: &[&str], default: usize) -> Result<usize, OpenError> {
        let stated = keys.iter().find(|key| self.get(key).is_some());
        match stated.or_else(|| keys.iter().find(|key| self.has(key))) {
            Some(key) => self.count(key),
            None => Ok(default),
        }
    }

    /// A number of blocks under the first of `keys` that is present and not `null`, else `default`.
    pub(crate) fn blocks_of(&self, keys: &[&str], default: usize) -> Result<usize, OpenError> {
        self.at_most(keys, self.count_of(keys, default)?, MAX_BLOCKS, "blocks")
    }

    /// A number of experts under the first of `keys` that is present and not `null`, else `default`.
    pub(crate) fn experts_of(&self, keys: &[&str], default: usize) -> Result<usize, OpenError> {
        self.at_most(keys, self.count_of(keys, default)?, MAX_EXPERTS, "experts")
    }

    /// A size of hidden states under the first of `keys` that is present and not `null`, else `default`.
    pub(crate) fn hidden_of(&self, keys: &[&str], default: usize) -> Result<usize, OpenError> {
        self.at_most(keys, self.count_of(keys, default)?, MAX_HIDDEN, "numbers")
    }

    /// The count that is under the first of `keys` that is present, unless it is greater than that of any model.
    pub(crate) fn at_most(&self, keys: &[&str], count: usize, greatest: usize, noun: &str) -> Result<usize, OpenError> {
        match keys.iter().find(|key| self.get(key).is_some()) {
            Some(key) if count > greatest => Err(self.wrong(key, format!("at most {greatest} {noun}"))),
            _ => Ok(count),
        }
    }

    /// A count; `default` if the key is absent, `None` for `null`.
    pub(crate) fn count_unless_null(&self, key: &str, default: usize) -> Result<Option<usize>, OpenError> {
        if self.has(key) { self.optional_count(key) } else { Ok(Some(default)) }
    }

    pub(crate) fn positive(&self, key: &str) -> Result<f64, OpenError> {
        self.optional_positive(key)?.ok_or_else(|| self.missing(key))
    }

    pub(crate) fn optional_positive(&self, key: &str) -> Result<Option<f64>, OpenError> {
        self.optional(key, "a positive number", |value| {
            value.as_f64().filter(|&number| number > 0.0 && number.is_finite())
        })
    }

    /// A positive number under the first of `keys` that is present and not `null`.
    pub(crate) fn positive_of(&self, keys: &[&str]) -> Result<Option<f64>, OpenError> {
        keys.iter().find(|key| self.get(key).is_some()).map_or(Ok(None), |key| self.optional_positive(key))
    }

    pub(crate) fn text(&self, key: &str) -> Result<&'a str, OpenError> {
        self.optional_text(key)?.ok_or_else(|| self.missing(key))
    }

    pub(crate) fn optional_text(&self, key: &str) -> Result<Option<&'a str>, OpenError> {
        self.optional(key, "a text", Value::as_str)
    }

    /// True if the key is present and true.
    pub(crate) fn flag(&self, key: &str) -> Result<bool, OpenError> {
        Ok(self.optional_flag(key)?.unwrap_or(false))
    }

    pub(crate) fn optional_flag(&self, key: &str) -> Result<Option<bool>, OpenError> {
        self.optional(key, "true or false", Value::as_bool)
    }

    /// A flag; `default` if the key is absent, false for `null`.
    pub(crate) fn flag_unless_null(&self, key: &str, default: bool) -> Result<bool, OpenError> {
        if self.has(key) { self.flag(key) } else { Ok(default) }
    }

    pub(crate) fn optional_index(&self, key: &str) -> Result<Option<usize>, OpenError> {
        self.optional(key, "a whole number", |value| value.as_u64().and_then(|index| usize::try_from(index).ok()))
    }

    /// The value; `None` for `null`.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(&self.full(key)).filter(|value| !value.is_null())
    }

    /// True if the key is present, also with `null`.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.map.contains_key(&self.full(key))
    }

    pub(crate) fn missing(&self, key: &str) -> OpenError {
        OpenError::MissingKey { path: self.path.to_owned(), key: self.display(key) }
    }

    pub(crate) fn wrong(&self, key: &str, expected: impl Into<String>) -> OpenError {
        let (path, found) = (self.path.to_owned(), self.shown(key));
        OpenError::WrongKey { path, key: self.display(key), expected: expected.into(), found }
    }

    pub(crate) fn unsupported(&self, key: &str, supported: impl Into<String>) -> OpenError {
        let (path, found) = (self.path.to_owned(), self.shown(key));
        OpenError::Unsupported { path, key: self.display(key), found, supported: supported.into() }
    }

    /// Error of weights that are quantized by the method `found`, as `key` says.
    pub(crate) fn quantized(&self, key: &str, found: String) -> OpenError {
        OpenError::Quantized { path: self.path.to_owned(), key: self.display(key), found }
    }

    fn optional<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, OpenError> {
        let value = self.get(key);
        value.map(|value| read(value).ok_or_else(|| self.wrong(key, expected))).transpose()
    }

    /// The key in the map.
    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The key in messages.
    fn display(&self, key: &str) -> String {
        format!("{}{}{key}", self.scope, self.prefix)
    }

    fn shown(&self, key: &str) -> String {
        self.map.get(&self.full(key)).map_or_else(|| "absent".to_owned(), Value::to_string)
    }
}
