//! Violations of the schema as short messages.

use sepal_core::{NameMatching, nearest};
use serde_json::{Map, Value};

use crate::path::KeyPath;
use crate::renamed;
use crate::validate::{self, Kind, Violation};
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
    let mut findings = Vec::new();
    for violation in &validate::violations(schema, value, &KeyPath::root()) {
        Diagnosis { schema, violation }.into_findings(&mut findings);
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
    violation: &'a Violation<'a>,
}

impl Diagnosis<'_> {
    fn into_findings(self, findings: &mut Vec<Finding>) {
        let key = self.violation.key.clone();
        match &self.violation.kind {
            Kind::Unknown(name) => findings.push(self.unknown_key(&key, name)),
            Kind::Missing(name) => findings.push(self.missing_key(&key, name)),
            Kind::Branches(branches) => match closest(&key, branches) {
                Some(violations) => violations.iter().for_each(|violation| {
                    Diagnosis { schema: self.schema, violation }.into_findings(findings);
                }),
                None => findings.push(self.mismatch(key)),
            },
            Kind::Repeated => findings.push(Finding::new(key, self.repeated())),
            Kind::Choice if key.last_key() == Some("use") => findings.push(self.unknown_plugin(key)),
            Kind::Pattern => findings.push(self.wrong_text(key)),
            Kind::Range => findings.push(self.out_of_range(key)),
            Kind::Type | Kind::Choice | Kind::Other => findings.push(self.mismatch(key)),
        }
    }

    fn unknown_key(&self, parent: &KeyPath, name: &str) -> Finding {
        let key = parent.key(name);
        if let Some(successor) = renamed::successor(&key) {
            return Finding::new(key, format!("this key is no longer known; write {successor}"));
        }
        let known: Vec<&str> = properties(self.violation.schema).map(|(known, _)| known.as_str()).collect();
        let suggestion = nearest(name, known.iter().copied(), NameMatching::Options).map(str::to_owned);
        let home = home_of(self.schema, name);
        // The same key of a section is likelier than a similar section.
        let suggestion = suggestion.filter(|_| home.is_none() || parent != &KeyPath::root());
        let message = match (&suggestion, home) {
            (Some(_), _) => "unknown key".to_owned(),
            (None, Some(home)) => format!("unknown key; there is one at `{home}`"),
            (None, None) if known.is_empty() => "unknown key; there are no options".to_owned(),
            (None, None) => format!("unknown key; known: {}", known.join(", ")),
        };
        Finding { key, message, suggestion }
    }

    fn missing_key(&self, parent: &KeyPath, name: &str) -> Finding {
        let expected = describe(&self.violation.schema["properties"][name]);
        Finding::new(parent.key(name), format!("{MISSING}, expected {expected}"))
    }

    fn unknown_plugin(&self, key: KeyPath) -> Finding {
        let known = choices(self.violation.schema);
        let (noun, name) = (self.violation.schema["title"].as_str().unwrap_or("plugin"), self.violation.value);
        let message = match known.as_slice() {
            [] => format!("unknown {noun} {name}; none is registered"),
            known => format!("unknown {noun} {name}; known: {}", known.join(", ")),
        };
        Finding { key, message, suggestion: self.nearest_choice(&known) }
    }

    fn wrong_text(&self, key: KeyPath) -> Finding {
        let expected = self.violation.schema["patternErrorMessage"].as_str().unwrap_or("other text");
        Finding::new(key, format!("expected {expected}, found {}", show(self.violation.value)))
    }

    fn mismatch(&self, key: KeyPath) -> Finding {
        let (subschema, found) = (self.violation.schema, self.violation.value);
        let suggestion = self.nearest_choice(&choices(subschema));
        let unquoted = subschema["type"] == "string" && (found.is_number() || found.is_boolean());
        let hint = if unquoted { "; quotation marks make it text" } else { "" };
        Finding { key, message: format!("expected {}, found {}{hint}", describe(subschema), show(found)), suggestion }
    }

    fn out_of_range(&self, key: KeyPath) -> Finding {
        let [least, most] = validate::whole_numbers(self.violation.schema).unwrap_or_default();
        let found = show(self.violation.value);
        Finding::new(key, format!("expected a whole number from {least} to {most}, found {found}"))
    }

    fn nearest_choice(&self, choices: &[&str]) -> Option<String> {
        nearest(self.violation.value.as_str()?, choices.iter().copied(), NameMatching::Options).map(str::to_owned)
    }

    fn repeated(&self) -> String {
        let entries = self.violation.value.as_array().map(Vec::as_slice).unwrap_or_default();
        let entry = validate::first_repeated(entries).map(show).unwrap_or_default();
        format!("expected different entries, found {entry} twice")
    }
}

/// Names in the `enum` of a schema and of its branches.
fn choices(schema: &Value) -> Vec<&str> {
    let own = schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let branches = ["anyOf", "oneOf"].into_iter().flat_map(|keyword| schema[keyword].as_array().into_iter().flatten());
    own.chain(branches.flat_map(choices)).collect()
}

/// Violations of the only branch whose violations lie deeper than the value itself or are not about its type.
fn closest<'a>(key: &KeyPath, branches: &'a [Vec<Violation<'a>>]) -> Option<&'a [Violation<'a>]> {
    let fits = |violation: &Violation<'_>| {
        let is_shallow = violation.key == *key;
        !(is_shallow && matches!(violation.kind, Kind::Type | Kind::Choice))
    };
    let mut branches = branches.iter().filter(|violations| violations.iter().all(fits));
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
