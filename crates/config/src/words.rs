//! Descriptions of schemas and values for messages.

use serde_json::Value;

/// Description of a schema, to follow "expected".
pub(crate) fn describe(schema: &Value) -> String {
    if let Some(choices) = schema["enum"].as_array() {
        return one_of(choices);
    }
    if let Some(constant) = schema.get("const") {
        return plain(constant);
    }
    for keyword in ["oneOf", "anyOf"] {
        if let Some(branches) = schema[keyword].as_array() {
            let branches = branches.iter().filter(|branch| branch["type"] != "null");
            return either(branches.map(describe).collect());
        }
    }
    either(types(schema).into_iter().filter(|&kind| kind != "null").map(|kind| describe_type(kind, schema)).collect())
}

pub(crate) fn show(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) if text.is_empty() => "empty text".to_owned(),
        Value::String(text) if text.chars().count() > 60 => {
            format!("the text \"{}…\"", text.chars().take(60).collect::<String>())
        }
        Value::String(text) => format!("the text \"{text}\""),
        Value::Array(entries) if entries.is_empty() => "an empty list".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a map".to_owned(),
    }
}

fn types(schema: &Value) -> Vec<&str> {
    match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn describe_type(kind: &str, schema: &Value) -> String {
    match kind {
        "integer" => format!("a whole number{}", limits(schema)),
        "number" => format!("a number{}", limits(schema)),
        "string" if at_least_one(schema, "minLength") => "non-empty text".to_owned(),
        "string" => "text".to_owned(),
        "boolean" => "true or false".to_owned(),
        "array" => describe_list(schema),
        "object" => describe_map(schema),
        other => other.to_owned(),
    }
}

fn describe_list(schema: &Value) -> String {
    let list = if at_least_one(schema, "minItems") { "a non-empty list" } else { "a list" };
    match describe(&schema["items"]).as_str() {
        "" => list.to_owned(),
        items => format!("{list} of {items}"),
    }
}

/// Description of a map by its required keys, or else by some of its optional keys.
fn describe_map(schema: &Value) -> String {
    let mut keys: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut more = false;
    if keys.is_empty() {
        let known = schema["properties"].as_object();
        keys.extend(known.into_iter().flatten().map(|(key, _)| key.as_str()).take(3));
        more = known.is_some_and(|known| known.len() > keys.len());
    }
    match keys.as_slice() {
        [] => "a map".to_owned(),
        keys => format!("a map with `{}`{}", keys.join("`, `"), if more { ", …" } else { "" }),
    }
}

fn at_least_one(schema: &Value, keyword: &str) -> bool {
    schema[keyword].as_u64().is_some_and(|least| least > 0)
}

fn limits(schema: &Value) -> String {
    let limit = |keyword: &str, words: &str| schema.get(keyword).map(|limit| format!("{words} {}", plain(limit)));
    let from = limit("minimum", "of at least").or_else(|| limit("exclusiveMinimum", "above"));
    // The maximum of an integer type is not worth a message.
    let small = schema["maximum"].as_f64().is_some_and(|maximum| maximum < 4e9);
    let to = limit("maximum", "at most").filter(|_| small).or_else(|| limit("exclusiveMaximum", "below"));
    match (from, to) {
        (Some(from), Some(to)) => format!(" {from} and {to}"),
        (from, to) => from.or(to).map(|limit| format!(" {limit}")).unwrap_or_default(),
    }
}

fn one_of(choices: &[Value]) -> String {
    match choices {
        [] => "nothing".to_owned(),
        [only] => plain(only),
        many => format!("one of {}", many.iter().map(plain).collect::<Vec<_>>().join(", ")),
    }
}

fn either(mut words: Vec<String>) -> String {
    words.retain(|words| !words.is_empty());
    words.dedup();
    match words.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
    }
}

/// Formats text without quotes and whole numbers without a fraction.
fn plain(value: &Value) -> String {
    match (value, value.as_f64()) {
        (Value::String(text), _) => text.clone(),
        (_, Some(number)) => number.to_string(),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn schemas_in_words() {
        for (schema, expected) in [
            (json!({ "type": "integer", "minimum": 1 }), "a whole number of at least 1"),
            (
                json!({ "type": ["number", "null"], "exclusiveMinimum": 0.0, "exclusiveMaximum": 1.0 }),
                "a number above 0 and below 1",
            ),
            (json!({ "type": "string", "enum": ["csv", "tsv"] }), "one of csv, tsv"),
            (json!({ "const": "f32" }), "f32"),
            (
                json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] }),
                "text or a list of text",
            ),
            (
                json!({ "oneOf": [{ "enum": ["end"] }, { "type": "object", "properties": { "steps": {} } }] }),
                "end or a map with `steps`",
            ),
            (json!({ "type": "boolean" }), "true or false"),
            (
                json!({ "type": "array", "minItems": 1, "items": { "type": "string", "minLength": 1 } }),
                "a non-empty list of non-empty text",
            ),
            (json!({ "type": "object", "properties": { "a": {}, "b": {} }, "required": ["b"] }), "a map with `b`"),
            (
                json!({ "type": "object", "properties": { "a": {}, "b": {}, "c": {}, "d": {} } }),
                "a map with `a`, `b`, `c`, …",
            ),
            (json!({ "type": "object" }), "a map"),
        ] {
            assert_eq!(describe(&schema), expected, "{schema}");
        }
    }

    #[test]
    fn values_in_words() {
        for (value, expected) in [
            (json!(null), "nothing"),
            (json!(3), "3"),
            (json!("3"), "the text \"3\""),
            (json!([]), "an empty list"),
            (json!({}), "a map"),
        ] {
            assert_eq!(show(&value), expected);
        }
    }
}
