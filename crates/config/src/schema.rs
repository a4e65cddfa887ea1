//! JSON schema of pipeline files, from the types of [`crate::spec`] and the plugins of a catalog.

use schemars::{Schema, SchemaGenerator, json_schema};
use sepal_catalog::{Catalog, Entry, PluginKind, schema_of};
use serde_json::{Map, Value, json};

use crate::spec::{EmbeddedSpec, LanSpec, NoneSpec, P2pSpec, Spec, StaticSpec};

/// Returns the JSON schema of a pipeline file with these plugins, with documentation, defaults and examples for editors
/// and without external references.
pub fn schema(catalog: &Catalog) -> Value {
    let mut schema = schema_of::<Spec>();
    for choices in choices(catalog) {
        choices.insert_into(&mut schema);
    }
    fold_enums(&mut schema);
    let mut whole = json!({ "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Sepal pipeline" });
    if let (Value::Object(whole), Value::Object(fields)) = (&mut whole, schema) {
        whole.extend(fields.into_iter().filter(|(key, _)| key != "title"));
    }
    whole
}

/// Key of the file whose value is a choice, or a list of choices: `use` is its name, `with` are its options.
#[derive(Debug)]
pub(crate) struct Choices {
    pub(crate) key: &'static str,
    /// Noun for a choice in messages.
    pub(crate) noun: String,
    pub(crate) many: bool,
    choices: Vec<Choice>,
}

#[derive(Debug)]
struct Choice {
    name: &'static str,
    summary: String,
    schema: Value,
    example: Value,
}

pub(crate) fn choices(catalog: &Catalog) -> Vec<Choices> {
    let swarm = Choices { key: "swarm", noun: "swarm".to_owned(), many: false, choices: swarms() };
    std::iter::once(swarm).chain(PluginKind::ALL.map(|kind| choices_of(kind, catalog))).collect()
}

fn choices_of(kind: PluginKind, catalog: &Catalog) -> Choices {
    let choice = |Entry { name, summary, schema, example, .. }: Entry| Choice { name, summary, schema, example };
    let choices = catalog.entries(kind).cloned().map(choice).collect();
    Choices { key: kind.key(), noun: kind.to_string(), many: kind == PluginKind::Tracker, choices }
}

fn swarms() -> Vec<Choice> {
    let choice = |name, schema: Value, example| {
        let summary = schema["description"].as_str().unwrap_or_default().to_owned();
        Choice { name, summary, schema, example }
    };
    vec![
        choice("none", schema_of::<NoneSpec>(), json!({})),
        choice("embedded", schema_of::<EmbeddedSpec>(), json!({})),
        choice("static", schema_of::<StaticSpec>(), json!({ "servers": ["127.0.0.1:4000", "127.0.0.1:4001"] })),
        choice("lan", schema_of::<LanSpec>(), json!({})),
        choice("p2p", schema_of::<P2pSpec>(), json!({ "ticket": "swarm.ticket" })),
    ]
}

impl Choices {
    /// Options of the choice `name`; `None` if there is no such choice.
    pub(crate) fn options(&self, name: &str) -> Option<Vec<&str>> {
        let choice = self.choices.iter().find(|choice| choice.name == name)?;
        // The schema of a choice without options has no properties.
        let known = choice.schema["properties"].as_object().into_iter().flat_map(Map::keys);
        Some(known.map(String::as_str).collect())
    }

    /// Replaces the key's schema, keeping its description and default.
    fn insert_into(&self, schema: &mut Value) {
        let slot = &mut schema["properties"][self.key];
        let choice = self.schema();
        let mut own = if self.many { json!({ "type": "array", "items": choice }) } else { choice };
        for kept in ["description", "default"] {
            if let Some(value) = slot.get(kept) {
                own[kept] = value.clone();
            }
        }
        *slot = own;
    }

    fn schema(&self) -> Value {
        let all = |get: fn(&Choice) -> Value| self.choices.iter().map(get).collect::<Vec<_>>();
        let mut schema = json!({
            "type": "object",
            "properties": {
                "use": {
                    "title": self.noun,
                    "description": format!("Which {}.", self.noun),
                    "type": "string",
                    "enum": all(|choice| json!(choice.name)),
                    "enumDescriptions": all(|choice| json!(choice.summary)),
                },
                "with": { "description": "Its options.", "type": "object" },
            },
            "required": ["use"],
            "additionalProperties": false,
            "allOf": all(Choice::condition),
            "examples": all(|choice| json!({ "use": choice.name, "with": choice.example })),
        });
        if self.choices.is_empty() {
            // JSON Schema forbids empty lists here. No text equals `null`, so that nothing can be chosen.
            schema["properties"]["use"]["enum"] = json!([null]);
            schema["allOf"] = json!([true]);
        }
        schema
    }
}

impl Choice {
    /// Condition for this choice: `with` has its options, and is required if one of them is.
    fn condition(&self) -> Value {
        let mut options = self.schema.clone();
        if let Value::Object(fields) = &mut options {
            fields.shift_remove("title");
        }
        let mut then = json!({ "properties": { "with": options } });
        if self.schema["required"].as_array().is_some_and(|required| !required.is_empty()) {
            then["required"] = json!(["with"]);
        }
        json!({ "if": { "properties": { "use": { "const": self.name } }, "required": ["use"] }, "then": then })
    }
}

pub(crate) fn device(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": "^(cpu|cuda(:[0-9]+)?)$" })
}

pub(crate) fn weight_format(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": ["f32", "bf16", "f16", "int8", "nf4"] })
}

pub(crate) fn cell(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["string", "number", "boolean"] })
}

/// Turns each choice between constants into an `enum` with descriptions, which editors complete and errors list.
fn fold_enums(schema: &mut Value) {
    match schema {
        Value::Array(entries) => entries.iter_mut().for_each(fold_enums),
        Value::Object(fields) => {
            fields.values_mut().for_each(fold_enums);
            for keyword in ["oneOf", "anyOf"] {
                match fields.get(keyword).and_then(folded) {
                    Some(Folded::All(replacement)) => {
                        fields.shift_remove(keyword);
                        fields.extend(replacement);
                    }
                    Some(Folded::Some(branches)) => drop(fields.insert(keyword.to_owned(), branches)),
                    None => {}
                }
            }
        }
        _ => {}
    }
}

enum Folded {
    /// Replacement of a choice whose branches are all constants.
    All(Map<String, Value>),
    /// Choice with its constants as one branch.
    Some(Value),
}

/// Merges the constant branches, if there are several.
fn folded(branches: &Value) -> Option<Folded> {
    let (constants, mut others): (Vec<Value>, Vec<Value>) =
        branches.as_array()?.iter().cloned().partition(|branch| branch.get("const").is_some());
    if constants.len() < 2 {
        return None;
    }
    let all = |key: &str| constants.iter().map(|branch| branch[key].clone()).collect::<Vec<_>>();
    let mut values = Map::from_iter([("type".to_owned(), json!("string")), ("enum".to_owned(), json!(all("const")))]);
    if constants.iter().all(|branch| branch["description"].is_string()) {
        values.insert("enumDescriptions".to_owned(), json!(all("description")));
    }
    if others.is_empty() {
        return Some(Folded::All(values));
    }
    others.insert(0, Value::Object(values));
    Some(Folded::Some(Value::Array(others)))
}
