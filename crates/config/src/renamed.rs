//! Keys of earlier versions: an error in a pipeline file, and converted in the record of a run.

use serde_json::{Map, Value, json};

use crate::path::KeyPath;

/// Text of the keys that replace a key of an earlier version.
pub(crate) fn successor(key: &KeyPath) -> Option<&'static str> {
    (*key == KeyPath::keys(["data", "rows_per_class"])).then_some("`data.few_shot: {per_class: ROWS}`")
}

/// Converts keys that an earlier version wrote.
pub(crate) fn convert(values: &mut Map<String, Value>) {
    let Some(data) = values.get_mut("data").and_then(Value::as_object_mut) else { return };
    if let Some(rows) = data.shift_remove("rows_per_class").filter(|rows| !rows.is_null()) {
        data.insert("few_shot".to_owned(), json!({ "per_class": rows }));
    }
}
