//! One value of one key, and its place in the sweep.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::diagnose::Finding;
use crate::path::KeyPath;
use crate::words::show;

/// Value of a key in one run of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    /// Path of the key, for example `optimizer.with.lr`.
    pub key: String,
    /// Value.
    pub value: Value,
    /// Place in the sweep.
    #[serde(skip)]
    pub(crate) place: KeyPath,
}

impl Setting {
    /// True if the key is a seed. Runs that differ in seeds only are repetitions of one experiment.
    pub fn is_seed(&self) -> bool {
        self.key.rsplit('.').next() == Some("seed")
    }

    /// Key and value as text, for example `train.seed 3`.
    pub fn describe(&self) -> String {
        format!("{} {}", self.key, self.text())
    }

    /// Value as short text: `lora r=8` for a plugin with options, `0.003`, `[a, b]`.
    pub fn text(&self) -> String {
        short(&self.value)
    }

    pub(crate) fn path(&self) -> KeyPath {
        KeyPath::keys(self.key.split('.'))
    }
}

fn short(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(fields) => match fields.get("use").and_then(Value::as_str) {
            Some(name) => {
                let options = fields.get("with").and_then(Value::as_object).into_iter().flat_map(Map::iter);
                let options = options.map(|(key, value)| format!(" {key}={}", short(value)));
                format!("{name}{}", options.collect::<String>())
            }
            None => {
                let fields: Vec<String> = fields.iter().map(|(key, value)| format!("{key}={}", short(value))).collect();
                fields.join(" ")
            }
        },
        Value::Array(entries) => format!("[{}]", entries.iter().map(short).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

/// True if `key` is the path of a value inside of the value at `outer`.
pub(crate) fn below(key: &str, outer: &str) -> bool {
    key.strip_prefix(outer).is_some_and(|suffix| suffix.starts_with('.'))
}

/// Sets the value in the pipeline. Missing maps on the way are added.
pub(crate) fn apply(pipeline: &mut Value, setting: &Setting) -> Result<(), Finding> {
    let mut value = pipeline;
    let mut path = KeyPath::root();
    for segment in setting.key.split('.') {
        if value.is_null() {
            *value = Value::Object(Map::new());
        }
        value = match value {
            Value::Object(fields) => fields.entry(segment).or_insert(Value::Null),
            Value::Array(entries) => {
                let count = entries.len();
                match segment.parse::<usize>() {
                    Ok(index) if index < count => &mut entries[index],
                    _ => {
                        let message = format!("expected an index below {count} after `{path}`, found `{segment}`");
                        return Err(Finding::new(setting.path(), message));
                    }
                }
            }
            other => {
                let message = format!("expected a key of a map, but `{path}` is {}", show(other));
                return Err(Finding::new(setting.path(), message));
            }
        };
        path = path.key(segment);
    }
    *value = setting.value.clone();
    Ok(())
}
