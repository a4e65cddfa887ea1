//! Choices of plugins in pipeline files: one or a list, by earlier names, and with options for groups of parameters.

use insta::assert_snapshot;
use sepal_config::{Layers, Loaded, schema};
use sepal_deep_ptune::DeepPtune;
use sepal_plugin::{Head, Registry, Tuning, standard};
use sepal_prefix_kv::PrefixKv;
use sepal_ptune::Ptune;
use sepal_sequence_classification::SequenceClassification;
use serde_json::json;

const GOOD: &str = "\
name: sst2
model:
  source: models/tiny
swarm: { use: embedded }
task:
  use: sequence-classification
  with: { labels: [negative, positive] }
tuning:
  use: deep-ptune
  with: { pre_seq_len: 8 }
data:
  train: train.tsv
  validation: dev.tsv
  text: sentence
  label: label
loader:
  batch_size: 32
  drop_last: true
train:
  epochs: 3
  seed: 7
evaluate:
  every: epoch
optimizer: { use: adamw, with: { lr: 1.0e-2, weight_decay: 0.0 } }
schedule: { use: linear }
";

fn registry() -> Registry {
    let mut registry = Registry::new();
    standard::register(&mut registry).expect("names are free");
    registry.register::<Head, SequenceClassification>().expect("the name is free");
    registry.register::<Tuning, Ptune>().expect("free").register::<Tuning, DeepPtune>().expect("free");
    registry.register::<Tuning, PrefixKv>().expect("the name is free");
    registry
}

fn layers(text: &str, sets: &[&str]) -> Layers {
    Layers::text("sst2.yaml", text).sets(sets.iter().map(|&set| set.to_owned()))
}

fn loaded(text: &str, sets: &[&str]) -> Loaded {
    layers(text, sets).load(registry().catalog()).unwrap_or_else(|problems| panic!("{problems}"))
}

/// The problems of a text, one per line.
fn bad(text: &str) -> String {
    let problems = layers(text, &[]).load(registry().catalog()).expect_err("there is something wrong");
    problems.iter().map(|problem| problem.to_string()).collect::<Vec<_>>().join("\n")
}

