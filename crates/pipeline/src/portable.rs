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

#[cfg(test)]
mod tests {
    use sepal_plugin::{Head, Registry, Tuning, standard};

    use super::*;
    use crate::Layers;

    const PIPELINE: &str = "\
name: demo
model: { source: [/secret/models/tiny, hub:a/b], local_blocks: 2 }
swarm: { use: static, with: { servers: ['secret:4000'] } }
task: { use: sequence-classification, with: { labels: [negative, positive] } }
tuning: { use: deep-ptune, with: { pre_seq_len: 4, init: { adapter: /secret/adapter.safetensors } } }
data:
  train: [../secret/train.csv, pypi:c==1.0/rows.csv]
  validation: ~/secret/validation.csv
  text: sentence
  label: label
  template: 'It says: {text}'
  max_length: 32
  otherwise: [{ train: /secret/b.csv, validation: ./secret/c.csv, text: text, label: label }]
optimizer: { use: adamw }
schedule: { use: linear }
train: { threads: 1, seed: 7 }
output: { folder: /secret/runs }
track: [{ use: mlflow, with: { tracking_uri: 'http://secret:5000' } }]
";

    #[test]
    fn others_see_what_predicts_and_nothing_of_this_machine() {
        let mut registry = Registry::new();
        standard::register(&mut registry).expect("the standard plugins");
        registry.register::<Head, sepal_sequence_classification::SequenceClassification>().expect("a head");
        registry.register::<Tuning, sepal_deep_ptune::DeepPtune>().expect("a tuning mode");
        let spec = Layers::text("demo.yaml", PIPELINE).load(&registry).expect("a pipeline").spec;
        let text = portable_spec(&spec).to_yaml().expect("YAML");
        assert!(!text.contains("secret"), "{text}");
        let read = Layers::text("demo.yaml", text).load(&registry).expect("a pipeline").spec;
        assert_eq!(read.model.source.to_string(), "tiny, else hub:a/b");
        assert_eq!(read.data.train.to_string(), "train.csv, else pypi:c==1.0/rows.csv");
        assert_eq!((&read.data.template, read.data.max_length), (&spec.data.template, 32));
        assert_eq!((read.task, read.tuning.with["pre_seq_len"].clone()), (spec.task, 4.into()));
        assert_eq!((read.swarm, read.model.local_blocks, read.train.seed), (SwarmSpec::default(), 0, 7));
    }
}
