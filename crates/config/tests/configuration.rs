//! Pipeline files: accepted and refused files, and the messages.

use insta::assert_snapshot;
use sepal_config::spec::{EvaluateEvery, SwarmSpec};
use sepal_config::{Layers, Loaded, schema};
use sepal_core::{ComputeFormat, DType, Device, WeightFormat};
use sepal_data::FilterValue;
use sepal_deep_ptune::DeepPtune;
use sepal_plugin::{Head, Registry, Tuning, standard};
use sepal_ptune::Ptune;
use sepal_sequence_classification::SequenceClassification;
use serde_json::{Value, json};

const GOOD: &str = "\
name: sst2
model:
  source: [hub:HuggingFaceTB/SmolLM2-135M, models/tiny]
swarm: { use: embedded }
task:
  use: sequence-classification
  with: { labels: [negative, positive] }
tuning:
  use: deep-ptune
  with: { pre_seq_len: 8 }
data:
  train: hub:stanfordnlp/sst2
  validation: hub:stanfordnlp/sst2
  text: sentence
  label: label
  max_length: 64
  otherwise:
    - train: reviews.csv
      validation_split: 0.1
      text: text
      label: label
      where: { source: rotten_tomatoes, year: 2002 }
loader: { batch_size: 32, drop_last: true }
optimizer: { use: adamw, with: { lr: 1.0e-2, weight_decay: 0.0 } }
schedule: { use: linear, with: { warmup_steps: 10 } }
train: { epochs: 3, seed: 7 }
evaluate: { every: epoch }
";

fn registry() -> Registry {
    let mut registry = Registry::new();
    standard::register(&mut registry).expect("names are free");
    registry.register::<Head, SequenceClassification>().expect("the name is free");
    registry.register::<Tuning, Ptune>().expect("free").register::<Tuning, DeepPtune>().expect("free");
    registry
}

fn layers(text: &str, env: &[(&str, &str)], sets: &[&str]) -> Layers {
    Layers::text("sst2.yaml", text)
        .env(env.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())))
        .sets(sets.iter().map(|&set| set.to_owned()))
}

fn good(env: &[(&str, &str)], sets: &[&str]) -> Loaded {
    layers(GOOD, env, sets).load(registry().catalog()).unwrap_or_else(|problems| panic!("{problems}"))
}

fn problems(layers: &Layers) -> String {
    let problems = layers.load(registry().catalog()).expect_err("there is something wrong");
    problems.iter().map(|problem| problem.to_string()).collect::<Vec<_>>().join("\n")
}

fn bad(text: &str) -> String {
    problems(&layers(text, &[], &[]))
}

/// The problems of the good file with one piece of text replaced.
fn with(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "the file contains `{from}`");
    bad(&GOOD.replace(from, to))
}

fn over(env: &[(&str, &str)], sets: &[&str]) -> String {
    problems(&layers(GOOD, env, sets))
}

#[test]
fn load_fills_in_defaults() {
    let Loaded { spec, notices } = good(&[], &[]);
    assert!(notices.is_empty());
    assert_eq!(spec.tuning.modes()[0].options(), json!({ "pre_seq_len": 8, "init": "vocabulary", "deep_init": null }));
    assert_eq!(spec.optimizer.with["betas"], json!([0.9, 0.999]));
    assert_eq!((spec.train.accumulate, spec.train.clip_norm, spec.train.max_steps), (1, Some(1.0), None));
    assert_eq!(spec.evaluate.every, EvaluateEvery::Epoch);
    assert_eq!(spec.swarm.remote().micro_batch_tokens, 2048);
    assert_eq!((spec.wire_dtype(), spec.scaler()), (DType::F32, None));
    let alternatives: Vec<_> = spec.data.sources().collect();
    assert_eq!(alternatives.len(), 2);
    assert_eq!(FilterValue::from(&alternatives[1].filter["year"]), FilterValue::Value("2002".to_owned()));
}

