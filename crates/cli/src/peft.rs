//! `sepal export peft`: adapters as PEFT folders.

use std::path::Path;

use sepal_assets::{Asset, Assets, Source};
use sepal_checkpoint::{Format, Part};
use sepal_config::{Layers, Spec};
use sepal_peft::{ExportOptions, Run, Verify};
use sepal_pipeline::{ModelFiles, portable};
use sepal_plugin::Registry;
use sepal_track::Manifest;

use crate::args::ExportPeftArgs;
use crate::downloads::Downloads;
use crate::output::{Failure, print};

pub(crate) fn export(registry: &Registry, args: &ExportPeftArgs) -> Result<(), Failure> {
    let manifest = manifest(&args.run)?;
    let sources = match &args.model[..] {
        [] => sources(registry, &args.run, manifest.as_ref())?,
        given => given.to_vec(),
    };
    let model = open_model(&sources, Part::All)?;
    let (base_model, revision) = match &args.base_model {
        Some(name) => (name.clone(), None),
        None => base_model(&model),
    };
    let adapter = args.run.join("adapter.safetensors");
    let options = ExportOptions {
        base_model,
        revision,
        form: args.form,
        verify: if args.verify { Verify::Samples } else { Verify::Nothing },
        run: portable_run(registry, &args.run, manifest)?,
        overwrite: args.overwrite,
    };
    let exported = sepal_peft::export(&options, &model.checkpoint, &adapter, &args.folder)?;
    for notice in &exported.notices {
        eprintln!("note: {notice}");
    }
    let (prompts, labels) = (exported.prefix_len, exported.labels.join(", "));
    print(&format!("wrote {}: {prompts} prompts as {}, labels {labels}", args.folder.display(), args.form))?;
    if let Some(verified) = exported.verified {
        print(&format!(
            "verified: logits of {} rows differ by at most {:.1e}; the largest is {:.3}",
            verified.rows, verified.difference, verified.largest
        ))?;
    }
    Ok(())
}

/// What of a run others may see, and its pipeline.
pub(crate) fn for_others(registry: &Registry, layers: &Layers, manifest: &Manifest) -> Result<(Run, Spec), Failure> {
    let (spec, manifest) = portable(&layers.load(registry.catalog())?.spec, manifest);
    Ok((Run { pipeline: spec.to_yaml()?, manifest }, spec))
}

/// The run as it is exported.
fn portable_run(registry: &Registry, run: &Path, manifest: Option<Manifest>) -> Result<Option<Run>, Failure> {
    let Some(manifest) = manifest else {
        eprintln!("note: the run has no manifest.json; others will not know its template, nor anything else of it");
        return Ok(None);
    };
    let (run, _) = for_others(registry, &Layers::read(&run.join("pipeline.yaml"))?, &manifest)?;
    Ok(Some(run))
}

/// What the run says of itself, if it got so far.
fn manifest(run: &Path) -> Result<Option<Manifest>, Failure> {
    match Manifest::read(run) {
        Ok(manifest) => Ok(Some(manifest)),
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Where the run had its model from, or where its pipeline would look.
fn sources(registry: &Registry, run: &Path, manifest: Option<&Manifest>) -> Result<Vec<Source>, Failure> {
    if let Some(manifest) = manifest {
        return Ok(vec![manifest.model.source.parse()?]);
    }
    let loaded = Layers::read(&run.join("pipeline.yaml"))?.load(registry.catalog())?;
    Ok(loaded.spec.model.source.to_vec())
}

pub(crate) fn open_model(sources: &[Source], part: Part) -> Result<ModelFiles, Failure> {
    let assets = Assets::from_env();
    let mut downloads = Downloads::new();
    let mut watch = downloads.watch();
    let files = ModelFiles::open(&assets, sources, &mut watch)?;
    files.fetch(&assets, part, &mut watch)?;
    Ok(files)
}

/// The name and revision under which PEFT finds the model itself; empty if it cannot, as with GGUF files.
fn base_model(model: &ModelFiles) -> (String, Option<String>) {
    let Asset { path, commit, source, .. } = &model.asset;
    match source {
        _ if model.checkpoint.describe().format != Format::Safetensors => (String::new(), None),
        Source::Hub(hub) if hub.path().is_none() => (format!("{}/{}", hub.owner(), hub.name()), commit.clone()),
        Source::Local(_) => {
            let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
            (whole.display().to_string(), None)
        }
        _ => (String::new(), None),
    }
}
