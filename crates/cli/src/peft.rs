//! `sepal export peft`: adapters as PEFT folders.

use std::path::Path;

use sepal_assets::{Asset, Assets, Source};
use sepal_checkpoint::{Format, Part};
use sepal_config::{Layers, Spec};
use sepal_peft::{ExportError, ExportOptions, FolderError, Run, Verify};
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
        sources => sources.to_vec(),
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
    let exported = sepal_peft::export(&options, &model.checkpoint, &adapter, &args.folder).map_err(export_failure)?;
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

fn export_failure(error: ExportError) -> Failure {
    match error {
        ExportError::BaseModel => format!("{error} (--base-model OWNER/NAME)").into(),
        ExportError::Folder(FolderError::Exists { path }) => existing_folder(&path),
        error => error.into(),
    }
}

pub(crate) fn existing_folder(path: &Path) -> Failure {
    format!("write {}: it exists; name another folder, or use --overwrite", path.display()).into()
}

/// Returns the parts of a run that can be published, and its pipeline.
pub(crate) fn publishable_run(
    registry: &Registry,
    layers: &Layers,
    manifest: &Manifest,
) -> Result<(Run, Spec), Failure> {
    let (spec, manifest) = portable(&layers.load(registry.catalog())?.spec, manifest);
    Ok((Run { pipeline: spec.to_yaml()?, manifest }, spec))
}

fn portable_run(registry: &Registry, run: &Path, manifest: Option<Manifest>) -> Result<Option<Run>, Failure> {
    let Some(manifest) = manifest else {
        eprintln!("note: the run has no manifest.json; the export will not contain its template or other facts");
        return Ok(None);
    };
    let (run, _) = publishable_run(registry, &Layers::read(&run.join("pipeline.yaml"))?, &manifest)?;
    Ok(Some(run))
}

fn manifest(run: &Path) -> Result<Option<Manifest>, Failure> {
    match Manifest::read(run) {
        Ok(manifest) => Ok(Some(manifest)),
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns the recorded source of the run's model, or the sources of its pipeline.
fn sources(registry: &Registry, run: &Path, manifest: Option<&Manifest>) -> Result<Vec<Source>, Failure> {
    if let Some(manifest) = manifest {
        return Ok(vec![manifest.model.source.parse()?]);
    }
    let loaded = Layers::read(&run.join("pipeline.yaml"))?.load(registry.catalog())?;
    Ok(loaded.spec.model.source.to_vec())
}

pub(crate) fn open_model(sources: &[Source], part: Part) -> Result<ModelFiles, Failure> {
    let assets = Assets::from_env();
    let mut downloads = Downloads::default();
    let mut watch = downloads.watch();
    let files = ModelFiles::open(&assets, sources, &mut watch)?;
    files.fetch(&assets, part, &mut watch)?;
    Ok(files)
}

/// Returns the name and revision under which PEFT finds the model, or an empty name, as for GGUF files.
fn base_model(model: &ModelFiles) -> (String, Option<String>) {
    let Asset { path, commit, source, .. } = &model.asset;
    match source {
        _ if model.checkpoint.describe().format != Format::Safetensors => (String::new(), None),
        Source::Hub(hub) if hub.path().is_none() => (format!("{}/{}", hub.owner(), hub.name()), commit.clone()),
        Source::Local(_) => {
            let absolute = path.canonicalize().unwrap_or_else(|_| path.clone());
            (absolute.display().to_string(), None)
        }
        _ => (String::new(), None),
    }
}