#[test]
fn tuning_modes_are_one_or_a_list() {
    let list = |modes: &str| GOOD.replace("tuning:\n  use: deep-ptune\n  with: { pre_seq_len: 8 }\n", modes);
    let two = list("tuning:\n  - use: deep-ptune\n    with: { pre_seq_len: 8 }\n  - use: ptune\n");
    let spec = loaded(&two, &[]).spec;
    assert_eq!((spec.tuning.modes().len(), spec.tuning.names()), (2, "deep-ptune,ptune".to_owned()));
    assert_eq!(spec.tuning.modes()[1].options(), json!({ "pre_seq_len": 16, "init": "vocabulary" }));
    let one = list("tuning: [ { use: deep-ptune, with: { pre_seq_len: 8 } } ]\n");
    let one = loaded(&one, &[]).spec;
    assert_eq!(one, loaded(GOOD, &[]).spec);
    assert_eq!(one.to_yaml().expect("YAML"), loaded(GOOD, &[]).spec.to_yaml().expect("YAML"));
    assert_eq!(loaded(GOOD, &["tuning=[{use: ptune}, {use: deep-ptune}]"]).spec.tuning.names(), "ptune,deep-ptune");
    let again = loaded(&two, &["tuning={use: ptune}"]);
    assert_eq!((again.spec.tuning.names(), again.notices.len()), ("ptune".to_owned(), 0));

    assert_snapshot!(bad(&list("tuning:\n  - use: deep-ptune\n    with: { pre_seq_le: 8 }\n  - { use: ptun }\n")), @r#"
        sst2.yaml:10:13: tuning[0].with.pre_seq_le: unknown key; did you mean `pre_seq_len`?
        sst2.yaml:11:7: tuning[1].use: unknown tuning mode "ptun"; known: deep-ptune, prefix-kv, ptune; did you mean `ptune`?
    "#);
    assert_snapshot!(bad(&list("tuning: []\n")), @"sst2.yaml:8:1: tuning: expected a non-empty list of a map with `use`, found an empty list");
    assert_snapshot!(bad(&list("tuning: ptune\n")), @r#"sst2.yaml:8:1: tuning: expected a map with `use` or a non-empty list of a map with `use`, found the text "ptune""#);
}

#[test]
fn earlier_names_of_plugins_are_read() {
    let old = GOOD.replace("use: deep-ptune", "use: prefix-tuning");
    let spec = loaded(&old, &[]).spec;
    // As it was written, so that a run that was begun with this name can be resumed.
    assert_eq!(spec.tuning.names(), "prefix-tuning");
    assert_eq!(spec.tuning.modes()[0].options(), json!({ "pre_seq_len": 8, "init": "normal" }));
    let deep = GOOD.replace("pre_seq_len: 8", "pre_seq_len: 8, deep_init: zero");
    let changed = loaded(&deep, &["tuning.use=prefix-tuning"]);
    assert_eq!(changed.notices, ["tuning.with.deep_init is left out: tuning mode `prefix-tuning` has no such option"]);
    assert_snapshot!(bad(&old.replace("pre_seq_len: 8", "pre_seq_len: 0")), @"sst2.yaml:10:11: tuning.with.pre_seq_len: expected a whole number of at least 1, found 0");
    let schema = schema(registry().catalog()).to_string();
    assert!(schema.contains("prefix-kv") && !schema.contains("prefix-tuning"), "earlier names are not listed");
}

#[test]
fn groups_of_parameters_have_options_of_the_optimizer() {
    let grouped =
        |groups: &str| GOOD.replace("weight_decay: 0.0 } }", &format!("weight_decay: 0.0 }}, groups: {groups} }}"));
    let text = grouped("[ { params: [\"deep_*\"], lr: 1, betas: [0.5, 0.9] } ]");
    let spec = loaded(&text, &[]).spec;
    let [group] = spec.optimizer.groups.as_slice() else { panic!("one group") };
    assert_eq!(group.params, ["deep_*"]);
    assert_eq!(serde_json::to_value(&group.with).expect("JSON"), json!({ "lr": 1.0, "betas": [0.5, 0.9] }));
    let expected = json!({ "lr": 1.0, "betas": [0.5, 0.9], "eps": 1e-8, "weight_decay": 0.0 });
    assert_eq!(spec.optimizer.options_of(group), expected);
    let yaml = loaded(GOOD, &[]).spec.to_yaml().expect("YAML");
    assert!(!yaml.contains("groups"), "files without groups are written as before");

    assert_snapshot!(bad(&grouped("[ { params: [a], rate: 1 } ]")), @"sst2.yaml:24:92: optimizer.groups[0].rate: unknown key; known: params, lr, betas, eps, weight_decay");
    assert_snapshot!(bad(&grouped("[ { params: [], lr: -1 } ]")), @"
        sst2.yaml:24:79: optimizer.groups[0].params: expected a non-empty list of non-empty text, found an empty list
        sst2.yaml:24:91: optimizer.groups[0].lr: expected a number of at least 0, found -1
    ");
    assert_snapshot!(bad(&grouped("[ { lr: 1 } ]")), @"sst2.yaml:24:77: optimizer.groups[0].params: missing, expected a non-empty list of non-empty text");
    assert_snapshot!(bad(&grouped("[ { params: [a] } ]")), @"sst2.yaml:24:77: optimizer.groups[0]: expected options beside `params`, for example `lr`");
    let nesterov = "[ { params: [a], nesterov: true } ]";
    let text = grouped(nesterov).replace("use: adamw", "use: sgd");
    assert_snapshot!(bad(&text), @"sst2.yaml:24:90: optimizer.groups[0].nesterov: expected false, or `momentum` above 0 and no `dampening`");
}

#[test]
fn whole_numbers_outside_of_their_type_are_refused_with_their_key() {
    let huge = "99999999999999999999";
    let refused = |set: String| {
        let problems = layers(GOOD, &[&set]).load(registry().catalog()).expect_err("too large").to_string();
        assert_eq!(problems.lines().count(), 2, "{problems}");
        problems
    };
    for key in [
        "train.max_steps",
        "train.seed",
        "loader.batch_size",
        "data.max_length",
        "checkpoint.keep",
        "checkpoint.every_steps",
        "evaluate.every.steps",
        "tuning.with.pre_seq_len",
        "schedule.with.warmup_steps",
    ] {
        let set = format!("{key}={huge}");
        let problems = refused(set.clone());
        let (start, end) =
            (format!("--set {set}: {key}: expected a whole number from "), " to 18446744073709551615, found 1e");
        assert!(problems.contains(&start) && problems.contains(end), "{problems}");
    }
    let text = bad(&GOOD.replace("epochs: 3", &format!("max_steps: {huge}")));
    assert!(text.starts_with("sst2.yaml:20:3: train.max_steps: expected a whole number from 0 to"), "{text}");
    let text = refused("train.scaler={growth_interval: 99999999999999999999}".to_owned());
    assert!(text.contains("growth_interval: expected a whole number of at least 1 and at most 16777216"), "{text}");
    assert_eq!(loaded(GOOD, &["train.max_steps=1.0e16"]).spec.train.max_steps, Some(10_000_000_000_000_000));
}

#[test]
fn threads_have_a_maximum() {
    assert_eq!(loaded(GOOD, &["train.threads=1024"]).spec.train.threads, Some(1024));
    for threads in ["1025", "0", "1000000000000"] {
        let problems = layers(GOOD, &[&format!("train.threads={threads}")]).load(registry().catalog());
        let problems = problems.expect_err("threads").to_string();
        let expected =
            format!("train.threads: expected a whole number of at least 1 and at most 1024, found {threads}");
        assert!(problems.contains(&expected), "{problems}");
    }
}

#[test]
fn pipeline_in_another_encoding_is_named() {
    let path = std::env::temp_dir().join(format!("sepal-encoding-{}.yaml", std::process::id()));
    let problem = |bytes: &[u8]| {
        std::fs::write(&path, bytes).expect("written");
        let by_file = std::error::Error::source(&Layers::read(&path).expect_err("no UTF-8")).map(ToString::to_string);
        let over = layers(GOOD, &[]).sweep_over(&path).expect_err("no UTF-8");
        assert_eq!(std::error::Error::source(&over).map(ToString::to_string), by_file);
        by_file.expect("a cause")
    };
    let utf16: Vec<u8> = format!("\u{feff}{GOOD}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(problem(&utf16), "it is in utf-16le; save it as UTF-8");
    let latin = problem(b"name: a\n# caf\xe9\n");
    assert!(
        latin.starts_with("line 2: the byte 0xe9 is not valid UTF-8;") && latin.ends_with("; save it as UTF-8"),
        "{latin}"
    );
    std::fs::remove_file(&path).expect("removed");
}

#[test]
fn overridden_choice_gives_no_notice_of_options_that_are_defaults() {
    // Files of runs list every option, also those that were never set.
    let written = loaded(GOOD, &[]).spec.to_yaml().expect("YAML");
    assert!(written.contains("micro_batch_tokens: ") && written.contains("tape_budget_mb: 4096"), "{written}");
    let Loaded { spec, notices } = loaded(&written, &["swarm={use: none}"]);
    assert!(matches!(spec.swarm, sepal_config::SwarmSpec::None(_)));
    assert!(notices.is_empty(), "{notices:?}");
    let set = written.replace("tape_budget_mb: 4096", "tape_budget_mb: 64");
    let notices = loaded(&set, &["swarm={use: none}"]).notices;
    assert_eq!(notices, ["swarm.with.tape_budget_mb is left out: swarm `none` has no such option"]);
}
