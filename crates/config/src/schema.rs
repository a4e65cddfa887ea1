//! JSON schema of pipeline files, from the types of [`crate::spec`] and the plugins of a catalog.

use schemars::{Schema, SchemaGenerator, json_schema};
use sepal_catalog::{Catalog, Entry, PluginKind, schema_of};
use sepal_core::{ComputeFormat, WeightFormat};
use serde_json::{Map, Value, json};

use crate::layers::normalized;
use crate::spec::{EmbeddedSpec, HalvingSpec, LanSpec, NoneSpec, P2pSpec, Spec, StaticSpec};
use crate::sweep::SWEEP;

/// Returns the JSON schema of a pipeline file with these plugins, with documentation, defaults and examples for editors
/// and without external references.
pub fn schema(catalog: &Catalog) -> Value {
    let mut schema = schema_of::<Spec>();
    for choices in choices(catalog) {
        choices.insert_into(&mut schema);
    }
    schema["properties"][SWEEP] = sweep();
    fold_enums(&mut schema);
    let mut whole = json!({ "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Sepal pipeline" });
    if let (Value::Object(whole), Value::Object(fields)) = (&mut whole, schema) {
        whole.extend(fields.into_iter().filter(|(key, _)| key != "title"));
    }
    whole
}

/// Schema of a sweep: a grid of keys, or a list of maps of keys, alone or under `over` beside other options.
fn sweep() -> Value {
    const KEYS: &str = "Keys such as `optimizer.with.lr` with lists of values, of which every combination is a run. An entry \
                        of a list may be a range: `0..3` are 0, 1 and 2, `0..=3` are 0 to 3.";
    const RUNS: &str = "Runs, each a map of keys such as `optimizer.with.lr` and values.";
    let values = json!({ "description": "Values of the key.", "type": ["array", "string", "object"] });
    let list = json!({ "description": RUNS, "type": "array", "minItems": 1, "items": { "type": "object" } });
    let grid = json!({ "description": KEYS, "type": "object", "additionalProperties": values });
    let mut halving = schema_of::<HalvingSpec>();
    if let Value::Object(fields) = &mut halving {
        fields.shift_remove("title");
        fields.shift_remove("$schema");
    }
    json!({
        "description": "Several runs of this pipeline with other values of some keys, for `sepal sweep`. A map with `use` replaces \
                        the whole choice; other maps are read key by key.",
        "anyOf": [
            {
                "description": KEYS,
                "type": "object",
                "properties": {
                    "over": { "description": "Grid of keys, or list of runs.", "anyOf": [grid, list] },
                    "halving": halving,
                },
                "additionalProperties": values,
            },
            list,
            { "type": "null" },
        ],
        "examples": [
            { "optimizer.with.lr": [0.001, 0.003], "train.seed": ["0..4"] },
            [{ "tuning": { "use": "ptune" } }, { "tuning": { "use": "lora", "with": { "r": 8 } } }],
        ],
    })
}

/// Key of the file whose value is a choice, or a list of choices: `use` is its name, `with` are its options.
#[derive(Debug)]
pub(crate) struct Choices {
    pub(crate) key: &'static str,
    /// Noun for a choice in messages.
    pub(crate) noun: String,
    /// Form of the value.
    pub(crate) form: Form,
    /// True if parameters may have options of their own, in groups.
    has_groups: bool,
    choices: Vec<Choice>,
}

/// Form of the value of a key with choices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// One choice.
    One,
    /// One choice, or a list of choices.
    OneOrList,
    /// List of choices.
    List,
}

/// Key of the patterns of a group of parameters.
pub(crate) const GROUP_PARAMS: &str = "params";

const GROUPS: &str = "Groups of parameters with options of their own. Parameters outside of all groups have those of \
                      `with`; the schedule applies to all of them.";

#[derive(Debug)]
struct Choice {
    name: &'static str,
    aliases: &'static [&'static str],
    summary: String,
    schema: Value,
    example: Value,
}

pub(crate) fn choices(catalog: &Catalog) -> Vec<Choices> {
    let (key, form, has_groups) = ("swarm", Form::One, false);
    let swarm = Choices { key, noun: "swarm".to_owned(), form, has_groups, choices: swarms() };
    std::iter::once(swarm).chain(PluginKind::ALL.map(|kind| choices_of(kind, catalog))).collect()
}