#[test]
fn written_spec_reads_as_itself() {
    let odd = [
        "data.template='say \"{text}\": # yes: no'",
        "data.where={answer: 'no', number: '1.0', nothing: 'null'}",
        "evaluate.every={steps: 5}",
        "train.clip_norm=null",
        "task.with.labels=['no', \"1\", ' a', 'b: c', 'd\\ne']",
    ];
    let f16 = ["train.precision=f16", "train.scaler={init_scale: 1024}", "swarm.with.wire_dtype=bf16"];
    let tracked = ["track=[{use: tensorboard, with: {folder: boards}}, {use: tensorboard}]"];
    let combined = ["tuning=[{use: deep-ptune}, {use: ptune, with: {pre_seq_len: 2}}]"];
    let grouped = ["optimizer.groups=[{params: ['deep_*', score.weight], lr: 3, weight_decay: 1e-5}]"];
    for sets in [
        &[][..],
        &odd,
        &f16,
        &tracked,
        &combined,
        &grouped,
        &["swarm={use: static, with: {servers: ['h:1', unix:/s]}}"],
        &["model.compute=bf16", "model.weights=nf4"],
        &["data.few_shot={per_class: 16, seed: 1}", "data.skip_empty=true", "data.format=json"],
    ] {
        let spec = good(&[], sets).spec;
        let yaml = spec.to_yaml().expect("a spec can be written");
        let again =
            layers(&yaml, &[], &[]).load(registry().catalog()).unwrap_or_else(|problems| panic!("{problems}\n{yaml}"));
        assert_eq!(again.spec, spec, "{yaml}");
        assert!(again.notices.is_empty());
    }
}

