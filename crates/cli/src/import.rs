//! `sepal import peft`: PEFT folders as runs.

use std::path::Path;

use sepal_assets::{Asset, Assets, Kind, Source};
use sepal_checkpoint::Part;
use sepal_config::{Layers, Spec};
use sepal_peft::{Import, ImportOptions, Run};
use sepal_pipeline::{ModelFiles, adopted};
use sepal_plugin::Registry;
use sepal_track::Manifest;
use serde_json::{Value, json};

use crate::args::ImportPeftArgs;
use crate::downloads::Downloads;
use crate::output::{Failure, describe, print};
use crate::peft::{for_others, open_model};

/// Tokens of a row at most where nobody says more: as many as classifiers of transformers usually take.
const MAX_LENGTH: usize = 512;

/// A run for the folder, and its pipeline as it was read.
type NewRun = (Run, Spec);

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
    let import = Import::open(&options, checkpoint, &asset.path, &args.out)?;
    for notice in import.notices() {
        eprintln!("note: {notice}");
    }
    let run = match (exported_run(registry, args, &import, model.as_ref())?, model) {
        (Some(run), _) => Some(run),
        (None, Some(model)) => Some(new_run(registry, args, &import, model)?),
        (None, None) => None,
    };
    finish(args, import, run)
}

fn fetch(folder: &Source) -> Result<Asset, Failure> {
    let mut downloads = Downloads::new();
    let asset = Assets::from_env().fetch(folder, Kind::Adapter, &mut downloads.watch())?;
    drop(downloads);
    if asset.commit.is_some() {
        eprintln!("using {}", asset.pinned());
    }
    Ok(asset)
}

fn finish(args: &ImportPeftArgs, import: Import, run: Option<NewRun>) -> Result<(), Failure> {
    let (tuning, prefix_len) = (import.tuning().to_owned(), import.prefix_len());
    let (labels, is_foreign) = (import.labels().join(", "), import.is_foreign());
    let (run, spec) = run.unzip();
    let adapter = import.finish(run.as_ref())?;
    print(&format!("wrote {}: {tuning}, {prefix_len} prompts, labels {labels}", adapter.display()))?;
    let Some(spec) = spec else { return Ok(()) };
    print(&how_to_predict(args, &spec))?;
    match is_foreign {
        true => {
            let pipeline = args.out.join("pipeline.yaml");
            print(&format!(
                "`sepal run {} --set data.train=FILE` trains on from it, a tenth of the rows set aside; with a file of \
                 validation rows add `data.validation=FILE data.validation_split=null`",
                pipeline.display()
            ))
        }
        false => Ok(()),
    }
}

/// The run that the folder was exported from, with the command's options over it. It may be a stranger's, and does no harm as
/// others may see it; one that nobody understands is left out.
fn exported_run(
    registry: &Registry,
    args: &ImportPeftArgs,
    import: &Import,
    model: Option<&ModelFiles>,
) -> Result<Option<NewRun>, Failure> {
    let Some(Run { pipeline, manifest }) = import.run() else { return Ok(None) };
    let (run, _) = match for_others(registry, &Layers::text("the export's pipeline", pipeline), manifest) {
        Ok(run) => run,
        Err(problem) => {
            eprintln!("note: the adapter comes without its run: {}", describe(&*problem));
            return Ok(None);
        }
    };
    let layers = Layers::text("the export's pipeline", run.pipeline).sets(asked(args)?);
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
    Ok(Some((Run { pipeline: spec.to_yaml()?, manifest }, spec)))
}

/// A run for an adapter that brings none. Values that PEFT does not keep are those of the command's options, or defaults,
/// which are named in a note.
fn new_run(registry: &Registry, args: &ImportPeftArgs, import: &Import, model: ModelFiles) -> Result<NewRun, Failure> {
    let longest = model.checkpoint.config().max_positions.unwrap_or(usize::MAX).saturating_sub(import.prefix_len());
    let max_length = longest.clamp(1, MAX_LENGTH);
    let mut task = json!({ "labels": import.labels() });
    if import.multi_label() && import.labels().len() > 1 {
        task["multi_label"] = json!(true);
        eprintln!("note: any number of labels may be right for a text, as config.json says (problem_type)");
    }
    let pipeline = json!({
        "name": name(&args.out),
        "model": { "source": args.model },
        "task": { "use": import.task(), "with": task },
        "tuning": { "use": import.tuning(), "with": {
            "pre_seq_len": import.prefix_len(),
            "init": { "adapter": std::path::absolute(&args.out)? },
        } },
        "data": { "train": "train.csv", "validation_split": 0.1, "text": "text", "label": "label", "max_length": max_length },
        "optimizer": { "use": "adamw", "with": { "lr": 3.0e-3, "weight_decay": 0.0 } },
        "schedule": { "use": "linear" },
    });
    let spec = Layers::text("the new pipeline", pipeline.to_string()).sets(asked(args)?).load(registry.catalog())?.spec;
    if let Some(notice) = assumed(args, &spec) {
        eprintln!("note: {notice}");
    }
    let manifest = adopted(&spec, registry, model, &import.adapter())?;
    Ok((Run { pipeline: spec.to_yaml()?, manifest }, spec))
}

/// The options of the command as settings of the pipeline.
fn asked(args: &ImportPeftArgs) -> Result<Vec<String>, Failure> {
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
    // JSON is YAML.
    texts.chain(others).map(|(key, value)| Ok(format!("{key}={}", serde_json::to_string(&value)?))).collect()
}

/// The options that were not given although the folder does not hold their values, if there are such.
fn assumed(args: &ImportPeftArgs, spec: &Spec) -> Option<String> {
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
        .then(|| format!("PEFT does not keep how texts were prepared; assumed: {}", assumed.join(", ")))
}

/// The folder's name as far as a pipeline may be named so.
fn name(out: &Path) -> String {
    let is_usual = |c: &char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(c);
    let text = out.file_name().unwrap_or_default().to_string_lossy();
    let usual: String = text.chars().filter(is_usual).collect();
    match usual.trim_start_matches(['-', '_', '.']) {
        "" => "imported".to_owned(),
        name => name.to_owned(),
    }
}

fn how_to_predict(args: &ImportPeftArgs, spec: &Spec) -> String {
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
