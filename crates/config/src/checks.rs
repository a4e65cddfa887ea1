//! Checks beyond the schema: combinations of keys, and text with a syntax of its own. They ignore values that violate
//! the schema.

use std::str::FromStr;

use sepal_assets::Source;
use sepal_catalog::{Catalog, PluginKind};
use sepal_data::{Delimiter, Encoding, Template};
use sepal_swarm::{ListedServer, ListedServerError, Secret};
use serde_json::Value;

use crate::diagnose::Finding;
use crate::path::KeyPath;
use crate::schema::GROUP_PARAMS;
use crate::spec::DEFAULT_MAX_LENGTH;
use crate::spec::plugins::overridden;
use crate::words::show;

pub(crate) fn findings(value: &Value, catalog: &Catalog) -> Vec<Finding> {
    let mut findings = Vec::new();
    let model = &value["model"];
    sources(&KeyPath::keys(["model", "source"]), &model["source"], &mut findings);
    servers(&value["swarm"], &mut findings);
    secret_file(&value["swarm"], &mut findings);
    noise(value, &mut findings);
    let evaluated = value["evaluate"]["every"] != "never";
    data(&KeyPath::keys(["data"]), &value["data"], evaluated, &mut findings);
    windows(&value["data"], &mut findings);
    let calibrate = &value["calibrate"];
    let calibrates = calibrate["temperature"] == true || calibrate["thresholds"].is_string();
    if calibrates && !evaluated {
        let message = "expected evaluations to fit it on (`evaluate.every` is `never`)";
        findings.push(Finding::new(KeyPath::keys(["calibrate"]), message));
    }
    for (i, other) in value["data"]["otherwise"].as_array().into_iter().flatten().enumerate() {
        data(&KeyPath::keys(["data", "otherwise"]).index(i), other, evaluated, &mut findings);
    }
    for kind in PluginKind::ALL {
        let (key, choice) = (KeyPath::keys([kind.key()]), &value[kind.key()]);
        match choice.as_array() {
            Some(choices) => choices
                .iter()
                .enumerate()
                .for_each(|(i, choice)| options(kind, &key.index(i), choice, catalog, &mut findings)),
            None => options(kind, &key, choice, catalog, &mut findings),
        }
    }
    groups(&value["optimizer"], catalog, &mut findings);
    findings
}

fn sources(key: &KeyPath, value: &Value, findings: &mut Vec<Finding>) {
    match value {
        Value::String(text) => {
            if let Err(error) = Source::from_str(text) {
                findings.push(Finding::new(
                    key.clone(),
                    format!("found {}, which is no source; {}", show(value), error.problem),
                ));
            }
        }
        Value::Array(entries) => {
            entries.iter().enumerate().for_each(|(i, entry)| sources(&key.index(i), entry, findings));
        }
        _ => {}
    }
}

fn servers(swarm: &Value, findings: &mut Vec<Finding>) {
    let key = KeyPath::keys(["swarm", "with", "servers"]);
    for (i, server) in swarm["with"]["servers"].as_array().into_iter().flatten().enumerate() {
        let Some(Err(error)) = server.as_str().map(str::parse::<ListedServer>) else { continue };
        let expected = match error {
            ListedServerError::Addr(_) => "HOST:PORT or unix:PATH",
            ListedServerError::Key { .. } => "a public key of 64 hexadecimal digits after `#`",
        };
        findings.push(Finding::new(key.index(i), format!("expected {expected}, found {}", show(server))));
    }
}

/// Refuses the text of a secret, which a path would show and keep.
fn secret_file(swarm: &Value, findings: &mut Vec<Finding>) {
    if swarm["with"]["secret_file"].as_str().is_some_and(Secret::is_text) {
        let message = "expected the path of a file, found the text of a secret";
        findings.push(Finding::new(KeyPath::keys(["swarm", "with", "secret_file"]), message));
    }
}

fn noise(value: &Value, findings: &mut Vec<Finding>) {
    let has_noise = value["swarm"]["with"]["noise"].as_f64().is_some_and(|noise| noise > 0.0);
    if has_noise && value["train"]["deterministic"] == true {
        let message = "expected no noise with `train.deterministic`, because noise that can be repeated can be removed";
        findings.push(Finding::new(KeyPath::keys(["swarm", "with", "noise"]), message));
    }
}

