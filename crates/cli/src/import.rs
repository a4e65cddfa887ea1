//! `sepal import peft`: runs from PEFT folders.

use std::path::Path;

use sepal_assets::{Asset, Assets, Kind, Source};
use sepal_checkpoint::Part;
use sepal_config::{Layers, Spec};
use sepal_peft::{FolderError, Import, ImportError, ImportOptions, Run, UsedPlugin};
use sepal_pipeline::{ModelFiles, adopted};
use sepal_plugin::Registry;
use sepal_track::Manifest;
use sepal_track::export::is_hub_name;
use serde_json::{Value, json};

use crate::args::ImportPeftArgs;
use crate::downloads::Downloads;
use crate::output::{Failure, describe, listed, print, print_progress};
use crate::peft::{existing_folder, open_model, publishable_run};

/// Default maximum of tokens in a row, as usual for classifiers in transformers.
const MAX_LENGTH: usize = 512;

/// Run to write beside the imported adapter.
struct ImportedRun {
    run: Run,
    spec: Spec,
}

pub(crate) fn import(registry: &Registry, args: &ImportPeftArgs) -> Result<(), Failure> {
    let model = match &args.model[..] {
        [] => None,
        sources => Some(open_model(sources, Part::Ends)?),
    };
    let asset = fetch(&args.folder)?;
    let options = ImportOptions {
        labels: (!args.labels.is_empty()).then(|| args.labels.clone()),
        model_folder: model.as_ref().map(|model| model.asset.path.clone()),
        overwrite: args.overwrite,
    };
    let checkpoint = model.as_ref().map(|model| &model.checkpoint);
    let import = Import::open(&options, checkpoint, &asset.path, &args.out).map_err(import_failure)?;
    for notice in import.notices() {
        print_progress(&format!("note: {notice}"));
    }
    if import.has_assumed_labels() {
        print_progress("note: --labels sets other names of labels");
    }
    let imported = match (exported_run(registry, args, &import, model.as_ref())?, model) {
        (Some(exported), _) => Some(exported),
        (None, Some(model)) => Some(new_run(registry, args, &import, model)?),
        (None, None) => None,
    };
    finish(args, import, imported)
}

fn fetch(folder: &Source) -> Result<Asset, Failure> {
    let mut downloads = Downloads::default();
    let asset = Assets::from_env().fetch(folder, Kind::Adapter, &mut downloads.watch())?;
    drop(downloads);
    if asset.commit.is_some() {
        print_progress(&format!("using {}", asset.pinned()));
    }
    Ok(asset)
}

fn finish(args: &ImportPeftArgs, import: Import, imported: Option<ImportedRun>) -> Result<(), Failure> {
    let modes: Vec<&str> = import.modes().iter().map(|mode| mode.name.as_str()).collect();
    let (tuning, description) = (modes.join(" and "), import.description());
    let (labels, is_foreign) = (listed(import.labels()), import.is_foreign());
    let adapter = import.finish(imported.as_ref().map(|imported| &imported.run)).map_err(import_failure)?;
    print(&format!("wrote {}: {tuning}, {description}, labels {labels}", adapter.display()))?;
    let Some(ImportedRun { spec, .. }) = imported else { return Ok(()) };
    print(&predict_hint(args, &spec))?;
    match is_foreign {
        true => {
            let pipeline = args.out.join("pipeline.yaml");
            print(&format!(
                "`sepal run {} --set data.train=FILE` continues training from it and sets a tenth of the rows aside; for a \
                 file of validation rows add `data.validation=FILE data.validation_split=null`",
                pipeline.display()
            ))
        }
        false => Ok(()),
    }
}

/// Returns the run that the folder was exported from, with the options of the command applied. The run is untrusted, so
/// that only its publishable parts are used; an invalid run is left out with a note.
fn exported_run(
    registry: &Registry,
    args: &ImportPeftArgs,
    import: &Import,
    model: Option<&ModelFiles>,
) -> Result<Option<ImportedRun>, Failure> {
    let Some(Run { pipeline, manifest }) = import.run() else { return Ok(None) };
    let (run, _) = match publishable_run(registry, &Layers::text("the export's pipeline", pipeline), manifest) {
        Ok(run) => run,
        Err(problem) => {
            print_progress(&format!("note: the adapter is imported without its run: {}", describe(&*problem)));
            return Ok(None);
        }
    };
    let layers = Layers::text("the export's pipeline", run.pipeline).sets(settings(args)?);
    let spec = layers.load(registry.catalog())?.spec;
    let mut manifest = Manifest { labels: import.labels().to_vec(), ..run.manifest };
    if let Some(model) = model {
        manifest.model.source = model.asset.pinned().to_string();
    }
    let (facts, data) = (&mut manifest.data, &spec.data.rows);
    facts.max_length = Some(spec.data.max_length);
    if args.template.is_some() {
        facts.template.clone_from(&data.template);
    }
    if let Some(text) = &args.text {
        facts.text.clone_from(text);
    }
    if args.text_pair.is_some() {
        facts.text_pair.clone_from(&args.text_pair);
    }
    if let Some(label) = &args.label {
        facts.label.clone_from(label);
    }
    Ok(Some(ImportedRun { run: Run { pipeline: spec.to_yaml()?, manifest }, spec }))
}