fn choices_of(kind: PluginKind, catalog: &Catalog) -> Choices {
    let choice = |entry: &Entry| {
        let Entry { name, aliases, summary, schema, example, .. } = entry.clone();
        Choice { name, aliases, summary, schema, example }
    };
    let choices = catalog.entries(kind).map(choice).collect();
    let form = match kind {
        PluginKind::Tracker => Form::List,
        PluginKind::Tuning => Form::OneOrList,
        PluginKind::Head | PluginKind::Optimizer | PluginKind::Schedule => Form::One,
    };
    let has_groups = kind == PluginKind::Optimizer;
    Choices { key: kind.key(), noun: kind.to_string(), form, has_groups, choices }
}

fn swarms() -> Vec<Choice> {
    let choice = |name, schema: Value, example| {
        let summary = schema["description"].as_str().unwrap_or_default().to_owned();
        Choice { name, aliases: &[], summary, schema, example }
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
        let choice = self.find(name)?;
        // The schema of a choice without options has no properties.
        let known = choice.schema["properties"].as_object().into_iter().flat_map(Map::keys);
        Some(known.map(String::as_str).collect())
    }

    /// True if `value` is the default of this option of the choice `name`.
    pub(crate) fn is_default(&self, name: &str, option: &str, value: &Value) -> bool {
        let default = self.find(name).and_then(|choice| choice.schema["properties"].get(option)?.get("default"));
        default.is_some_and(|default| normalized(default.clone()) == *value)
    }

    fn find(&self, name: &str) -> Option<&Choice> {
        self.choices.iter().find(|choice| choice.name == name || choice.aliases.contains(&name))
    }

    /// Replaces the key's schema, keeping its description and default.
    fn insert_into(&self, schema: &mut Value) {
        let slot = &mut schema["properties"][self.key];
        let own = self.schema();
        let mut own = match self.form {
            Form::One => own,
            Form::OneOrList => {
                let mut items = own.clone();
                if let Value::Object(fields) = &mut items {
                    fields.shift_remove("examples");
                }
                json!({ "anyOf": [own, { "type": "array", "minItems": 1, "items": items }] })
            }
            Form::List => json!({ "type": "array", "items": own }),
        };
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
            "allOf": self.choices.iter().map(|choice| choice.condition(self.has_groups)).collect::<Vec<_>>(),
            "examples": all(|choice| json!({ "use": choice.name, "with": choice.example })),
        });
        if self.has_groups {
            schema["properties"]["groups"] = json!({ "description": GROUPS, "type": "array" });
        }
        if self.choices.is_empty() {
            // JSON Schema forbids empty lists here. No text equals `null`, so that nothing can be chosen.
            schema["properties"]["use"]["enum"] = json!([null]);
            schema["allOf"] = json!([true]);
        }
        schema
    }
}

impl Choice {
    /// Condition for this choice: `with` has its options, and is required if one of them is. Groups have its options, too.
    fn condition(&self, has_groups: bool) -> Value {
        let mut options = self.schema.clone();
        if let Value::Object(fields) = &mut options {
            fields.shift_remove("title");
        }
        let mut then = json!({ "properties": { "with": options } });
        if self.schema["required"].as_array().is_some_and(|required| !required.is_empty()) {
            then["required"] = json!(["with"]);
        }
        if has_groups {
            then["properties"]["groups"] = json!({ "description": GROUPS, "type": "array", "items": self.group() });
        }
        json!({ "if": { "properties": { "use": { "const": self.name } }, "required": ["use"] }, "then": then })
    }
}

impl Choice {
    /// Schema of a group of parameters. Its defaults are the options of the other parameters.
    fn group(&self) -> Value {
        let mut group = json!({
            "type": "object",
            "properties": {
                GROUP_PARAMS: {
                    "description": "Names of the group's parameters: patterns in which `*` stands for any text and `?` for \
                                    one character.",
                    "type": "array",
                    "minItems": 1,
                    "items": { "type": "string", "minLength": 1 },
                },
            },
            "required": [GROUP_PARAMS],
            "additionalProperties": false,
        });
        for (key, option) in self.schema["properties"].as_object().into_iter().flatten() {
            let mut option = option.clone();
            if let Value::Object(fields) = &mut option {
                fields.shift_remove("default");
            }
            group["properties"][key] = option;
        }
        group
    }
}

/// Schema of a device.
pub(crate) fn device(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": "^(cpu|cuda(:[0-9]+)?)$" })
}

pub(crate) fn weight_format(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": WeightFormat::ALL })
}

/// Value of `model.compute` that stands for the fastest format of the machine, see [`crate::load`].
pub(crate) const FAST: &str = "fast";

pub(crate) fn compute_format(_: &mut SchemaGenerator) -> Schema {
    let formats = ComputeFormat::ALL.map(ComputeFormat::name);
    let names: Vec<&str> = formats.into_iter().chain([FAST]).collect();
    json_schema!({ "anyOf": [{ "type": "string", "enum": names }, { "type": "null" }] })
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
