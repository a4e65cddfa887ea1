//! Values that violate a JSON schema, for the keywords that the schemas of pipelines and plugins use.
//!
//! Those are the keywords of JSON Schema 2020-12 (<https://json-schema.org/draft/2020-12>) that schemars writes for options
//! without references. Other keywords are ignored: an option that they forbid is refused when it is read.

use std::collections::HashSet;

use regex::Regex;
use serde_json::{Map, Value};

use crate::path::KeyPath;

/// Value that violates one keyword of a schema.
#[derive(Debug)]
pub(crate) struct Violation<'a> {
    pub(crate) key: KeyPath,
    pub(crate) value: &'a Value,
    /// The schema with the keyword.
    pub(crate) schema: &'a Value,
    pub(crate) kind: Kind<'a>,
}

#[derive(Debug)]
pub(crate) enum Kind<'a> {
    /// Key that the map must not have.
    Unknown(&'a str),
    /// Key that the map lacks.
    Missing(&'a str),
    /// Value outside of all branches, with the violations of each.
    Branches(Vec<Vec<Violation<'a>>>),
    Repeated,
    Type,
    /// Whole number that no value of the option's type equals.
    Range,
    /// Value that is not the constant or none of the choices.
    Choice,
    Pattern,
    Other,
}

/// First entry of a list that equals an earlier one.
pub(crate) fn first_repeated(entries: &[Value]) -> Option<&Value> {
    let mut distinct = HashSet::new();
    entries.iter().find(|&entry| !distinct.insert(entry))
}

/// All violations of `schema` by `value`, which lies at `key`.
pub(crate) fn violations<'a>(schema: &'a Value, value: &'a Value, key: &KeyPath) -> Vec<Violation<'a>> {
    let mut violations = Vec::new();
    Checked { schema, value, key }.check(&mut violations);
    violations
}

fn is_valid(schema: &Value, value: &Value) -> bool {
    violations(schema, value, &KeyPath::root()).is_empty()
}

#[derive(Clone, Copy)]
struct Checked<'a, 'k> {
    schema: &'a Value,
    value: &'a Value,
    key: &'k KeyPath,
}

impl<'a> Checked<'a, '_> {
    fn check(self, found: &mut Vec<Violation<'a>>) {
        let keywords = match self.schema {
            Value::Object(keywords) => keywords,
            // Such a schema accepts nothing.
            Value::Bool(false) => return found.push(self.violation(Kind::Other)),
            _ => return,
        };
        for (keyword, operand) in keywords {
            match self.value {
                Value::Object(fields) => self.check_map(keyword, operand, fields, found),
                Value::Array(entries) => self.check_list(keyword, operand, entries, found),
                Value::String(text) => self.check_text(keyword, operand, text, found),
                Value::Number(number) => self.check_number(keyword, operand, number.as_f64(), found),
                Value::Null | Value::Bool(_) => {}
            }
            self.check_any(keyword, operand, found);
        }
    }

    /// Checks keywords for values of all types.
    fn check_any(self, keyword: &str, operand: &'a Value, found: &mut Vec<Violation<'a>>) {
        match keyword {
            "type" if !has_type(operand, self.value) => found.push(self.violation(Kind::Type)),
            "type" if is_out_of_range(self.schema, self.value) => found.push(self.violation(Kind::Range)),
            "const" if operand != self.value => found.push(self.violation(Kind::Choice)),
            "enum" if !list(operand).contains(self.value) => found.push(self.violation(Kind::Choice)),
            "allOf" => list(operand).iter().for_each(|schema| self.check_with(schema, found)),
            "anyOf" | "oneOf" => self.check_branches(keyword, list(operand), found),
            "if" => {
                let keyword = if is_valid(operand, self.value) { "then" } else { "else" };
                if let Some(schema) = self.schema.get(keyword) {
                    self.check_with(schema, found);
                }
            }
            _ => {}
        }
    }

    fn check_branches(self, keyword: &str, branches: &'a [Value], found: &mut Vec<Violation<'a>>) {
        let all: Vec<Vec<Violation<'a>>> =
            branches.iter().map(|schema| violations(schema, self.value, self.key)).collect();
        match all.iter().filter(|violations| violations.is_empty()).count() {
            0 => found.push(self.violation(Kind::Branches(all))),
            1 => {}
            _ if keyword == "anyOf" => {}
            _ => found.push(self.violation(Kind::Other)),
        }
    }

    fn check_map(
        self,
        keyword: &str,
        operand: &'a Value,
        fields: &'a Map<String, Value>,
        found: &mut Vec<Violation<'a>>,
    ) {
        match keyword {
            "required" => {
                let names = list(operand).iter().filter_map(Value::as_str).filter(|&name| !fields.contains_key(name));
                found.extend(names.map(|name| self.violation(Kind::Missing(name))));
            }
            "properties" => {
                for (name, schema) in operand.as_object().into_iter().flatten() {
                    if let Some(value) = fields.get(name) {
                        Checked { schema, value, key: &self.key.key(name) }.check(found);
                    }
                }
            }
            "additionalProperties" => {
                let is_known = |name: &str| self.schema["properties"].get(name).is_some();
                for (name, value) in fields.iter().filter(|(name, _)| !is_known(name)) {
                    match operand {
                        Value::Bool(false) => found.push(self.violation(Kind::Unknown(name))),
                        schema => Checked { schema, value, key: &self.key.key(name) }.check(found),
                    }
                }
            }
            _ => {}
        }
    }

    fn check_list(self, keyword: &str, operand: &'a Value, entries: &'a [Value], found: &mut Vec<Violation<'a>>) {
        let length = entries.len() as u64;
        match keyword {
            "items" => {
                for (i, value) in entries.iter().enumerate() {
                    Checked { schema: operand, value, key: &self.key.index(i) }.check(found);
                }
            }
            "minItems" if operand.as_u64().is_some_and(|least| length < least) => {
                found.push(self.violation(Kind::Other));
            }
            "maxItems" if operand.as_u64().is_some_and(|most| length > most) => found.push(self.violation(Kind::Other)),
            "uniqueItems" if *operand == Value::Bool(true) && first_repeated(entries).is_some() => {
                found.push(self.violation(Kind::Repeated));
            }
            _ => {}
        }
    }

    fn check_text(self, keyword: &str, operand: &'a Value, text: &str, found: &mut Vec<Violation<'a>>) {
        let length = || text.chars().count() as u64;
        match keyword {
            "minLength" if operand.as_u64().is_some_and(|least| length() < least) => {
                found.push(self.violation(Kind::Other));
            }
            "maxLength" if operand.as_u64().is_some_and(|most| length() > most) => {
                found.push(self.violation(Kind::Other))
            }
            "pattern" if operand.as_str().is_some_and(|pattern| !matches_pattern(pattern, text)) => {
                found.push(self.violation(Kind::Pattern));
            }
            _ => {}
        }
    }

    fn check_number(self, keyword: &str, operand: &'a Value, number: Option<f64>, found: &mut Vec<Violation<'a>>) {
        let Some((number, limit)) = number.zip(operand.as_f64()) else { return };
        let is_allowed = match keyword {
            "minimum" => number >= limit,
            "maximum" => number <= limit,
            "exclusiveMinimum" => number > limit,
            "exclusiveMaximum" => number < limit,
            _ => true,
        };
        if !is_allowed {
            found.push(self.violation(Kind::Other));
        }
    }

    /// Checks the same value with another schema.
    fn check_with(self, schema: &'a Value, found: &mut Vec<Violation<'a>>) {
        Checked { schema, ..self }.check(found);
    }

    fn violation(self, kind: Kind<'a>) -> Violation<'a> {
        Violation { key: self.key.clone(), value: self.value, schema: self.schema, kind }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// True for a part of the text that the pattern matches; an invalid pattern matches nothing.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    Regex::new(pattern).is_ok_and(|regex| regex.is_match(text))
}

/// True if the value has the type of the keyword `type`, or one of several.
fn has_type(types: &Value, value: &Value) -> bool {
    match types {
        Value::Array(types) => types.iter().any(|name| has_type(name, value)),
        name => match (name.as_str(), value) {
            (Some("integer"), Value::Number(number)) => number.as_f64().is_some_and(|float| float.fract() == 0.0),
            (Some("null"), Value::Null)
            | (Some("boolean"), Value::Bool(_))
            | (Some("number"), Value::Number(_))
            | (Some("string"), Value::String(_))
            | (Some("array"), Value::Array(_))
            | (Some("object"), Value::Object(_)) => true,
            _ => false,
        },
    }
}

/// True for a whole number that is outside of the option's type, and within the limits of its schema, which have violations of
/// their own.
fn is_out_of_range(schema: &Value, value: &Value) -> bool {
    let (Value::Number(number), Some([least, most])) = (value, whole_numbers(schema)) else { return false };
    let exact = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
    let limit = |keyword: &str| schema[keyword].as_f64();
    let is_beyond = |float: f64| {
        limit("minimum").is_some_and(|limit| float < limit) || limit("maximum").is_some_and(|limit| float > limit)
    };
    exact.is_none_or(|integer| integer < least || integer > most) && !number.as_f64().is_some_and(is_beyond)
}

/// First and last whole number of the schema: those of the option's type, or fewer by its limits. `None` if the schema is not
/// one of whole numbers.
pub(crate) fn whole_numbers(schema: &Value) -> Option<[i128; 2]> {
    let types = match &schema["type"] {
        Value::Array(types) => types.as_slice(),
        one => std::slice::from_ref(one),
    };
    let has = |name: &str| types.iter().any(|known| known == name);
    if !has("integer") || has("number") {
        return None;
    }
    let [least, most]: [i128; 2] = match schema["format"].as_str() {
        Some("uint8") => [0, u8::MAX.into()],
        Some("uint16") => [0, u16::MAX.into()],
        Some("uint32") => [0, u32::MAX.into()],
        Some("uint64" | "uint") => [0, u64::MAX.into()],
        Some("int8") => [i8::MIN.into(), i8::MAX.into()],
        Some("int16") => [i16::MIN.into(), i16::MAX.into()],
        Some("int32") => [i32::MIN.into(), i32::MAX.into()],
        Some("int64" | "int") => [i64::MIN.into(), i64::MAX.into()],
        _ => [i64::MIN.into(), u64::MAX.into()],
    };
    let limit = |keyword: &str| schema[keyword].as_i64().map(i128::from);
    Some([
        limit("minimum").map_or(least, |limit| limit.max(least)),
        limit("maximum").map_or(most, |limit| limit.min(most)),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Every keyword, with values and their validity; the reference implementation has to agree.
    #[test]
    fn validity_is_that_of_the_reference_implementation() {
        let cases = [
            (json!({ "type": "integer", "minimum": 1 }), vec![json!(1), json!(0), json!(1.5), json!("1"), json!(null)]),
            (
                json!({ "type": ["string", "null"], "minLength": 2 }),
                vec![json!("éé"), json!("é"), json!(null), json!(2)],
            ),
            (
                json!({ "exclusiveMinimum": 0.0, "exclusiveMaximum": 1 }),
                vec![json!(0), json!(0.5), json!(1), json!("")],
            ),
            (json!({ "maximum": 3, "maxLength": 1 }), vec![json!(3), json!(4), json!("a"), json!("ab")]),
            (json!({ "enum": ["a", "b", 1] }), vec![json!("a"), json!(1), json!("c"), json!([])]),
            (json!({ "const": { "a": 1 } }), vec![json!({ "a": 1 }), json!({ "a": 2 }), json!(1)]),
            (
                json!({ "properties": { "a": { "type": "string" } }, "required": ["a"], "additionalProperties": false }),
                vec![json!({ "a": "" }), json!({}), json!({ "a": 1 }), json!({ "a": "", "b": 1 }), json!([])],
            ),
            (
                json!({ "additionalProperties": { "type": "boolean" } }),
                vec![json!({ "a": true }), json!({ "a": 1 }), json!({})],
            ),
            (
                json!({ "items": { "type": "number" }, "minItems": 1, "maxItems": 2, "uniqueItems": true }),
                vec![json!([1]), json!([]), json!([1, 2, 3]), json!([1, 1]), json!(["a"])],
            ),
            (
                json!({ "anyOf": [{ "type": "string" }, { "minimum": 3 }] }),
                vec![json!("a"), json!(3), json!(2), json!(true)],
            ),
            (
                json!({ "oneOf": [{ "type": "integer" }, { "minimum": 3 }] }),
                vec![json!(2), json!(3), json!(3.5), json!(2.5)],
            ),
            (json!({ "allOf": [{ "minimum": 1 }, { "maximum": 2 }] }), vec![json!(1), json!(0), json!(3)]),
            (
                json!({ "if": { "type": "string" }, "then": { "minLength": 1 }, "else": { "minimum": 1 } }),
                vec![json!("a"), json!(""), json!(0), json!(1)],
            ),
            (
                json!({ "pattern": "^(cpu|cuda(:[0-9]+)?)$" }),
                vec![json!("cuda:1"), json!("cuda:"), json!("xcpu"), json!(1)],
            ),
            (json!(false), vec![json!(1)]),
        ];
        for (schema, values) in &cases {
            let reference = jsonschema::validator_for(schema).expect("a schema");
            for value in values {
                assert_eq!(is_valid(schema, value), reference.is_valid(value), "{schema}: {value}");
            }
        }
    }

    #[test]
    fn violations_name_the_deepest_key() {
        let schema = json!({
            "properties": { "list": { "items": { "required": ["name"], "properties": { "name": { "type": "string" } } } } }
        });
        let value = json!({ "list": [{ "name": "a" }, { "name": 1 }, {}] });
        let found = violations(&schema, &value, &KeyPath::root());
        let keys: Vec<String> = found.iter().map(|violation| violation.key.to_string()).collect();
        assert_eq!(keys, ["list[1].name", "list[2]"]);
        assert!(matches!((&found[0].kind, &found[1].kind), (Kind::Type, Kind::Missing("name"))));
    }

    #[test]
    fn whole_numbers_are_those_of_the_type_and_within_the_limits() {
        let is_out = |schema: Value, value: Value| is_out_of_range(&schema, &value);
        let unsigned = |format: &str| json!({ "type": ["integer", "null"], "format": format, "minimum": 1 });
        assert!(is_out(unsigned("uint64"), json!(1e20)) && !is_out(unsigned("uint64"), json!(u64::MAX)));
        assert!(is_out(unsigned("uint32"), json!(4_294_967_296_u64)) && !is_out(unsigned("uint32"), json!(u32::MAX)));
        assert!(is_out(json!({ "type": "integer", "format": "int64" }), json!(u64::MAX)));
        assert!(is_out(json!({ "type": "integer" }), json!(-1e20)) && !is_out(json!({ "type": "integer" }), json!(-1)));
        assert!(!is_out(unsigned("uint64"), json!(-1e20)), "the minimum has its own violation");
        assert!(!is_out(json!({ "type": ["integer", "number"] }), json!(1e20)));
        assert_eq!(whole_numbers(&unsigned("uint32")), Some([1, u32::MAX.into()]));
        assert_eq!(violations(&unsigned("uint64"), &json!(1e20), &KeyPath::root()).len(), 1);
    }

    #[test]
    fn first_repeated_entry_is_found() {
        let entries = [json!(1), json!(1.0), json!({ "a": [1], "b": 2 }), json!({ "b": 2, "a": [1] })];
        assert_eq!(first_repeated(&entries), Some(&entries[3]));
        assert_eq!(first_repeated(&entries[..3]), None);
    }
}
