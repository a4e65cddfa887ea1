//! `sepal validate`, `fetch`, `outline`, `schema` and `plugins`.

use sepal_catalog::{Catalog, Entry, PluginKind};
use sepal_config::{Spec, Sweep};
use serde_json::{Value, json};

use crate::args::{OutlineArgs, PipelineArgs, PluginsArgs};
use crate::console::Console;
use crate::output::{Failure, print, print_json, print_progress, print_yaml};
use crate::pipeline_file::{layers, load};

pub(crate) fn validate(catalog: &Catalog, args: &PipelineArgs) -> Result<(), Failure> {
    let layers = layers(args)?;
    if !layers.is_sweep() {
        let rendered = layers.render(catalog)?;
        rendered.notices.iter().for_each(|notice| print_progress(notice));
        return print_yaml(rendered.to_yaml(false).trim_end());
    }
    let sweep = layers.load_sweep(catalog)?;
    sweep.notices.iter().for_each(|notice| print_progress(notice));
    let mut text = format!("# {}\n", overview(&sweep));
    for (index, member) in sweep.members.iter().enumerate() {
        let settings: Vec<String> = member.settings.iter().map(|setting| setting.describe()).collect();
        text.push_str(&format!("#   {}: {}\n", index + 1, settings.join(", ").replace('\n', " ")));
    }
    // A pipeline that is complete only with the values of a run has no defaults to show.
    let resolved = layers.render(catalog);
    text.push_str(&resolved.map_or(sweep.yaml, |rendered| rendered.to_yaml(false)));
    print_yaml(text.trim_end())
}

pub(crate) fn fetch(catalog: &Catalog, args: &PipelineArgs) -> Result<(), Failure> {
    let layers = layers(args)?;
    if !layers.is_sweep() {
        return Ok(sepal_prepare::fetch(&load(catalog, args)?, &mut Console::default())?);
    }
    let members = layers.load_sweep(catalog)?.members;
    let mut fetched: Vec<&Spec> = Vec::new();
    for spec in members.iter().map(|member| &member.spec) {
        let is_fetched = |known: &&Spec| (&known.model, &known.data) == (&spec.model, &spec.data);
        if !fetched.iter().any(is_fetched) {
            sepal_prepare::fetch(spec, &mut Console::default())?;
            fetched.push(spec);
        }
    }
    Ok(())
}

pub(crate) fn outline(args: &OutlineArgs) -> Result<(), Failure> {
    let folder = &args.folder;
    let written = sepal_checkpoint::write_outline(folder, &mut |parts| {
        let file = parts.first().map(|(file, _)| file.as_str()).unwrap_or_default();
        Err(format!("{file} is not there; an outline is made where all files of the weights are").into())
    })?;
    match written {
        Some(path) => print(&format!("wrote {}; copy it with the files that a server needs", path.display())),
        None => {
            Err(format!("outline {}: the weights are in one file, of which no part can be left out", folder.display())
                .into())
        }
    }
}

pub(crate) fn schema(catalog: &Catalog) -> Result<(), Failure> {
    print_json(&serde_json::to_string_pretty(&sepal_config::schema(catalog))?)
}

pub(crate) fn list(catalog: &Catalog, args: &PluginsArgs) -> Result<(), Failure> {
    let slots = PluginKind::ALL.map(|kind| (kind.key(), catalog.entries(kind).collect::<Vec<_>>()));
    if args.json {
        let json: serde_json::Map<String, Value> = slots
            .iter()
            .map(|(key, entries)| ((*key).to_owned(), entries.iter().map(|entry| describe_json(entry)).collect()))
            .collect();
        return print_json(&serde_json::to_string_pretty(&json)?);
    }
    for (key, entries) in slots {
        print(&format!("{key}:"))?;
        for entry in entries {
            print(&describe(entry))?;
        }
    }
    Ok(())
}

fn describe_json(entry: &Entry) -> Value {
    json!({ "name": entry.name, "summary": entry.summary, "schema": entry.schema, "example": entry.example })
}

fn describe(entry: &Entry) -> String {
    let mut text = format!("  {}: {}", entry.name, entry.summary);
    for (key, property) in entry.schema["properties"].as_object().into_iter().flatten() {
        let meaning = property["description"].as_str().unwrap_or_default();
        let meaning = meaning.split_whitespace().collect::<Vec<_>>().join(" ");
        let default = property.get("default").map(|default| format!(" (default {default})")).unwrap_or_default();
        text.push_str(&format!("\n      {key}{default}: {meaning}"));
    }
    text
}

/// One line on the number of runs.
pub fn overview(sweep: &Sweep) -> String {
    let runs = sweep.members.len();
    let seeds = sweep.members.iter().flat_map(|member| &member.settings).filter(|setting| setting.is_seed());
    let mut seeds: Vec<String> = seeds.map(|setting| setting.describe()).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let seeds = if seeds.len() > 1 { format!(", with {} seeds", seeds.len()) } else { String::new() };
    let halving = match &sweep.halving {
        Some(halving) => format!("; the best 1/{} continue after {} steps", halving.factor, halving.min_steps),
        None => String::new(),
    };
    let noun = if runs == 1 { "run" } else { "runs" };
    format!("sweep of {runs} {noun}{seeds}{halving}")
}
