//! The vocabulary inside a GGUF file.

use std::collections::HashMap;
use std::path::Path;

use sepal_tokenize::GgufVocab;

use super::value::Value;
use crate::error::OpenError;

/// The values of the `tokenizer.ggml.*` keys.
pub(super) fn vocab(path: &Path, metadata: &HashMap<String, Value>) -> Result<GgufVocab, OpenError> {
    let keys = VocabKeys { path, metadata };
    Ok(GgufVocab {
        model: keys.required("model", "a text", text)?,
        pre: keys.optional("pre", "a text", text)?,
        tokens: keys.required("tokens", "a list of texts", |value| list(value, text))?,
        scores: keys.optional("scores", "a list of numbers", |value| list(value, number))?.unwrap_or_default(),
        merges: keys.optional("merges", "a list of texts", |value| list(value, text))?.unwrap_or_default(),
        token_types: keys
            .optional("token_type", "a list of whole numbers", |value| list(value, id))?
            .unwrap_or_default(),
        add_bos: keys.optional("add_bos_token", "true or false", flag)?,
        add_eos: keys.optional("add_eos_token", "true or false", flag)?,
        add_space_prefix: keys.optional("add_space_prefix", "true or false", flag)?,
        bos_id: keys.optional("bos_token_id", "a token id", id)?,
        eos_id: keys.optional("eos_token_id", "a token id", id)?,
        unk_id: keys.optional("unknown_token_id", "a token id", id)?,
    })
}

struct VocabKeys<'a> {
    path: &'a Path,
    metadata: &'a HashMap<String, Value>,
}

impl VocabKeys<'_> {
    fn optional<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, OpenError> {
        let key = format!("tokenizer.ggml.{key}");
        let Some(value) = self.metadata.get(&key) else {
            return Ok(None);
        };
        let wrong = || OpenError::WrongKey {
            path: self.path.to_owned(),
            key,
            expected: expected.to_owned(),
            found: format!("of type {}", value.type_name()),
        };
        read(value).ok_or_else(wrong).map(Some)
    }

    fn required<T>(&self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<T, OpenError> {
        let missing = || OpenError::MissingKey { path: self.path.to_owned(), key: format!("tokenizer.ggml.{key}") };
        self.optional(key, expected, read)?.ok_or_else(missing)
    }
}

fn text(value: &Value) -> Option<String> {
    if let Value::String(text) = value { Some(text.clone()) } else { None }
}

fn flag(value: &Value) -> Option<bool> {
    if let Value::Bool(flag) = value { Some(*flag) } else { None }
}

fn number(value: &Value) -> Option<f32> {
    if let Value::F32(number) = value { Some(*number) } else { None }
}

fn id(value: &Value) -> Option<u32> {
    u32::try_from(value.to_integer()?).ok()
}

fn list<T>(value: &Value, item: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    if let Value::Array(values) = value { values.iter().map(item).collect() } else { None }
}