/// Returns a run for an adapter without one. Values that PEFT does not save come from the options of the command, or are
/// defaults, which a note lists.
fn new_run(
    registry: &Registry,
    args: &ImportPeftArgs,
    import: &Import,
    model: ModelFiles,
) -> Result<ImportedRun, Failure> {
    let longest = model.checkpoint.config().max_positions.unwrap_or(usize::MAX).saturating_sub(import.prefix_len());
    let max_length = longest.clamp(1, MAX_LENGTH);
    let mut task = json!({ "labels": import.labels() });
    if import.multi_label() && import.labels().len() > 1 {
        task["multi_label"] = json!(true);
        print_progress("note: any number of labels may apply to a text, as config.json says (problem_type)");
    }
    // Layers take smaller steps than prompts.
    let lr = if import.prefix_len() > 0 { 3.0e-3 } else { 1.0e-3 };
    let pipeline = json!({
        "name": name(&args.out),
        "model": { "source": args.model },
        "task": { "use": import.task(), "with": task },
        "tuning": tuning(import, &std::path::absolute(&args.out)?),
        "data": { "train": "train.csv", "validation_split": 0.1, "text": "text", "label": "label", "max_length": max_length },
        "optimizer": { "use": "adamw", "with": { "lr": lr, "weight_decay": 0.0 } },
        "schedule": { "use": "linear" },
    });
    let spec =
        Layers::text("the new pipeline", pipeline.to_string()).sets(settings(args)?).load(registry.catalog())?.spec;
    if let Some(notice) = assumptions(args, &spec) {
        print_progress(&format!("note: {notice}"));
    }
    let manifest = adopted(&spec, registry, model, &import.adapter())?;
    Ok(ImportedRun { run: Run { pipeline: spec.to_yaml()?, manifest }, spec })
}

/// Returns the tuning modes of a new run, which continues with the imported adapter.
fn tuning(import: &Import, adapter: &Path) -> Value {
    let mode = |UsedPlugin { name, with }: &UsedPlugin| {
        let mut with = with.clone();
        with.insert("init".to_owned(), json!({ "adapter": adapter }));
        json!({ "use": name, "with": with })
    };
    match import.modes() {
        [only] => mode(only),
        modes => modes.iter().map(mode).collect(),
    }
}

fn settings(args: &ImportPeftArgs) -> Result<Vec<String>, Failure> {
    let texts = [
        ("data.template", &args.template),
        ("data.text", &args.text),
        ("data.text_pair", &args.text_pair),
        ("data.label", &args.label),
    ];
    let texts = texts.into_iter().filter_map(|(key, text)| Some((key, Value::from(text.clone()?))));
    let others = [
        ("task.with.labels", (!args.labels.is_empty()).then(|| json!(args.labels))),
        ("task.with.multi_label", args.multi_label.then(|| json!(true))),
        ("data.max_length", args.max_length.map(|length| json!(length))),
        ("model.source", (!args.model.is_empty()).then(|| json!(args.model))),
    ];
    let others = others.into_iter().filter_map(|(key, value)| Some((key, value?)));
    // Settings are YAML, which includes JSON.
    texts.chain(others).map(|(key, value)| Ok(format!("{key}={}", serde_json::to_string(&value)?))).collect()
}

/// Returns a note about values that neither the folder nor an option gives.
fn assumptions(args: &ImportPeftArgs, spec: &Spec) -> Option<String> {
    let (data, mut assumed) = (&spec.data.rows, Vec::new());
    if data.template.is_none() {
        assumed.push("no template (--template)".to_owned());
    }
    if args.max_length.is_none() {
        assumed.push(format!("at most {} tokens (--max-length)", spec.data.max_length));
    }
    if args.text.is_none() || args.label.is_none() {
        assumed.push(format!("columns `{}` and `{}` (--text, --label)", data.text, data.label));
    }
    (!assumed.is_empty())
        .then(|| format!("PEFT does not save the preparation of texts; assumed: {}", assumed.join(", ")))
}

/// Returns the characters of the folder's name that are valid in the name of a pipeline.
fn name(out: &Path) -> String {
    let is_usual = |c: &char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(c);
    let text = out.file_name().unwrap_or_default().to_string_lossy();
    let usual: String = text.chars().filter(is_usual).collect();
    match usual.trim_start_matches(['-', '_', '.']) {
        "" => "imported".to_owned(),
        name => name.to_owned(),
    }
}

fn import_failure(error: ImportError) -> Failure {
    match error {
        ImportError::NeedsModel { base_model: Some(name) } if is_hub_name(&name) => {
            format!("import the folder: name its base model (--model hub:{name})").into()
        }
        ImportError::NeedsModel { .. } => format!("{error} (--model SOURCE)").into(),
        ImportError::Folder(FolderError::Exists { path }) => existing_folder(&path),
        error => error.into(),
    }
}

fn predict_hint(args: &ImportPeftArgs, spec: &Spec) -> String {
    let is_local = |source: &Source| matches!(source, Source::Local(_));
    let (folder, source) = (args.out.display(), &spec.model.source);
    let (set, model) = if args.model.is_empty() && source.iter().all(is_local) {
        (" --set model.source=SOURCE", format!("its model was in a folder, {source}"))
    } else {
        ("", format!("its model is {source}"))
    };
    format!("`sepal predict {folder} --input FILE{set}` predicts with it; {model}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipeline_name_from_a_folder_is_valid() {
        for (out, expected) in [
            ("runs/reviews-2", "reviews-2"),
            ("two words", "twowords"),
            (".hidden", "hidden"),
            ("äß", "imported"),
            ("..", "imported"),
        ] {
            assert_eq!(name(Path::new(out)), expected, "{out}");
        }
    }
}
