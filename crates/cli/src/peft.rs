//! `sepal export peft`: adapters as PEFT folders.

use std::path::{Path, PathBuf};

use sepal_assets::{Asset, Assets, Source};
use sepal_checkpoint::{Format, Part};
use sepal_config::spec::PluginSpec;
use sepal_config::{Layers, Spec};
use sepal_core::HostTensor;
use sepal_peft::{ExportError, ExportOptions, Exported, FolderError, Run, UsedPlugin, Verify};
use sepal_pipeline::{ModelFiles, portable, trained_prompts};
use sepal_plugin::Registry;
use sepal_track::{Calibration, Manifest};

use crate::args::ExportPeftArgs;
use crate::downloads::Downloads;
use crate::output::{Failure, listed, print, print_progress};

pub(crate) fn export(registry: &Registry, args: &ExportPeftArgs) -> Result<(), Failure> {
    let run = TrainedRun::open(registry, &args.run, &args.model)?;
    let prompts = run.prompts(registry)?;
    let model = open_model(&run.sources, Part::All)?;
    let (base_model, revision) = match &args.base_model {
        Some(name) => (name.clone(), None),
        None => base_model(&model),
    };
    let options = ExportOptions {
        base_model,
        revision,
        form: args.form,
        verify: if args.verify { Verify::Samples } else { Verify::Nothing },
        task: run.task(),
        tuning: run.tuning(),
        prompts,
        run: portable_run(registry, &args.run, run.manifest.clone())?,
        overwrite: args.overwrite,
    };
    let exported =
        sepal_peft::export(&options, &model.checkpoint, &run.adapter(), &args.folder).map_err(export_failure)?;
    for notice in &exported.notices {
        print_progress(&format!("note: {notice}"));
    }
    let Exported { description, form, labels, .. } = &exported;
    print(&format!("wrote {}: {description} as {form}, labels {}", args.folder.display(), listed(labels)))?;
    if let Some(verified) = exported.verified {
        print(&format!(
            "verified: logits of {} rows differ by at most {:.1e}; the largest is {:.3}",
            verified.rows, verified.difference, verified.largest
        ))?;
    }
    Ok(())
}

/// Run whose adapter is exported or merged.
pub(crate) struct TrainedRun<'a> {
    folder: &'a Path,
    manifest: Option<Manifest>,
    /// Pipeline, if the run has one.
    spec: Option<Spec>,
    /// Sources of the model.
    pub(crate) sources: Vec<Source>,
}

impl<'a> TrainedRun<'a> {
    /// `model` replaces the source of the run's model.
    pub(crate) fn open(registry: &Registry, folder: &'a Path, model: &[Source]) -> Result<Self, Failure> {
        let manifest = manifest(folder)?;
        let pipeline = folder.join("pipeline.yaml");
        let spec = match pipeline.is_file() {
            true => Some(Layers::read(&pipeline)?.load(registry.catalog())?.spec),
            false => None,
        };
        let sources = match (model, &manifest, &spec) {
            ([], Some(manifest), _) => vec![manifest.model.source.parse()?],
            ([], None, Some(spec)) => spec.model.source.to_vec(),
            ([], None, None) => {
                return Err(
                    format!("read {}: the run has neither manifest.json nor pipeline.yaml", folder.display()).into()
                );
            }
            (sources, ..) => sources.to_vec(),
        };
        Ok(Self { folder, manifest, spec, sources })
    }

    pub(crate) fn adapter(&self) -> PathBuf {
        self.folder.join("adapter.safetensors")
    }

    pub(crate) fn task(&self) -> Option<UsedPlugin> {
        self.spec.as_ref().map(|spec| used(&spec.task))
    }

    pub(crate) fn tuning(&self) -> Vec<UsedPlugin> {
        self.spec.iter().flat_map(|spec| spec.tuning.modes()).map(used).collect()
    }

    pub(crate) fn calibration(&self) -> Option<Calibration> {
        self.manifest.as_ref()?.calibration.clone()
    }

    /// Computes the prompts of a tuning mode with an encoder.
    fn prompts(&self, registry: &Registry) -> Result<Option<HostTensor>, Failure> {
        let adapter = self.adapter();
        match &self.spec {
            Some(spec) if sepal_peft::has_encoder(&adapter)? => {
                let model = open_model(&self.sources, Part::Ends)?;
                Ok(trained_prompts(spec, registry, model, &adapter)?)
            }
            _ => Ok(None),
        }
    }
}

fn used(plugin: &PluginSpec) -> UsedPlugin {
    UsedPlugin { name: plugin.name.clone(), with: plugin.with.clone() }
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
        print_progress("note: the run has no manifest.json; the export will not contain its template or other facts");
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
