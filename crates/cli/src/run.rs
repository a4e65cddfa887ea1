//! `sepal run`, `validate`, `fetch`, `outline`, `schema` and `plugins`.

use sepal_plugin::{Entry, PluginKind, Registry};
use serde_json::{Value, json};

use crate::args::{OutlineArgs, PipelineArgs, PluginsArgs, RunArgs};
use crate::console::{Console, summary};
use crate::interrupt::stop_on_interrupt;
use crate::output::{Failure, print};
use crate::pipeline_file::load;

pub(crate) fn run(registry: &Registry, args: &RunArgs) -> Result<(), Failure> {
    let folder = args.resume.clone().flatten();
    let file = match (&args.file, &folder) {
        (Some(file), _) => file.clone(),
        (None, Some(folder)) => folder.join("pipeline.yaml"),
        (None, None) => return Err("resume: name a pipeline file, or the run's folder after --resume".into()),
    };
    let spec = load(registry, &PipelineArgs { file, set: args.set.clone() })?;
    let stop = stop_on_interrupt("stopping after this step, and saving")?;
    let mut console = Console::default();
    let folder = match &args.resume {
        Some(None) => sepal_pipeline::unfinished_run(&spec, registry),
        _ => folder,
    };
    match (&folder, &args.resume) {
        (Some(folder), _) => console.line(&format!("resuming {}", folder.display())),
        (None, Some(_)) => console.line("nothing to resume: a new run begins"),
        (None, None) => {}
    }
    let done = match folder {
        Some(folder) => sepal_pipeline::resume(&spec, &folder, registry, &mut console, &stop),
        None => sepal_pipeline::run(&spec, registry, &mut console, &stop),
    };
    // The bar is cleared before the summary is printed.
    drop(console);
    print(&summary(&done?))
}

pub(crate) fn validate(registry: &Registry, args: &PipelineArgs) -> Result<(), Failure> {
    print(load(registry, args)?.to_yaml()?.trim_end())
}

pub(crate) fn fetch(registry: &Registry, args: &PipelineArgs) -> Result<(), Failure> {
    let spec = load(registry, args)?;
    Ok(sepal_pipeline::fetch(&spec, &mut Console::default())?)
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

pub(crate) fn schema(registry: &Registry) -> Result<(), Failure> {
    print(&serde_json::to_string_pretty(&sepal_config::schema(registry.catalog()))?)
}

pub(crate) fn list(registry: &Registry, args: &PluginsArgs) -> Result<(), Failure> {
    let slots = PluginKind::ALL.map(|kind| (kind.key(), registry.catalog().entries(kind).collect::<Vec<_>>()));
    if args.json {
        let json: serde_json::Map<String, Value> = slots
            .iter()
            .map(|(key, entries)| ((*key).to_owned(), entries.iter().map(|entry| describe_json(entry)).collect()))
            .collect();
        return print(&serde_json::to_string_pretty(&json)?);
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
