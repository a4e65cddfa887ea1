//! Resolved pipelines as YAML, with the origin of each value.

use std::fmt;

use sepal_catalog::{Catalog, PluginKind, schema_of};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::layers::{Layer, Merged};
use crate::load::{Layers, Traced, choices_mut};
use crate::path::{KeyPath, Segment};
use crate::problem::{Origin, Problems};
use crate::spec::Spec;
use crate::sweep::SWEEP;
use crate::yaml;

/// Maximum width of a line whose comment is aligned.
const WIDEST: usize = 64;
/// Maximum width of a list of plain values on one line.
const FLOW: usize = 72;

/// A pipeline with every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    /// Values with their origins, in the order of the file.
    pub values: Vec<Resolved>,
    /// Notices, one line each.
    pub notices: Vec<String>,
    tree: Value,
}

/// One value of a pipeline: a scalar, a list or an empty map.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// Key.
    pub key: KeyPath,
    /// Value.
    pub value: Value,
    /// Origin.
    pub origin: ValueOrigin,
}

/// Origin of a resolved value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueOrigin {
    /// Default.
    Default,
    /// Written value.
    Written(Origin),
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueOrigin::Default => f.write_str("default"),
            ValueOrigin::Written(Origin::File { name, position: Some(position) }) => {
                write!(f, "{name}:{}", position.line)
            }
            // The value is printed beside it.
            ValueOrigin::Written(Origin::Set { text }) => {
                write!(f, "--set {}", text.split_once('=').map_or(text.as_str(), |(key, _)| key.trim()))
            }
            ValueOrigin::Written(origin) => origin.fmt(f),
        }
    }
}

impl Serialize for ValueOrigin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Layers {
    /// Loads the pipeline like [`load`](Self::load), with the origin of each value. A sweep is checked and stays as it is
    /// written.
    ///
    /// # Errors
    /// [`Problems`] as there.
    pub fn render(&self, catalog: &Catalog) -> Result<Rendered, Problems> {
        let Traced { loaded, merged, layers, sweep } = self.load_traced(catalog, true)?;
        if sweep.is_some() {
            self.load_sweep(catalog)?;
        }
        let unwritable = |error: serde_json::Error| Problems::of_pipeline("the pipeline", error.to_string());
        let mut tree = serde_json::to_value(&loaded.spec).map_err(unwritable)?;
        add_unwritten(&mut tree, catalog);
        if let (Some(sweep), Some(fields)) = (sweep, tree.as_object_mut()) {
            fields.insert(SWEEP.to_owned(), sweep);
        }
        let mut values = Vec::new();
        collect(&tree, &KeyPath::root(), &mut |key, value| {
            values.push(Resolved { key: key.clone(), value: value.clone(), origin: comes(key, &merged, &layers) });
        });
        Ok(Rendered { values, notices: loaded.notices, tree })
    }
}

impl Rendered {
    /// Returns the pipeline as YAML, optionally with the origin after each value. It reads as the same pipeline.
    pub fn to_yaml(&self, with_origins: bool) -> String {
        let mut lines = Vec::new();
        write(&self.tree, &KeyPath::root(), 0, &mut lines);
        let widest = lines.iter().filter(|line| line.key.is_some()).map(|line| line.text.chars().count());
        let width = widest.filter(|&width| width <= WIDEST).max().unwrap_or(0);
        let origin = |key: &KeyPath| self.values.iter().find(|value| value.key == *key).map(|value| &value.origin);
        let mut text = String::new();
        for Line { text: line, key } in lines {
            match key.as_ref().and_then(origin).filter(|_| with_origins) {
                Some(origin) => text.push_str(&format!("{line:<width$}  # {origin}")),
                None => text.push_str(&line),
            }
            text.push('\n');
        }
        text
    }
}

/// Adds the defaults of keys that the written form of a spec leaves out while they are unset.
fn add_unwritten(tree: &mut Value, catalog: &Catalog) {
    add_defaults(tree, &schema_of::<Spec>());
    for kind in PluginKind::ALL {
        for choice in choices_mut(tree, kind) {
            let entry = choice["use"].as_str().and_then(|name| catalog.find(kind, name).ok());
            if let Some((entry, options)) = entry.zip(choice.get_mut("with")) {
                add_defaults(options, &entry.schema);
            }
        }
    }
}

/// Adds the missing keys of a schema that have a default, with it.
fn add_defaults(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(fields) => {
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                if let Some(below) = fields.get_mut(name) {
                    add_defaults(below, property);
                } else if let Some(default) = default_of(property) {
                    fields.insert(name.clone(), default);
                }
            }
        }
        Value::Array(entries) => entries.iter_mut().for_each(|entry| add_defaults(entry, &schema["items"])),
        _ => {}
    }
}

