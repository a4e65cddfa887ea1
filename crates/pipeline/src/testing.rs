//! A pipeline for unit tests, with the plugins that it names.

use sepal_config::{Layers, Spec};
use sepal_plugin::{Head, Registry, Tuning, standard};

pub(crate) const PIPELINE: &str = "\
name: demo
model: { source: tiny }
task: { use: sequence-classification, with: { labels: [negative, positive] } }
tuning: { use: deep-ptune, with: { pre_seq_len: 4 } }
data: { train: train.csv, validation: validation.csv, text: text, label: label }
optimizer: { use: adamw, with: { lr: 1.0e-2 } }
schedule: { use: constant }
";

pub(crate) fn registry() -> Registry {
    let mut registry = Registry::new();
    standard::register(&mut registry).expect("the standard plugins");
    registry.register::<Head, sepal_sequence_classification::SequenceClassification>().expect("a head");
    registry.register::<Tuning, sepal_deep_ptune::DeepPtune>().expect("a tuning mode");
    registry
}

/// Returns the pipeline with these settings.
pub(crate) fn spec(sets: &[&str]) -> Spec {
    let layers = Layers::text("demo.yaml", PIPELINE).sets(sets.iter().map(|&set| set.to_owned()));
    layers.load(registry().catalog()).unwrap_or_else(|problems| panic!("{problems}")).spec
}
