//! The JSON schema of a whole pipeline file, from the types of [`crate::spec`] and the plugins of a registry.

use schemars::{Schema, SchemaGenerator, json_schema};
use sepal_catalog::{Catalog, Entry, PluginKind, schema_of};
use serde_json::{Map, Value, json};

use crate::spec::{EmbeddedSpec, LanSpec, NoneSpec, P2pSpec, Spec, StaticSpec};

/// The JSON schema of a pipeline file with these plugins: complete in itself, with documentation, defaults and
/// examples for editors.
pub fn schema(catalog: &Catalog) -> Value {
    let mut schema = schema_of::<Spec>();
    for place in places(catalog) {
        place.put_into(&mut schema);
    }
    fold_enums(&mut schema);
    let mut whole = Map::new();
    whole.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    whole.insert("title".to_owned(), json!("Sepal pipeline"));
    if let Value::Object(fields) = schema {
        whole.extend(fields.into_iter().filter(|(key, _)| key != "title"));
    }
    Value::Object(whole)
}

/// A key of the file whose value is a choice, or a list of them: `use` names it, `with` are its options.
#[derive(Debug)]
pub(crate) struct Place {
    /// The key.
    pub(crate) key: &'static str,
    /// What messages call a choice.
    pub(crate) noun: String,
    /// Whether there may be several, in a list.
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

/// Every choice of the file.
pub(crate) fn places(catalog: &Catalog) -> Vec<Place> {
    let swarm = Place { key: "swarm", noun: "swarm".to_owned(), many: false, choices: swarms() };
    std::iter::once(swarm).chain(PluginKind::ALL.map(|kind| place(kind, catalog))).collect()
}

fn place(kind: PluginKind, catalog: &Catalog) -> Place {
    let choice = |entry: &Entry| {
        let Entry { name, summary, schema, example, .. } = entry.clone();
        Choice { name, summary, schema, example }
    };
    let choices = catalog.entries(kind).map(choice).collect();
    Place { key: kind.key(), noun: kind.to_string(), many: kind == PluginKind::Tracker, choices }
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

impl Place {
    /// The options that the choice `name` knows; `None` if there is no such choice.
    pub(crate) fn options(&self, name: &str) -> Option<Vec<&str>> {
        let choice = self.choices.iter().find(|choice| choice.name == name)?;
        // The schema of a choice without options has no properties.
        let known = choice.schema["properties"].as_object().into_iter().flat_map(Map::keys);
        Some(known.map(String::as_str).collect())
    }

    /// Replaces the key's schema, keeping its description and default.
    fn put_into(&self, schema: &mut Value) {
        let slot = &mut schema["properties"][self.key];
        let mut own = self.schema();
        if self.many {
            own = json!({ "type": "array", "items": own });
        }
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
            // These lists may not be empty. No text is `null`, so nothing can be chosen.
            schema["properties"]["use"]["enum"] = json!([null]);
            schema["allOf"] = json!([true]);
        }
        schema
    }
}

impl Choice {
    /// If this choice is made, `with` has its options, and is there if one of them must be written.
    fn condition(&self) -> Value {
        let mut options = self.schema.clone();
        if let Value::Object(fields) = &mut options {
            fields.shift_remove("title");
        }
        let needs_options = options["required"].as_array().is_some_and(|required| !required.is_empty());
        let mut then = json!({ "properties": { "with": options } });
        if needs_options {
            then["required"] = json!(["with"]);
        }
        json!({ "if": { "properties": { "use": { "const": self.name } }, "required": ["use"] }, "then": then })
    }
}

/// The schema of a device.
pub(crate) fn device(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": "^(cpu|cuda(:[0-9]+)?)$" })
}

/// The schema of a format of weights.
pub(crate) fn weight_format(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": ["f32", "bf16", "f16", "int8", "nf4"] })
}

/// The schema of a column's value.
pub(crate) fn cell(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["string", "number", "boolean"] })
}

/// Makes each choice between constants an `enum` with descriptions: editors complete it, and an error lists it.
fn fold_enums(schema: &mut Value) {
    match schema {
        Value::Array(entries) => entries.iter_mut().for_each(fold_enums),
        Value::Object(fields) => {
            fields.values_mut().for_each(fold_enums);
            for keyword in ["oneOf", "anyOf"] {
                if let Some(folded) = fields.get(keyword).and_then(folded) {
                    match folded {
                        Folded::All(replacement) => {
                            fields.shift_remove(keyword);
                            replacement.into_iter().for_each(|(key, value)| drop(fields.insert(key, value)));
                        }
                        Folded::Some(branches) => drop(fields.insert(keyword.to_owned(), branches)),
                    }
                }
            }
        }
        _ => {}
    }
}

enum Folded {
    /// Every branch was a constant: what stands instead of the choice.
    All(Map<String, Value>),
    /// The choice with its constants as one branch.
    Some(Value),
}

/// Puts the branches that are constants together, if there are several.
fn folded(branches: &Value) -> Option<Folded> {
    let (constants, mut others): (Vec<Value>, Vec<Value>) =
        branches.as_array()?.iter().cloned().partition(|branch| branch.get("const").is_some());
    if constants.len() < 2 {
        return None;
    }
    let all = |key: &str| constants.iter().map(|branch| branch[key].clone()).collect::<Vec<_>>();
    let mut values = Map::new();
    values.insert("type".to_owned(), json!("string"));
    values.insert("enum".to_owned(), json!(all("const")));
    if constants.iter().all(|branch| branch["description"].is_string()) {
        values.insert("enumDescriptions".to_owned(), json!(all("description")));
    }
    if others.is_empty() {
        return Some(Folded::All(values));
    }
    others.insert(0, Value::Object(values));
    Some(Folded::Some(Value::Array(others)))
}