#[test]
fn compute_format_defaults_to_that_of_the_device() {
    let check = |sets: &[&str], compute: ComputeFormat, digest: &str| {
        let spec = good(&[], sets).spec;
        assert_eq!((spec.model.compute_format(), spec.model.digest("d").as_str()), (compute, digest), "{sets:?}");
        let written = spec.with_compute_format();
        assert_eq!((written.model.compute, written.model.digest("d").as_str()), (Some(compute), digest), "{sets:?}");
    };
    check(&[], ComputeFormat::F32, "d");
    check(&["model.device=cuda:1"], ComputeFormat::Bf16, "d+compute-bf16");
    check(&["model.device=cuda:1", "model.compute=f32"], ComputeFormat::F32, "d");
    check(&["model.compute=f16", "model.weights=int8"], ComputeFormat::F16, "d+int8+compute-f16");
    check(&["model.compute=null", "model.weights=auto"], ComputeFormat::F32, "d");
    check(&["model.compute=fast", "model.device=cuda:1"], ComputeFormat::Bf16, "d+compute-bf16");
    let fastest = ComputeFormat::fastest_on(Device::Cpu);
    check(&["model.compute=fast"], fastest, &fastest.digest("d"));
    let with_servers = ["swarm.use=static", "swarm.with.servers=[127.0.0.1:4000]", "model.compute=fast"];
    check(&with_servers, ComputeFormat::F32, "d");

    assert_eq!(good(&[], &[]).spec.model.weights, WeightFormat::Auto);
    assert!(!good(&[], &[]).spec.to_yaml().expect("YAML").contains("compute"), "no digest of a spec changes");
    let text = over(&[], &["model.weights=int4", "model.compute=int8"]);
    for expected in [
        r#"model.weights: expected one of auto, f32, bf16, f16, int8, nf4, found the text "int4""#,
        r#"model.compute: expected one of f32, bf16, f16, fast"#,
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
}

#[test]
fn overrides_command_line_over_environment_over_file() {
    let seed = |env: &[(&str, &str)], sets: &[&str]| good(env, sets).spec.train.seed;
    assert_eq!(seed(&[], &[]), 7);
    assert_eq!(seed(&[("SEPAL__TRAIN__SEED", "8"), ("SEPAL_CUDA", "1"), ("HOME", "/")], &[]), 8);
    assert_eq!(seed(&[("SEPAL__TRAIN__SEED", "8")], &["train.seed=9"]), 9);
    assert_eq!(seed(&[], &["train.seed=9", "train.seed=10"]), 10);
    assert_eq!(good(&[("SEPAL__TRAIN__SEED", "8")], &["train.epochs=1"]).spec.train.epochs, 1);
}

#[test]
fn overrides_of_command_line_are_yaml() {
    let spec = good(
        &[],
        &[
            "data.otherwise=[]",
            "swarm.use=static",
            "swarm.with.servers=[127.0.0.1:4000, 'unix:/tmp/a socket']",
            "data.train=/data/train.tsv",
            "train.clip_norm=null",
            "evaluate.every={steps: 20}",
        ],
    )
    .spec;
    assert!(spec.data.otherwise.is_empty());
    assert_eq!(spec.data.rows.train.to_string(), "/data/train.tsv");
    assert_eq!(spec.train.clip_norm, None);
    assert_eq!(spec.evaluate.every, EvaluateEvery::Steps(20));
    let SwarmSpec::Static(options) = &spec.swarm else { panic!("expected static, got {:?}", spec.swarm) };
    assert_eq!(options.servers, ["127.0.0.1:4000", "unix:/tmp/a socket"]);
}

#[test]
fn precision_decides_wire_format_and_loss_scaling() {
    let check = |sets: &[&str], wire_dtype: DType, init_scale: Option<f64>| {
        let spec = good(&[], sets).spec;
        let found = (spec.wire_dtype(), spec.scaler().map(|scaler| scaler.init_scale));
        assert_eq!(found, (wire_dtype, init_scale), "{sets:?}");
    };
    check(&["train.precision=bf16"], DType::Bf16, None);
    check(&["train.precision=f16"], DType::F16, Some(65536.0));
    check(&["train.precision=f16", "swarm.with.wire_dtype=f32"], DType::F32, Some(65536.0));
    check(&["train.precision=f16", "swarm={use: lan, with: {wire_dtype: q8}}"], DType::Q8, Some(65536.0));
    check(&["train.precision=f16", "swarm={use: lan}"], DType::F16, Some(65536.0));
    check(&["swarm.with.wire_dtype=f16"], DType::F16, Some(65536.0));
    check(&["swarm.with.wire_dtype=null", "train.scaler={init_scale: 8}"], DType::F32, Some(8.0));
    check(&["train.precision=bf16", "train.scaler={}"], DType::Bf16, Some(65536.0));
    check(&["model.compute=f16"], DType::F32, Some(65536.0));
    check(&["model.compute=bf16"], DType::F32, None);

    assert_snapshot!(over(&[], &["train.precision=fp16"]), @r#"--set train.precision=fp16: train.precision: expected one of f32, bf16, f16, found the text "fp16"; did you mean `f16`?"#);
    assert_snapshot!(over(&[], &["swarm.with.wire_dtype=f8"]), @r#"--set swarm.with.wire_dtype=f8: swarm.with.wire_dtype: expected one of f32, f16, bf16, q8, found the text "f8""#);
    let sets = ["init_scale=0", "growth_factor=1", "backoff_factor=1", "growth_interval=0", "enabled=true"];
    let sets = sets.map(|set| format!("train.scaler.{set}"));
    assert_snapshot!(over(&[], &sets.each_ref().map(String::as_str)), @"
        --set train.scaler.backoff_factor=1: train.scaler.backoff_factor: expected a number above 0 and below 1, found 1
        --set train.scaler.enabled=true: train.scaler.enabled: unknown key; known: init_scale, growth_factor, backoff_factor, growth_interval
        --set train.scaler.growth_factor=1: train.scaler.growth_factor: expected a number above 1, found 1
        --set train.scaler.growth_interval=0: train.scaler.growth_interval: expected a whole number of at least 1 and at most 16777216, found 0
        --set train.scaler.init_scale=0: train.scaler.init_scale: expected a number above 0, found 0
    ");
}

#[test]
fn overridden_choice_drops_unknown_options() {
    let text = GOOD.replace("pre_seq_len: 8", "pre_seq_len: 8, deep_init: normal");
    let Loaded { spec, notices } =
        layers(&text, &[], &["tuning.use=ptune"]).load(registry().catalog()).expect("it is sound");
    assert_eq!(spec.tuning.modes()[0].options(), json!({ "pre_seq_len": 8, "init": "vocabulary" }));
    assert_eq!(notices, ["tuning.with.deep_init is left out: tuning mode `ptune` has no such option"]);

    // Nor a choice that has none at all.
    let text = GOOD.replace("use: embedded", "use: embedded, with: { micro_batch_tokens: 64 }");
    let Loaded { spec, notices } =
        layers(&text, &[], &["swarm.use=none"]).load(registry().catalog()).expect("it is sound");
    assert!(matches!(spec.swarm, sepal_config::SwarmSpec::None(_)));
    assert_eq!(notices, ["swarm.with.micro_batch_tokens is left out: swarm `none` has no such option"]);

    // The same choice keeps its options, and what the override itself says is checked.
    assert_snapshot!(over(&[], &["tuning.use=deep-ptune", "tuning.with.deep=1"]), @"--set tuning.with.deep=1: tuning.with.deep: unknown key; did you mean `deep_init`?");
    assert_snapshot!(over(&[], &["tuning.use=ptune", "tuning.with.deep_init=zero"]), @"--set tuning.with.deep_init=zero: tuning.with.deep_init: unknown key; known: pre_seq_len, init");
}

#[test]
fn unknown_keys_are_refused() {
    assert_snapshot!(with("max_length", "max_lenght"), @"sst2.yaml:16:3: data.max_lenght: unknown key; did you mean `max_length`?");
    assert_snapshot!(with("loader:", "loaders:"), @"sst2.yaml:23:1: loaders: unknown key; did you mean `loader`?");
    assert_snapshot!(with("seed: 7", "zebra: 7"), @"sst2.yaml:26:21: train.zebra: unknown key; known: epochs, max_steps, max_minutes, early_stopping, accumulate, clip_norm, precision, scaler, seed, threads, deterministic");
    assert_snapshot!(with("seed: 7", "shuffle: false"), @"sst2.yaml:26:21: train.shuffle: unknown key; there is one at `loader.shuffle`");
    assert_snapshot!(with("lr: 1.0e-2", "learning_rate: 1"), @"sst2.yaml:24:34: optimizer.with.learning_rate: unknown key; known: lr, betas, eps, weight_decay");
    assert_snapshot!(with("max_length: 64", "rows_per_class: 4"), @"sst2.yaml:16:3: data.rows_per_class: this key is no longer known; write `data.few_shot: {per_class: ROWS}`");
    assert_snapshot!(with("      text: text", "      txt: text"), @"sst2.yaml:20:7: data.otherwise[0].txt: unknown key; did you mean `text`?");
}

#[test]
fn wrong_values_are_refused() {
    assert_snapshot!(with("epochs: 3", "epochs: many"), @r#"sst2.yaml:26:10: train.epochs: expected a whole number of at least 1, found the text "many""#);
    assert_snapshot!(with("epochs: 3", "epochs: 0"), @"sst2.yaml:26:10: train.epochs: expected a whole number of at least 1, found 0");
    assert_snapshot!(with("epochs: 3", "epochs: 1.5"), @"sst2.yaml:26:10: train.epochs: expected a whole number of at least 1, found 1.5");
    assert_snapshot!(with("batch_size: 32", "batch_size: -1"), @"sst2.yaml:23:11: loader.batch_size: expected a whole number of at least 1, found -1");
    assert_snapshot!(with("drop_last: true", "drop_last: yes"), @r#"sst2.yaml:23:27: loader.drop_last: expected true or false, found the text "yes""#);
    assert_snapshot!(with("validation_split: 0.1", "validation_split: 1.5"), @"sst2.yaml:19:7: data.otherwise[0].validation_split: expected a number above 0 and below 1, found 1.5");
    assert_snapshot!(with("every: epoch", "every: epochs"), @r#"sst2.yaml:27:13: evaluate.every: expected one of epoch, end, never or a map with `steps`, found the text "epochs"; did you mean `epoch`?"#);
    assert_snapshot!(with("every: epoch", "every: { steps: 0 }"), @"sst2.yaml:27:22: evaluate.every.steps: expected a whole number of at least 1, found 0");
    assert_snapshot!(with("every: epoch", "every: { step: 2 }"), @"sst2.yaml:27:22: evaluate.every.step: unknown key; did you mean `steps`?");
    assert_snapshot!(with("name: sst2", "name: a b"), @r#"sst2.yaml:1:1: name: expected letters, digits, `-`, `_` and `.`, found the text "a b""#);
    assert_snapshot!(with("name: sst2", "name:"), @"sst2.yaml:1:1: name: expected text, found nothing");
    assert_snapshot!(with("text: sentence", "text: 3"), @"sst2.yaml:14:3: data.text: expected text, found 3; quotation marks make it text");
    assert_snapshot!(with("text: sentence", "text: sentence\n  format: xml"), @r#"sst2.yaml:15:3: data.format: expected one of parquet, arrow, csv, tsv, json, jsonl, found the text "xml""#);
    assert_snapshot!(with("text: sentence", "text: sentence\n  delimiter: ;;"), @"sst2.yaml:15:3: data.delimiter: expected one ASCII character as delimiter, or `tab`, found `;;`; not a quotation mark or a line break");
    assert_snapshot!(with("text: sentence", "text: sentence\n  encoding: latin"), @"sst2.yaml:15:3: data.encoding: expected an encoding, for example utf-8, windows-1252, latin-1, utf-16 or shift_jis, found `latin`");
    assert_snapshot!(with("{ batch_size: 32, drop_last: true }", "32"), @"sst2.yaml:23:1: loader: expected a map with `batch_size`, `drop_last`, `shuffle`, …, found 32");
    assert_snapshot!(with("{ pre_seq_len: 8 }", "{ pre_seq_len: 0, init: vocab }"), @r#"
        sst2.yaml:10:11: tuning.with.pre_seq_len: expected a whole number of at least 1, found 0
        sst2.yaml:10:27: tuning.with.init: expected one of vocabulary, normal, class-names, a map with `text` or a map with `adapter`, found the text "vocab"; did you mean `vocabulary`?
    "#);
    assert_snapshot!(with("lr: 1.0e-2", "lr: fast"), @r#"sst2.yaml:24:34: optimizer.with.lr: expected a number of at least 0, found the text "fast""#);
}

#[test]
fn unknown_plugins_are_refused() {
    assert_snapshot!(with("use: deep-ptune", "use: deep_ptune"), @r#"sst2.yaml:9:3: tuning.use: unknown tuning mode "deep_ptune"; known: deep-ptune, ptune; did you mean `deep-ptune`?"#);
    assert_snapshot!(with("use: sequence-classification", "use: regression"), @r#"sst2.yaml:6:3: task.use: unknown task head "regression"; known: sequence-classification"#);
    assert_snapshot!(with("use: adamw", "uses: adamw"), @"sst2.yaml:24:14: optimizer.uses: unknown key; did you mean `use`?");
    assert_snapshot!(with("use: embedded", "use: swarm"), @r#"sst2.yaml:4:10: swarm.use: unknown swarm "swarm"; known: none, embedded, static, lan, p2p"#);
}

#[test]
fn empty_catalog_refuses_every_choice() {
    let problems = layers(GOOD, &[], &[]).load(Registry::new().catalog()).expect_err("there is nothing to choose from");
    let lines: Vec<String> = problems.iter().map(|problem| problem.to_string()).collect();
    assert_eq!(
        lines,
        [
            "sst2.yaml:6:3: task.use: unknown task head \"sequence-classification\"; none is registered",
            "sst2.yaml:9:3: tuning.use: unknown tuning mode \"deep-ptune\"; none is registered",
            "sst2.yaml:24:14: optimizer.use: unknown optimizer \"adamw\"; none is registered",
            "sst2.yaml:25:13: schedule.use: unknown schedule \"linear\"; none is registered",
        ]
    );
    assert!(jsonschema::meta::is_valid(&schema(Registry::new().catalog())));
}

#[test]
fn trackers_are_a_list() {
    let track = |list: &str| format!("{GOOD}track:\n{list}");
    assert!(good(&[], &[]).spec.track.is_empty());
    let two = layers(&track("  - use: tensorboard\n  - { use: wandb, with: { project: prompts } }\n"), &[], &[]);
    let Loaded { spec, notices } = two.load(registry().catalog()).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!((spec.track.len(), notices.len()), (2, 0));
    assert_eq!(spec.track[0].options(), json!({ "folder": null }));
    assert_eq!((&spec.track[1].with["project"], &spec.track[1].with["tags"]), (&json!("prompts"), &json!([])));
    assert_eq!(good(&[("SEPAL__TRACK", "[{use: tensorboard}]")], &[]).spec.track.len(), 1);

    assert_snapshot!(bad(&track("  - use: tensorboard\n  - use: mlflow\n    with: { uri: a, run_nam: a }\n")), @r"
        sst2.yaml:31:13: track[1].with.uri: unknown key; known: tracking_uri, experiment, run_name, flush_seconds, artifacts
        sst2.yaml:31:21: track[1].with.run_nam: unknown key; did you mean `run_name`?
    ");
    assert_snapshot!(bad(&track("  - { use: mlflow, with: { tracking_uri: mlruns } }\n")), @r#"sst2.yaml:29:28: track[0].with.tracking_uri: expected http://HOST:PORT or https://HOST, found the text "mlruns""#);
    assert_snapshot!(bad(&track("  - use: tensorbord\n  - with: {}\n  - tensorboard\n")), @r#"
        sst2.yaml:29:5: track[0].use: unknown tracker "tensorbord"; known: mlflow, tensorboard, wandb; did you mean `tensorboard`?
        sst2.yaml:30:5: track[1].use: missing, expected one of mlflow, tensorboard, wandb
        sst2.yaml:31:5: track[2]: expected a map with `use`, found the text "tensorboard"
    "#);
    assert_snapshot!(bad(&track("  use: tensorboard\n")), @"sst2.yaml:28:1: track: expected a list of a map with `use`, found a map");
}

#[test]
fn labels_and_servers() {
    assert_snapshot!(with("[negative, positive]", "[good, bad, good]"), @r#"sst2.yaml:7:11: task.with.labels: expected different entries, found the text "good" twice"#);
    assert_snapshot!(with("[negative, positive]", "[]"), @"sst2.yaml:7:11: task.with.labels: expected a non-empty list of non-empty text, found an empty list");
    assert_snapshot!(with("[negative, positive]", "[0, 1]"), @r"
        sst2.yaml:7:20: task.with.labels[0]: expected non-empty text, found 0; quotation marks make it text
        sst2.yaml:7:23: task.with.labels[1]: expected non-empty text, found 1; quotation marks make it text
    ");
    assert_snapshot!(with("  with: { labels: [negative, positive] }\n", ""), @"sst2.yaml:5:1: task.with: missing, expected a map with `labels`");
    assert_snapshot!(with("use: embedded", "use: static"), @"sst2.yaml:4:1: swarm.with: missing, expected a map with `servers`");
    assert_snapshot!(with("use: embedded", "use: static, with: { servers: [] }"), @"sst2.yaml:4:31: swarm.with.servers: expected a non-empty list of text, found an empty list");
    assert_snapshot!(with("use: embedded", "use: static, with: { servers: [127.0.0.1], timeout_ms: 0 }"), @r#"
        sst2.yaml:4:41: swarm.with.servers[0]: expected HOST:PORT or unix:PATH, found the text "127.0.0.1"
        sst2.yaml:4:53: swarm.with.timeout_ms: expected a whole number of at least 1, found 0
    "#);
}

#[test]
fn validation_rows_stand_in_for_training_rows_without_training() {
    let text = GOOD.replacen("  train: hub:stanfordnlp/sst2\n", "", 1);
    let untrained = |sets: &[&str]| layers(&text, &[], sets).load(registry().catalog());
    let spec = untrained(&["train.max_steps=0"]).unwrap_or_else(|problems| panic!("{problems}")).spec;
    assert_eq!(Some(&spec.data.rows.train), spec.data.rows.validation.as_ref());
    let problems = untrained(&["train.max_steps=1"]).expect_err("no training rows").to_string();
    assert!(problems.contains("data.train: missing"), "{problems}");
}

#[test]
fn conflicting_keys_are_refused() {
    assert_snapshot!(with("  validation: hub:stanfordnlp/sst2\n", ""), @"sst2.yaml:11:1: data.validation: expected `validation` or `validation_split`, found neither; `evaluate.every: never` needs none");
    assert_snapshot!(with("  text: sentence", "  text: sentence\n  validation_split: 0.5"), @"sst2.yaml:15:3: data.validation_split: expected either `validation` or `validation_split`, found both");
    assert_snapshot!(with("  text: sentence", "  text: sentence\n  template: 'Movie review:'"), @r#"sst2.yaml:15:3: data.template: found the text "Movie review:", which is no template; it does not say where the {text} goes"#);
    assert_snapshot!(with("  text: sentence", "  text: sentence\n  template: '{text} / {text_pair}'"), @"sst2.yaml:15:3: data.template: expected `text_pair` or `options` beside it, because it holds `{text_pair}`");
    assert_snapshot!(with("label: label\n  max_length", "label: sentence\n  max_length"), @r#"sst2.yaml:15:3: data.label: expected another column than `text`, found the text "sentence" for both"#);
    assert!(good(&[], &["data.validation=null", "evaluate.every=never"]).spec.data.rows.validation.is_none());
}

#[test]
fn sources_with_wrong_syntax_are_refused() {
    assert_snapshot!(with("train: hub:stanfordnlp/sst2", "train: hub:sst2"), @r#"sst2.yaml:12:3: data.train: found the text "hub:sst2", which is no source; write hub:OWNER/NAME, hub:OWNER/NAME@REVISION or hub:OWNER/NAME/PATH/IN/REPOSITORY"#);
    assert_snapshot!(with("[hub:HuggingFaceTB/SmolLM2-135M, models/tiny]", "[hub:x, pypi:a/b.gguf]"), @r#"
        sst2.yaml:3:12: model.source[0]: found the text "hub:x", which is no source; write hub:OWNER/NAME, hub:OWNER/NAME@REVISION or hub:OWNER/NAME/PATH/IN/REPOSITORY
        sst2.yaml:3:19: model.source[1]: found the text "pypi:a/b.gguf", which is no source; the version must be pinned; write pypi:NAME==VERSION/PATH
    "#);
    assert_snapshot!(with("[hub:HuggingFaceTB/SmolLM2-135M, models/tiny]", "[]"), @"sst2.yaml:3:3: model.source: expected a non-empty list of non-empty text, found an empty list");
}

#[test]
fn problems_are_reported_at_once() {
    assert_snapshot!(bad("\
name: 3
model: { sorce: models/tiny }
task: { use: sequence-classification, with: { labels: [a, a] } }
tuning: { use: deep-ptun }
data:
  train: hub:sst2
  validation: dev.tsv
  validation_split: 0.1
  text: sentence
optimizer: { use: adamw, with: { lr: -1 } }
trian: { epochs: 1 }
"), @r#"
        sst2.yaml: schedule: missing, expected a map with `use`
        sst2.yaml:1:1: name: expected text, found 3; quotation marks make it text
        sst2.yaml:2:10: model.sorce: unknown key; did you mean `source`?
        sst2.yaml:3:47: task.with.labels: expected different entries, found the text "a" twice
        sst2.yaml:4:11: tuning.use: unknown tuning mode "deep-ptun"; known: deep-ptune, ptune; did you mean `deep-ptune`?
        sst2.yaml:5:1: data.label: missing, expected text
        sst2.yaml:6:3: data.train: found the text "hub:sst2", which is no source; write hub:OWNER/NAME, hub:OWNER/NAME@REVISION or hub:OWNER/NAME/PATH/IN/REPOSITORY
        sst2.yaml:8:3: data.validation_split: expected either `validation` or `validation_split`, found both
        sst2.yaml:10:34: optimizer.with.lr: expected a number of at least 0, found -1
        sst2.yaml:11:1: trian: unknown key; did you mean `train`?
    "#);
    assert_snapshot!(bad(""), @r"
        sst2.yaml: data: missing, expected a map with `train`, `text`, `label`
        sst2.yaml: model: missing, expected a map with `source`
        sst2.yaml: name: missing, expected text
        sst2.yaml: optimizer: missing, expected a map with `use`
        sst2.yaml: schedule: missing, expected a map with `use`
        sst2.yaml: task: missing, expected a map with `use`
        sst2.yaml: tuning: missing, expected a map with `use` or a non-empty list of a map with `use`
    ");
    let problems = layers("name: [", &[], &[]).load(registry().catalog()).expect_err("there is something wrong");
    assert_eq!(problems.to_string(), format!("understand the pipeline: 1 problem\n  {}", bad("name: [")));
}

#[test]
fn problems_of_overrides_name_their_origin() {
    assert_snapshot!(over(&[("SEPAL__TRAIN__EPOCHS", "many"), ("SEPAL__TRIAN__SEED", "1")], &[]), @r#"
        SEPAL__TRAIN__EPOCHS: train.epochs: expected a whole number of at least 1, found the text "many"
        SEPAL__TRIAN__SEED: trian: unknown key; did you mean `train`?
    "#);
    assert_snapshot!(over(&[], &["train.epochs=0", "loader.batchsize=3", "seed=3"]), @r"
        --set loader.batchsize=3: loader.batchsize: unknown key; did you mean `batch_size`?
        --set seed=3: seed: unknown key; there is one at `train.seed`
        --set train.epochs=0: train.epochs: expected a whole number of at least 1, found 0
    ");
    assert_snapshot!(over(&[("SEPAL__DATA__OTHERWISE", "[1")], &["train.seed", "=3", "data..x=1"]), @r"
        SEPAL__DATA__OTHERWISE: data.otherwise: expected YAML: unclosed bracket '['
        --set =3: expected a key, for example train.seed
        --set data..x=1: expected a key, for example train.seed
        --set train.seed: expected KEY=VALUE, for example train.seed=7
    ");
    assert_snapshot!(over(&[], &["data.otherwise=[{train: a.csv, text: t, label: l}]"]), @"--set data.otherwise=[{train: a.csv, text: t, label: l}]: data.otherwise[0].validation: expected `validation` or `validation_split`, found neither; `evaluate.every: never` needs none");
    assert_snapshot!(over(&[], &["optimizer=sgd"]), @r#"--set optimizer=sgd: optimizer: expected a map with `use`, found the text "sgd""#);
}

#[test]
fn invalid_yaml_is_refused() {
    assert_snapshot!(with("evaluate: { every: epoch }", "evaluate: { every: epoch"), @"sst2.yaml:27:11: expected YAML: unclosed bracket '{'");
    assert_snapshot!(with("train: { epochs", "train: }{ epochs"), @"sst2.yaml:26:8: expected YAML: misplaced bracket");
    assert_snapshot!(with("loader:", "name: again\nloader:"), @"sst2.yaml:23:1: expected each key once, found `name` again");
    assert_snapshot!(bad("- a\n- b\n"), @"sst2.yaml: expected a map of keys, such as `name: my-run`");
}

#[test]
fn schema_accepts_valid_and_refuses_invalid_files() {
    let schema = schema(registry().catalog());
    let validator = jsonschema::validator_for(&schema).expect("it is a schema");
    assert!(jsonschema::meta::is_valid(&schema));
    let good: Value = serde_json::to_value(good(&[], &[]).spec).expect("a spec is JSON");
    assert!(validator.is_valid(&good));
    for (pointer, value) in [
        ("/tuning/use", json!("lora")),
        ("/tuning/with", json!({ "rank": 8 })),
        ("/tuning", json!([])),
        ("/tuning", json!([{ "use": "ptune" }, { "use": "lora" }])),
        ("/optimizer", json!({ "use": "adamw", "groups": [{ "params": ["a"], "momentum": 1.0 }] })),
        ("/schedule", json!([{ "use": "linear" }])),
        ("/train/epochs", json!(0)),
        ("/data/where", json!({ "a": null })),
        ("/swarm", json!({ "use": "static" })),
        ("/track", json!({ "use": "tensorboard" })),
        ("/track", json!([{ "use": "tensorbord" }])),
        ("/track", json!([{ "use": "tensorboard", "with": { "uri": "x" } }])),
    ] {
        let mut changed = good.clone();
        *changed.pointer_mut(pointer).expect("there is such a key") = value;
        assert!(!validator.is_valid(&changed), "{pointer}");
    }
}

#[test]
fn schema_documents_every_key() {
    let schema = schema(registry().catalog());
    let tuning = &schema["properties"]["tuning"];
    assert_eq!(
        tuning["description"],
        "Tuning mode: the trained parameters besides the task's head. A list of modes trains them together."
    );
    let (mode, list) = (&tuning["anyOf"][0], &tuning["anyOf"][1]);
    assert_eq!(mode["properties"]["use"]["enum"], json!(["deep-ptune", "ptune"]));
    assert_eq!((&list["items"]["allOf"], &list["minItems"]), (&mode["allOf"], &json!(1)));
    let ptune = &mode["allOf"][1]["then"]["properties"]["with"]["properties"];
    assert_eq!(ptune["pre_seq_len"]["default"], 16);
    assert_eq!(ptune["pre_seq_len"]["minimum"], 1);
    assert_eq!(ptune["init"]["oneOf"][0]["enum"], json!(["vocabulary", "normal", "class-names"]));
    assert_eq!(mode["examples"][1], json!({ "use": "ptune", "with": { "pre_seq_len": 16, "init": "vocabulary" } }));
    assert!(!schema.to_string().contains("$ref"), "the schema has no references");
    check_descriptions(&schema, "");
}

fn check_descriptions(schema: &Value, at: &str) {
    for (key, below) in schema.as_object().into_iter().flatten().filter(|(key, _)| *key != "properties") {
        if !["if", "default", "examples"].contains(&key.as_str()) {
            check_descriptions(below, at);
        }
    }
    schema.as_array().into_iter().flatten().for_each(|branch| check_descriptions(branch, at));
    for (key, below) in schema["properties"].as_object().into_iter().flatten() {
        let at = format!("{at}.{key}");
        assert!(below["description"].is_string(), "{at} has no description");
        check_descriptions(below, &at);
    }
}
