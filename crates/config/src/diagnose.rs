//! Violations of the schema as short messages.

use jsonschema::error::ValidationErrorKind as Kind;
use jsonschema::paths::{Location, LocationSegment};
use jsonschema::{ValidationError, Validator};
use sepal_core::{NameMatching, nearest};
use serde_json::{Map, Value};

use crate::path::KeyPath;
use crate::words::{describe, show};

/// Problem at a key, before its position is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) key: KeyPath,
    pub(crate) message: String,
    pub(crate) suggestion: Option<String>,
}

impl Finding {
    pub(crate) fn new(key: KeyPath, message: impl Into<String>) -> Self {
        Self { key, message: message.into(), suggestion: None }
    }
}

pub(crate) fn violations(schema: &Value, value: &Value) -> Vec<Finding> {
    let validator = match Validator::new(schema) {
        Ok(validator) => validator,
        Err(error) => {
            return vec![Finding::new(KeyPath::root(), format!("a plugin's options have no schema: {error}"))];
        }
    };
    let mut findings = Vec::new();
    for error in validator.iter_errors(value) {
        Diagnosis { schema, error: &error }.into_findings(&mut findings);
    }
    drop_echoes(&mut findings);
    findings
}

/// A missing key is not reported beside a misspelt one.
fn drop_echoes(findings: &mut Vec<Finding>) {
    let meant: Vec<KeyPath> =
        findings.iter().filter_map(|finding| Some(finding.key.parent()?.key(finding.suggestion.as_ref()?))).collect();
    findings.retain(|finding| !(finding.message.starts_with(MISSING) && meant.contains(&finding.key)));
}

const MISSING: &str = "missing";

struct Diagnosis<'a> {
    schema: &'a Value,
    error: &'a ValidationError<'a>,
}

impl Diagnosis<'_> {
    fn into_findings(self, findings: &mut Vec<Finding>) {
        let key = key_path(self.error.instance_path());
        match self.error.kind() {
            Kind::AdditionalProperties { unexpected } => {
                findings.extend(unexpected.iter().map(|name| self.unknown_key(&key, name)));
            }
            Kind::Required { property } => findings.push(self.missing_key(&key, property)),
            Kind::AnyOf { context } | Kind::OneOfNotValid { context } => match closest(&key, context) {
                Some(errors) => errors.iter().for_each(|error| {
                    Diagnosis { schema: self.schema, error }.into_findings(findings);
                }),
                None => findings.push(self.mismatch(key)),
            },
            Kind::UniqueItems => findings.push(Finding::new(key, self.repeated())),
            Kind::Enum { .. } if key.last_key() == Some("use") => findings.push(self.unknown_plugin(key)),
            Kind::Pattern { .. } => findings.push(self.wrong_text(key)),
            _ => findings.push(self.mismatch(key)),
        }
    }

    /// Violated part of the schema.
    fn subschema(&self) -> &Value {
        let pointer = self.error.schema_path().as_str();
        let parent = pointer.rsplit_once('/').map_or("", |(parent, _)| parent);
        self.schema.pointer(parent).unwrap_or(&Value::Null)
    }

    fn unknown_key(&self, parent: &KeyPath, name: &str) -> Finding {
        let known: Vec<&str> = properties(self.subschema()).map(|(known, _)| known.as_str()).collect();
        let suggestion = nearest(name, known.iter().copied(), NameMatching::Options).map(str::to_owned);
        let message = match (&suggestion, home_of(self.schema, name)) {
            (Some(_), _) => "unknown key".to_owned(),
            (None, Some(home)) => format!("unknown key; there is one at `{home}`"),
            (None, None) if known.is_empty() => "unknown key; there are no options".to_owned(),
            (None, None) => format!("unknown key; known: {}", known.join(", ")),
        };
        Finding { key: parent.key(name), message, suggestion }
    }

    fn missing_key(&self, parent: &KeyPath, property: &Value) -> Finding {
        let name = property.as_str().unwrap_or_default();
        let subschema = self.subschema();
        let expected = describe(&subschema["properties"][name]);
        Finding::new(parent.key(name), format!("{MISSING}, expected {expected}"))
    }

    fn unknown_plugin(&self, key: KeyPath) -> Finding {
        let known = choices(self.subschema());
        let (noun, name) = (self.subschema()["title"].as_str().unwrap_or("plugin"), self.error.instance());
        let message = match known.as_slice() {
            [] => format!("unknown {noun} {name}; none is registered"),
            known => format!("unknown {noun} {name}; known: {}", known.join(", ")),
        };
        Finding { key, message, suggestion: self.nearest_choice(&known) }
    }

    fn wrong_text(&self, key: KeyPath) -> Finding {
        let expected = self.subschema()["patternErrorMessage"].as_str().unwrap_or("other text");
        Finding::new(key, format!("expected {expected}, found {}", show(self.error.instance())))
    }

    fn mismatch(&self, key: KeyPath) -> Finding {
        let (subschema, found) = (self.subschema(), self.error.instance());
        let suggestion = self.nearest_choice(&choices(subschema));
        let unquoted = subschema["type"] == "string" && (found.is_number() || found.is_boolean());
        let hint = if unquoted { "; quotation marks make it text" } else { "" };
        Finding { key, message: format!("expected {}, found {}{hint}", describe(subschema), show(found)), suggestion }
    }

    fn nearest_choice(&self, choices: &[&str]) -> Option<String> {
        nearest(self.error.instance().as_str()?, choices.iter().copied(), NameMatching::Options).map(str::to_owned)
    }

    fn repeated(&self) -> String {
        let entries = self.error.instance().as_array().map(Vec::as_slice).unwrap_or_default();
        let twice = entries.iter().enumerate().find(|(i, entry)| entries[..*i].contains(entry));
        let entry = twice.map(|(_, entry)| show(entry)).unwrap_or_default();
        format!("expected different entries, found {entry} twice")
    }
}

/// Names in the `enum` of a schema and of its branches.
fn choices(schema: &Value) -> Vec<&str> {
    let own = schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let branches = ["anyOf", "oneOf"].into_iter().flat_map(|keyword| schema[keyword].as_array().into_iter().flatten());
    own.chain(branches.flat_map(choices)).collect()
}

/// Errors of the only branch whose errors lie deeper than the value itself or are not about its type.
fn closest<'a>(key: &KeyPath, context: &'a [Vec<ValidationError<'static>>]) -> Option<&'a [ValidationError<'static>]> {
    let fits = |error: &ValidationError<'_>| {
        let shallow = key_path(error.instance_path()) == *key;
        !(shallow && matches!(error.kind(), Kind::Type { .. } | Kind::Enum { .. } | Kind::Constant { .. }))
    };
    let mut branches = context.iter().filter(|errors| errors.iter().all(fits));
    match (branches.next(), branches.next()) {
        (Some(only), None) => Some(only),
        _ => None,
    }
}

/// Path of the only other section with a key of this name.
fn home_of(schema: &Value, name: &str) -> Option<KeyPath> {
    let has = |section: &Value| properties(section).any(|(known, _)| known == name);
    let mut homes = properties(schema)
        .filter(|(_, section)| has(section))
        .map(|(section, _)| KeyPath::keys([section.as_str(), name]));
    match (homes.next(), homes.next()) {
        (Some(home), None) => Some(home),
        _ => None,
    }
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().into_iter().flat_map(Map::iter)
}

fn key_path(location: &Location) -> KeyPath {
    location.iter().fold(KeyPath::root(), |path, segment| match segment {
        LocationSegment::Property(key) => path.key(&key),
        LocationSegment::Index(index) => path.index(index),
    })
}