/// Default that a schema names; otherwise `null` where it is allowed, or a map of the defaults of its keys.
fn default_of(schema: &Value) -> Option<Value> {
    if let Some(default) = schema.get("default") {
        return Some(default.clone());
    }
    if allows_null(schema) {
        return Some(Value::Null);
    }
    schema.get("properties")?;
    let mut fields = Value::Object(Map::new());
    add_defaults(&mut fields, schema);
    Some(fields)
}

fn allows_null(schema: &Value) -> bool {
    match &schema["type"] {
        Value::Array(types) => types.iter().any(|name| name == "null"),
        name => name == "null" || schema["anyOf"].as_array().into_iter().flatten().any(allows_null),
    }
}

/// Calls `leaf` with every scalar, list of scalars and empty map or list.
fn collect(value: &Value, key: &KeyPath, leaf: &mut dyn FnMut(&KeyPath, &Value)) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            fields.iter().for_each(|(name, below)| collect(below, &key.key(name), leaf));
        }
        Value::Array(entries) if entries.iter().any(is_nested) => {
            entries.iter().enumerate().for_each(|(i, below)| collect(below, &key.index(i), leaf));
        }
        _ => leaf(key, value),
    }
}

fn is_nested(value: &Value) -> bool {
    matches!(value, Value::Object(_) | Value::Array(_))
}

fn comes(key: &KeyPath, merged: &Merged, layers: &[Layer]) -> ValueOrigin {
    let mut written = &merged.value;
    for segment in key.segments() {
        let below = match (segment, written) {
            (Segment::Key(name), Value::Object(fields)) => fields.get(name),
            (Segment::Index(index), Value::Array(entries)) => entries.get(*index),
            // An alias covers everything below it.
            _ => break,
        };
        let Some(below) = below else { return ValueOrigin::Default };
        written = below;
    }
    ValueOrigin::Written(merged.origin_of(key, layers))
}

struct Line {
    text: String,
    key: Option<KeyPath>,
}

fn write(value: &Value, key: &KeyPath, depth: usize, lines: &mut Vec<Line>) {
    match value {
        Value::Object(fields) => {
            fields
                .iter()
                .for_each(|(name, below)| entry(&scalar(&name.as_str().into()), below, &key.key(name), depth, lines));
        }
        Value::Array(entries) if entries.iter().any(is_nested) => {
            for (i, below) in entries.iter().enumerate() {
                let first = lines.len();
                write(below, &key.index(i), depth + 1, lines);
                if let Some(line) = lines.get_mut(first) {
                    // The dash takes the place of the indentation.
                    line.text.replace_range(2 * depth..2 * depth + 2, "- ");
                }
            }
        }
        other => lines.push(Line { text: format!("{}{}", "  ".repeat(depth), scalar(other)), key: Some(key.clone()) }),
    }
}

fn entry(name: &str, value: &Value, key: &KeyPath, depth: usize, lines: &mut Vec<Line>) {
    let indent = "  ".repeat(depth);
    let with_value = |text: &str| Line { text: format!("{indent}{name}: {text}"), key: Some(key.clone()) };
    match value {
        Value::Object(fields) if fields.is_empty() => lines.push(with_value("{}")),
        Value::Array(entries) if !entries.iter().any(is_nested) => {
            let words: Vec<String> = entries.iter().map(scalar).collect();
            let flow = format!("[{}]", words.join(", "));
            if entries.len() < 2 || indent.len() + name.len() + 2 + flow.chars().count() <= FLOW {
                return lines.push(with_value(&flow));
            }
            lines.push(Line { text: format!("{indent}{name}:"), key: Some(key.clone()) });
            lines.extend(words.into_iter().map(|word| Line { text: format!("{indent}  - {word}"), key: None }));
        }
        Value::Object(_) | Value::Array(_) => {
            lines.push(Line { text: format!("{indent}{name}:"), key: None });
            write(value, key, depth + 1, lines);
        }
        other => lines.push(with_value(&scalar(other))),
    }
}

/// Formats a scalar that reads as itself, also within brackets.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        // A JSON string is also a quoted YAML string.
        Value::Array(entries) if entries.is_empty() => "[]".to_owned(),
        Value::Object(fields) if Map::is_empty(fields) => "{}".to_owned(),
        other => other.to_string(),
    }
}

fn is_plain(text: &str) -> bool {
    let begins = text.chars().next().is_some_and(|first| first.is_alphanumeric() || "/._".contains(first));
    let is_tame = |c: char| c.is_alphanumeric() || "/._:=@+-".contains(c);
    let is_itself = || matches!(yaml::parse_scalar(text), Ok(Value::String(read)) if read == text);
    begins && !text.ends_with(':') && text.chars().all(is_tame) && is_itself()
}

#[cfg(test)]
mod tests {
    use sepal_plugin::{Head, Registry, Tuning, standard};

    use super::*;