fn data(key: &KeyPath, data: &Value, evaluated: bool, findings: &mut Vec<Finding>) {
    if !data.is_object() {
        return;
    }
    sources(&key.key("train"), &data["train"], findings);
    sources(&key.key("validation"), &data["validation"], findings);
    match (data["validation"].is_null(), data["validation_split"].is_null()) {
        (false, false) => findings.push(Finding::new(
            key.key("validation_split"),
            "expected either `validation` or `validation_split`, found both",
        )),
        (true, true) if evaluated => findings.push(Finding::new(
            key.key("validation"),
            "expected `validation` or `validation_split`, found neither; `evaluate.every: never` needs none",
        )),
        _ => {}
    }
    dialect(key, data, findings);
    template(key, data, findings);
    columns(key, data, findings);
}

fn windows(data: &Value, findings: &mut Vec<Finding>) {
    let max_length = data["max_length"].as_u64().unwrap_or(DEFAULT_MAX_LENGTH as u64);
    let stride = data["long_texts"]["windows"]["stride"].as_u64();
    if let Some(stride) = stride.filter(|&stride| stride >= max_length) {
        let key = KeyPath::keys(["data", "long_texts", "windows", "stride"]);
        let message = format!("expected less than `data.max_length` ({max_length}), found {stride}");
        findings.push(Finding::new(key, message));
    }
}

fn dialect(key: &KeyPath, data: &Value, findings: &mut Vec<Finding>) {
    let text = |name: &str| data[name].as_str();
    let problems = [
        ("delimiter", text("delimiter").and_then(|text| text.parse::<Delimiter>().err())),
        ("encoding", text("encoding").and_then(|text| text.parse::<Encoding>().err())),
    ];
    let found = problems.into_iter().filter_map(|(name, problem)| Some((name, problem?)));
    findings.extend(found.map(|(name, problem)| Finding::new(key.key(name), problem.to_string())));
}

fn template(key: &KeyPath, data: &Value, findings: &mut Vec<Finding>) {
    let key = key.key("template");
    let has_options = data["options"].as_array().is_some_and(|options| !options.is_empty());
    match data["template"].as_str().map(str::parse::<Template>) {
        Some(Err(error)) => {
            let message = format!("found {}, which is no template; {}", show(&data["template"]), error.problem);
            findings.push(Finding::new(key, message));
        }
        Some(Ok(template)) if template.takes_pair() && data["text_pair"].is_null() && !has_options => {
            findings
                .push(Finding::new(key, "expected `text_pair` or `options` beside it, because it holds `{text_pair}`"));
        }
        _ => {}
    }
}

fn columns(key: &KeyPath, data: &Value, findings: &mut Vec<Finding>) {
    for (name, other) in [("label", "text"), ("text_pair", "text"), ("text_pair", "label")] {
        if data[name].is_string() && data[name] == data[other] {
            let message = format!("expected another column than `{other}`, found {} for both", show(&data[name]));
            findings.push(Finding::new(key.key(name), message));
        }
    }
}

/// Adds the problems that the plugin's own check finds in well-formed options.
fn options(kind: PluginKind, key: &KeyPath, choice: &Value, catalog: &Catalog, findings: &mut Vec<Finding>) {
    let Some(name) = choice["use"].as_str() else { return };
    let problems = catalog.check(kind, name, choice["with"].clone()).unwrap_or_default();
    let below = key.key("with");
    findings.extend(problems.into_iter().map(|problem| Finding::new(below.key(&problem.key), problem.message)));
}

/// Checks the options of groups of parameters, each over those of the optimizer.
fn groups(optimizer: &Value, catalog: &Catalog, findings: &mut Vec<Finding>) {
    let Some(name) = optimizer["use"].as_str() else { return };
    let problems = |options: Value| catalog.check(PluginKind::Optimizer, name, options).unwrap_or_default();
    let base = optimizer["with"].as_object().cloned().unwrap_or_default();
    let known = problems(Value::Object(base.clone()));
    let key = KeyPath::keys(["optimizer", "groups"]);
    for (i, group) in optimizer["groups"].as_array().into_iter().flatten().enumerate() {
        let (Some(mut own), key) = (group.as_object().cloned(), key.index(i)) else { continue };
        own.shift_remove(GROUP_PARAMS);
        if own.is_empty() {
            let message = format!("expected options beside `{GROUP_PARAMS}`, for example `lr`");
            findings.push(Finding::new(key.clone(), message));
        }
        let found = problems(overridden(&base, &own)).into_iter().filter(|problem| !known.contains(problem));
        findings.extend(found.map(|problem| Finding::new(key.key(&problem.key), problem.message)));
    }
}
