//! Runs without anything that belongs to this machine, for publishing.

use sepal_assets::{Source, Sources};
use sepal_config::spec::{CheckpointSpec, EmbeddedSpec, OutputSpec, Spec, SwarmSpec};
use sepal_track::{Manifest, Status};

/// Returns the pipeline and the manifest of a run without servers, trackers, folders and other files of this machine, and
/// without the error of a failed run. Predictions stay the same, with all blocks in the process.
///
/// The result is also safe to use if somebody else provided the run: it connects to nothing and names files by plain names
/// only. Options of the task and of the tuning mode stay, except secrets.
pub fn portable(spec: &Spec, manifest: &Manifest) -> (Spec, Manifest) {
    (portable_spec(spec), portable_manifest(manifest, spec.data.max_length))
}

fn portable_spec(spec: &Spec) -> Spec {
    let mut spec = spec.clone();
    // The adapter was trained with the rounding of the wire format.
    let wire_dtype = spec.swarm.remote().wire_dtype;
    spec.swarm = SwarmSpec::Embedded(EmbeddedSpec { wire_dtype, ..EmbeddedSpec::default() });
    spec.track = Vec::new();
    spec.output = OutputSpec::default();
    spec.checkpoint = CheckpointSpec::default();
    spec.train.threads = None;
    // The adapter was trained with the products of its device.
    spec.model.compute = Some(spec.model.compute_format());
    (spec.model.device, spec.model.local_blocks) = Default::default();
    // Trained prompts do not need the file that they were initialised from.
    for mode in spec.tuning.modes_mut() {
        mode.with.retain(|_, value| value.get("adapter").is_none());
    }
    for plugin in std::iter::once(&mut spec.task).chain(spec.tuning.modes_mut()) {
        plugin.with.retain(|key, _| !sepal_track::is_secret(key));
    }
    let mut sources = vec![&mut spec.model.source];
    for rows in spec.data.sources_mut() {
        sources.push(&mut rows.train);
        sources.extend(rows.validation.as_mut());
    }
    for sources in sources {
        let names = Sources::new(sources.iter().map(Source::without_folders).collect());
        *sources = names.unwrap_or_else(|_| sources.clone());
    }
    spec
}

fn portable_manifest(manifest: &Manifest, max_length: usize) -> Manifest {
    let mut manifest = manifest.clone();
    manifest.servers = Vec::new();
    if let Status::Failed { error } = &mut manifest.status {
        *error = "not told to others".to_owned();
    }
    manifest.model.unavailable_sources = Vec::new();
    let data = &mut manifest.data;
    data.unavailable_sources = Vec::new();
    data.max_length = Some(max_length);
    let fitted_on = manifest.calibration.as_mut().map(|calibration| &mut calibration.data);
    for source in [&mut manifest.model.source, &mut data.train, &mut data.validation].into_iter().chain(fitted_on) {
        // Text that is no source, such as a share of the training rows, stays as it is.
        if let Ok(parsed) = source.parse::<Source>() {
            *source = parsed.without_folders().to_string();
        }
    }
    manifest
}

#[cfg(test)]
mod tests {
    use sepal_plugin::{Head, Registry, Tuning, standard};
    use serde_json::json;

    use super::*;
    use sepal_config::Layers;

    const PIPELINE: &str = "\
name: demo
model: { source: [/secret/models/tiny, hub:a/b], local_blocks: 2 }
swarm: { use: static, with: { servers: ['secret:4000'], wire_dtype: q8 } }
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

    fn manifest() -> Manifest {
        let json = json!({
            "name": "demo", "status": { "state": "failed", "error": "reach secret:4000" },
            "versions": { "sepal": "1", "libtorch": "2" }, "seed": 7, "parameters": { "trainable": 1, "total": 2 },
            "model": {
                "source": "/secret/models/tiny", "passed_over": ["/secret: gone"], "digest": "d", "weights": "w",
                "tokenizer": "t",
            },
            "data": {
                "train": "hub:a/b@v1/rows.csv", "validation": "0.1 of the training source, by seed",
                "passed_over": ["/secret.csv: gone"], "train_digest": "", "validation_digest": "", "train_rows": 9,
                "validation_rows": 1, "truncated_rows": 0,
            },
            "steps": 1, "bytes": { "sent": 0, "received": 0 }, "started": "", "seconds": 1.0, "train_seconds": 1.0,
            "train_tokens": 9, "metrics": {}, "adapter_digest": "",
            "calibration": { "data": "/secret/rows.csv", "rows": 9, "before": {}, "after": {} },
            "servers": [{ "server": "secret:4000", "blocks": "0:2", "calls": 1, "failures": 0 }],
        });
        serde_json::from_value(json).expect("a manifest")
    }

    #[test]
    fn portable_run_predicts_and_names_nothing_of_this_machine() {
        let mut registry = Registry::new();
        standard::register(&mut registry).expect("the standard plugins");
        registry.register::<Head, sepal_sequence_classification::SequenceClassification>().expect("a head");
        registry.register::<Tuning, sepal_deep_ptune::DeepPtune>().expect("a tuning mode");
        let spec = Layers::text("demo.yaml", PIPELINE).load(registry.catalog()).expect("a pipeline").spec;
        let (portable, manifest) = portable(&spec, &manifest());
        let text = portable.to_yaml().expect("YAML");
        assert!(!text.contains("secret"), "{text}");
        let read = Layers::text("demo.yaml", text).load(registry.catalog()).expect("a pipeline").spec;
        assert_eq!(read.model.source.to_string(), "tiny, else hub:a/b");
        assert_eq!(read.data.rows.train.to_string(), "train.csv, else pypi:c==1.0/rows.csv");
        assert_eq!((&read.data.rows.template, read.data.max_length), (&spec.data.rows.template, 32));
        assert_eq!((&read.task, &read.tuning.modes()[0].with["pre_seq_len"]), (&spec.task, &json!(4)));
        assert_eq!((read.wire_dtype(), read.model.local_blocks, read.train.seed), (spec.wire_dtype(), 0, 7));
        assert!(matches!(read.swarm, SwarmSpec::Embedded(_)));
        assert_eq!(read.model.digest("d"), spec.model.digest("d"));

        let text = serde_json::to_string(&manifest).expect("JSON");
        assert!(!text.contains("secret"), "{text}");
        assert_eq!((manifest.model.source.as_str(), manifest.data.train.as_str()), ("tiny", "hub:a/b@v1/rows.csv"));
        assert_eq!(manifest.data.validation, "0.1 of the training source, by seed");
        assert_eq!(manifest.data.max_length, Some(32), "missing in manifests of older versions");
    }
}