    const PIPELINE: &str = "\
name: demo
model: { source: [hub:a/b, pypi:c==1.0/d.gguf] }
task:
  use: sequence-classification
  with: { labels: [negative, positive] }
tuning: { use: deep-ptune }
data:
  train: train.csv
  validation_split: 0.1
  text: sentence
  label: label
  otherwise:
    - { train: b.csv, validation_split: 0.2, text: text, label: label, where: { source: \"1\" } }
optimizer: { use: adamw }
schedule: { use: linear }
";

    fn registry() -> Registry {
        let mut registry = Registry::new();
        standard::register(&mut registry).expect("the standard plugins");
        registry.register::<Head, sepal_sequence_classification::SequenceClassification>().expect("a head");
        registry.register::<Tuning, sepal_deep_ptune::DeepPtune>().expect("a tuning mode");
        registry
    }

    fn rendered(sets: &[&str]) -> Rendered {
        let env = [("SEPAL__TRAIN__SEED".to_owned(), "7".to_owned())];
        let layers = Layers::text("sst2.yaml", PIPELINE).env(env).sets(sets.iter().map(|&set| set.to_owned()));
        layers.render(registry().catalog()).expect("a pipeline")
    }

    #[test]
    fn rendered_pipeline_reads_as_the_same_pipeline() {
        let more = [
            "data.template=\"{text}\\nIt is: # \"",
            "data.where={a: \"yes: no\", b: 3, c: '007', d: 7.0, e: 'true', f: true, g: 0.5, h: '1.0'}",
            "task.with.labels=['1', 'true', '~']",
        ];
        for sets in [&[][..], &more] {
            let rendered = rendered(sets);
            for with_origins in [false, true] {
                let again = Layers::text("again.yaml", rendered.to_yaml(with_origins)).render(registry().catalog());
                assert_eq!(again.expect("a pipeline").tree, rendered.tree, "{}", rendered.to_yaml(with_origins));
            }
        }
    }

    #[test]
    fn every_value_says_where_it_comes_from() {
        let rendered = rendered(&["train.clip_norm=2"]);
        let origin = |key: &str| {
            let found = rendered.values.iter().find(|value| value.key.to_string() == key);
            found.unwrap_or_else(|| panic!("no {key}")).origin.to_string()
        };
        assert_eq!(origin("name"), "sst2.yaml:1");
        assert_eq!(origin("train.seed"), "SEPAL__TRAIN__SEED");
        assert_eq!(origin("train.clip_norm"), "--set train.clip_norm");
        assert_eq!(origin("loader.prefetch"), "default");
        assert_eq!(origin("optimizer.with.lr"), "default");
    }

    #[test]
    fn keys_that_a_run_does_not_write_are_listed_with_their_defaults() {
        let found = rendered(&[]);
        let expected = [
            ("model.compute", Value::Null),
            ("data.words", false.into()),
            ("data.options", Value::Array(Vec::new())),
            ("data.skip_empty", false.into()),
            ("data.delimiter", Value::Null),
            ("data.few_shot", Value::Null),
            ("data.truncation_side", Value::Null),
            ("data.long_texts", "cut".into()),
            ("data.otherwise[0].skip_empty", false.into()),
            ("calibrate.temperature", false.into()),
            ("calibrate.thresholds", Value::Null),
            ("task.with.pooling", "last".into()),
            ("task.with.init", "random".into()),
            ("task.with.label_words", Value::Null),
        ];
        for (key, value) in expected {
            let resolved = found.values.iter().find(|resolved| resolved.key.to_string() == key);
            let resolved = resolved.unwrap_or_else(|| panic!("no {key}"));
            assert_eq!((&resolved.value, &resolved.origin), (&value, &ValueOrigin::Default), "{key}");
        }
        // A key without a default in the schema would not be listed.
        let schema = schema_of::<Spec>();
        for (section, properties) in schema["properties"].as_object().expect("sections") {
            for key in properties["properties"].as_object().into_iter().flat_map(Map::keys) {
                assert!(found.tree[section].get(key).is_some(), "{section}.{key} is not listed");
            }
        }
        // What is set stays.
        let set = rendered(&["data.skip_empty=true", "data.few_shot={per_class: 4}", "model.compute=bf16"]);
        assert_eq!(set.tree["data"]["skip_empty"], true);
        assert_eq!(set.tree["data"]["few_shot"], serde_json::json!({ "per_class": 4, "seed": null }));
        assert_eq!(set.tree["model"]["compute"], "bf16");
    }

    #[test]
    fn comments_stand_below_each_other() {
        let text = rendered(&[]).to_yaml(true);
        let short = |line: &&str| line.find("  # ").is_some_and(|at| at <= WIDEST);
        let places: Vec<usize> = text.lines().filter(short).filter_map(|line| line.find("# ")).collect();
        assert!(places.len() > 20 && places.iter().all(|&place| place == places[0]), "{text}");
    }
}
