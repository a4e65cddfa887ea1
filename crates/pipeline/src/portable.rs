//! A run as others may have it: without what is true of this machine alone.

use sepal_assets::{Source, Sources};
use sepal_track::Manifest;

use crate::spec::{CheckpointSpec, OutputSpec, Spec};
use crate::swarm::SwarmSpec;

/// The pipeline and the manifest of a run without servers, trackers, folders and other files of this machine. What was
/// trained with them predicts the same.
pub fn portable(spec: &Spec, manifest: &Manifest) -> (Spec, Manifest) {
    (portable_spec(spec), portable_manifest(manifest))
}

fn portable_spec(spec: &Spec) -> Spec {
    let mut spec = spec.clone();
    spec.swarm = SwarmSpec::default();
    spec.track = Vec::new();
    spec.output = OutputSpec::default();
    spec.checkpoint = CheckpointSpec::default();
    spec.train.threads = None;
    (spec.model.device, spec.model.local_blocks) = Default::default();
    // Prompts that began as those of another adapter do not need its file any more.
    spec.tuning.with.retain(|_, value| value.get("adapter").is_none());
    let data = &mut spec.data;
    let mut sources = vec![&mut spec.model.source, &mut data.train];
    sources.extend(data.validation.as_mut());
    for other in &mut data.otherwise {
        sources.push(&mut other.train);
        sources.extend(other.validation.as_mut());
    }
    for sources in sources {
        let names = Sources::new(sources.iter().map(Source::without_folders).collect());
        *sources = names.unwrap_or_else(|_| sources.clone());
    }
    spec
}

fn portable_manifest(manifest: &Manifest) -> Manifest {
    let mut manifest = manifest.clone();
    manifest.servers = Vec::new();
    manifest.model.passed_over = Vec::new();
    let data = &mut manifest.data;
    data.passed_over = Vec::new();
    for source in [&mut manifest.model.source, &mut data.train, &mut data.validation] {
        // What is none, such as a share of the training rows, stays as it is.
        if let Ok(parsed) = source.parse::<Source>() {
            *source = parsed.without_folders().to_string();
        }
    }
    manifest
}
