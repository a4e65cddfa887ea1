use sepal_plugin::{Head, Registry, Tuning, standard};
use serde_json::json;

use super::*;
use crate::sweep::grid::Range;

const PIPELINE: &str = "\
name: demo
model: { source: tiny }
task: { use: sequence-classification, with: { labels: [negative, positive] } }
tuning: { use: deep-ptune, with: { pre_seq_len: 4 } }
data: { train: train.csv, validation: validation.csv, text: text, label: label }
optimizer: { use: adamw, with: { lr: 0.01 } }
schedule: { use: constant }
";

fn registry() -> Registry {
    let mut registry = Registry::new();
    standard::register(&mut registry).expect("the standard plugins");
    registry.register::<Head, sepal_sequence_classification::SequenceClassification>().expect("a head");
    registry.register::<Tuning, sepal_deep_ptune::DeepPtune>().expect("a tuning mode");
    registry.register::<Tuning, sepal_prefix_kv::PrefixKv>().expect("a tuning mode");
    registry.register::<Tuning, sepal_ptune::Ptune>().expect("a tuning mode");
    registry
}

fn layers(sweep: &str) -> Layers {
    Layers::text("demo.yaml", format!("{PIPELINE}{sweep}"))
}

fn load(layers: &Layers) -> Sweep {
    layers.load_sweep(registry().catalog()).unwrap_or_else(|problems| panic!("{problems}"))
}

/// Settings of each run, as text.
fn runs(sweep: &str) -> Vec<String> {
    let text = |member: &Member| member.settings.iter().map(Setting::describe).collect::<Vec<_>>().join(", ");
    load(&layers(sweep)).members.iter().map(text).collect()
}

fn problems(sweep: &str) -> Vec<String> {
    match layers(sweep).load_sweep(registry().catalog()) {
        Ok(sweep) => panic!("no problem in {:?}", sweep.yaml),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn grid_is_every_combination_with_the_last_key_fastest() {
    let expected = [
        "optimizer.with.lr 0.001, train.seed 0",
        "optimizer.with.lr 0.001, train.seed 1",
        "optimizer.with.lr 0.003, train.seed 0",
        "optimizer.with.lr 0.003, train.seed 1",
    ];
    for sweep in [
        "sweep: { optimizer.with.lr: [1e-3, 3e-3], train.seed: [0..2] }",
        "sweep: { optimizer.with.lr: [1e-3, 3e-3], train.seed: 0..=1 }",
        "sweep: { optimizer: { with: { lr: [1e-3, 3e-3] } }, train: { seed: [0, 1] } }",
        "sweep: { over: { optimizer.with.lr: [1e-3, 3e-3], train: { seed: [0, 1] } } }",
        "sweep: { optimizer.with.lr: [1e-3, 3e-3], over: { train.seed: [0..2] } }",
    ] {
        assert_eq!(runs(sweep), expected, "{sweep}");
    }
    let members = load(&layers("sweep: { optimizer.with.lr: [1e-3, 3e-3], train.seed: [5] }")).members;
    assert_eq!((&members[1].spec.optimizer.with["lr"], members[1].spec.train.seed), (&json!(0.003), 5));
}

/// A sweep that is resumed on another machine keeps its format.
#[test]
fn written_sweep_names_the_format_that_fast_chose() {
    let fast = PIPELINE.replace("source: tiny", "source: tiny, compute: fast");
    let sweep = load(&Layers::text("demo.yaml", format!("{fast}sweep: {{ train.seed: [0, 1] }}")));
    let chosen = sepal_core::ComputeFormat::fastest_on(sepal_core::Device::Cpu);
    assert!(sweep.yaml.contains(&format!("compute: {chosen}")) && !sweep.yaml.contains("fast"), "{}", sweep.yaml);
    assert!(sweep.members.iter().all(|member| member.spec.model.compute == Some(chosen)));
}

#[test]
fn fast_is_refused_if_the_runs_may_need_different_formats() {
    let problems_with = |model: &str, sweep: &str| {
        let file = PIPELINE.replace("source: tiny", &format!("source: tiny{model}"));
        match Layers::text("demo.yaml", format!("{file}{sweep}")).load_sweep(registry().catalog()) {
            Ok(sweep) => panic!("no problem in {:?}", sweep.yaml),
            Err(problems) => problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
        }
    };
    for (sweep, key) in [
        ("sweep: { swarm.use: [none, embedded] }", "swarm.use"),
        ("sweep: { swarm: [{ use: none }, { use: embedded }] }", "swarm.use"),
        ("sweep: { model.device: [cpu, 'cuda:0'] }", "model.device"),
        ("sweep: [{ model: { device: 'cuda:0' } }, {}]", "model.device"),
    ] {
        let problems = problems_with(", compute: fast", sweep);
        let expected = format!("model.compute: expected f32, bf16 or f16, because the runs of the sweep set `{key}`");
        assert!(problems.contains(&expected), "{sweep}: {problems}");
    }
    for sweep in ["sweep: { model.compute: [f32, fast] }", "sweep: [{ model: { compute: fast } }, {}]"] {
        let problems = problems_with("", sweep);
        assert!(problems.contains("expected f32, bf16 or f16 as a format of some runs"), "{sweep}: {problems}");
    }
}

#[test]
fn keys_of_a_grid_keep_the_order_of_the_file() {
    let expected = [
        "train.seed 0, optimizer.with.lr 0.1",
        "train.seed 0, optimizer.with.lr 0.2",
        "train.seed 1, optimizer.with.lr 0.1",
        "train.seed 1, optimizer.with.lr 0.2",
    ];
    for sweep in [
        "sweep: { train.seed: [0..2], optimizer.with.lr: [0.1, 0.2] }",
        "sweep: { over: { train.seed: [0..2], optimizer.with.lr: [0.1, 0.2] } }",
    ] {
        assert_eq!(runs(sweep), expected, "{sweep}");
        let again = Layers::text("sweep.yaml", load(&layers(sweep)).yaml);
        let specs = |sweep: Sweep| sweep.members.into_iter().map(|member| member.spec).collect::<Vec<_>>();
        assert_eq!(specs(load(&again)), specs(load(&layers(sweep))), "{sweep}");
    }
}

#[test]
fn list_holds_whole_runs_and_can_be_repeated_by_a_grid() {
    assert_eq!(
        runs("sweep:\n  - { train.seed: 1 }\n  - { train: { seed: 2, max_steps: 5 } }\n  - {}\n"),
        ["train.seed 1", "train.max_steps 5, train.seed 2", ""]
    );
    assert_eq!(
        runs("sweep: { over: [{ tuning.use: ptune }, { loader.batch_size: 8 }], train.seed: [3, 4] }"),
        [
            "tuning.use ptune, train.seed 3",
            "tuning.use ptune, train.seed 4",
            "loader.batch_size 8, train.seed 3",
            "loader.batch_size 8, train.seed 4",
        ]
    );
}

#[test]
fn choice_replaces_the_whole_value_and_other_maps_single_keys() {
    let sweep = load(&layers(
        "sweep: { tuning: [{ use: ptune }, [{ use: prefix-kv }, { use: ptune }]], train: [{ max_steps: 3 }] }",
    ));
    let [first, second] = sweep.members.as_slice() else { panic!("two runs") };
    assert_eq!((first.spec.tuning.names().as_str(), first.spec.train.max_steps), ("ptune", Some(3)));
    assert_eq!(first.spec.tuning.modes()[0].with["pre_seq_len"], 16, "the default, not the value of another choice");
    assert_eq!(second.spec.tuning.modes().len(), 2);
    assert_eq!(first.spec.train.seed, 42, "other keys of `train` stay");
    let kept = load(&layers("sweep: { tuning.use: [deep-ptune, ptune] }"));
    assert_eq!(kept.members[1].spec.tuning.modes()[0].with["pre_seq_len"], 4, "both have the option");
}

#[test]
fn ranges_include_the_start_and_only_with_an_equals_sign_the_end() {
    let values = |text: &str| Range::parse(text).map(|range| range.values().map(Iterator::collect::<Vec<_>>));
    assert_eq!(values("0..4"), Some(Ok(vec![0, 1, 2, 3])));
    assert_eq!(values("0..=4"), Some(Ok(vec![0, 1, 2, 3, 4])));
    assert_eq!(values("-1..1"), Some(Ok(vec![-1, 0])));
    assert_eq!(values("1.5"), None);
    assert_eq!(values("a..b"), None);
    assert!(values("3..3").is_some_and(|range| range.is_err()));
    assert!(values("0..100000").is_some_and(|range| range.is_err()));
}

#[test]
fn problems_name_the_place_in_the_sweep_and_the_run() {
    assert_eq!(
        problems("sweep:\n  optimizer.with.lr: [0.1, fast]\n  train.seed: [0..2]\n  trian.epochs: [1]\n"),
        [
            "demo.yaml:9:28: optimizer.with.lr: expected a number of at least 0, found the text \"fast\" (run 3 and one \
             more: optimizer.with.lr fast, train.seed 0, trian.epochs 1)",
            "demo.yaml:11:18: trian: unknown key (run 1 and 3 more: optimizer.with.lr 0.1, train.seed 0, trian.epochs 1); \
             did you mean `train`?",
        ]
    );
}

#[test]
fn sweeps_without_runs_or_with_repeated_ones_are_refused() {
    for (sweep, expected) in [
        ("", "demo.yaml: sweep: missing, expected keys with lists of values, such as `train.seed: [0..3]`"),
        ("sweep: {}", "demo.yaml:8:1: sweep: expected a key with a list of values, such as `train.seed: [0..3]`"),
        (
            "sweep: { train.seed: 3 }",
            "demo.yaml:8:10: sweep.train.seed: expected a list of values or a range such as `0..3`, found 3",
        ),
        (
            "sweep: { train.seed: [] }",
            "demo.yaml:8:10: sweep.train.seed: expected at least one value, found an empty list",
        ),
        (
            "sweep: { train.seed: [1, 1] }",
            "demo.yaml:8:26: sweep.train.seed[1]: expected different values, found 1 twice",
        ),
        (
            "sweep: { name: [a, b] }",
            "demo.yaml:8:17: sweep.name[0]: expected a key that may differ between the runs of a sweep, found `name`",
        ),
        ("sweep: [{ train.seed: 42 }, {}]", "demo.yaml:8:1: sweep: expected different runs, found run 1 again (run 2)"),
        (
            "sweep: { train.seed: [1, 2], halving: { factor: 1 } }",
            "demo.yaml:8:41: sweep.halving.factor: expected a whole number of at least 2 and at most 100, found 1",
        ),
        (
            "sweep: { evaluate.metric: [f1, accuracy], halving: {} }",
            "demo.yaml:8:43: sweep.halving: expected `metric`, because the runs differ in `evaluate.metric`",
        ),
    ] {
        assert_eq!(problems(sweep), [expected], "{sweep}");
    }
    let many = problems("sweep: { train.seed: [0..100], loader.batch_size: [1..100] }");
    assert_eq!(many, ["demo.yaml:8:1: sweep: expected at most 1000 runs, found 9900"]);
}

#[test]
fn key_that_is_written_as_a_path_and_as_a_map_is_refused() {
    let expected = |position: &str, key: &str| {
        [format!("demo.yaml:{position}: {key}: expected each key once, found `train.seed` again")]
    };
    for (sweep, position, key) in [
        ("sweep: { train.seed: [1, 2], train: { seed: [3] } }", "8:39", "sweep.train.seed"),
        ("sweep: { train: { seed: [3] }, train.seed: [1, 2] }", "8:32", "sweep.train.seed"),
        ("sweep: { over: { train.seed: [1], train: { seed: [3] } } }", "8:44", "sweep.over.train.seed"),
    ] {
        assert_eq!(problems(sweep), expected(position, key), "{sweep}");
    }
    let set = "sweep={ train.seed: [1], train: { seed: [3] } }";
    let error = layers("").sets([set.to_owned()]).load_sweep(registry().catalog()).expect_err("twice").to_string();
    assert!(error.contains(&format!("--set {set}: sweep.train.seed: expected each key once")), "{error}");
    // A later layer overrides the key, in each way of writing it.
    let file = layers("sweep: { train: { seed: [1, 2] } }");
    for set in ["sweep.train.seed=[3]", "sweep={ train.seed: [3] }", "sweep.train={ seed: [3] }"] {
        let members = load(&file.clone().sets([set.to_owned()])).members;
        assert_eq!(members.iter().map(|member| member.spec.train.seed).collect::<Vec<_>>(), [3], "{set}");
    }
}

#[test]
fn key_inside_of_a_value_that_sets_it_is_refused() {
    let both = "sweep: { optimizer: [{use: sgd, with: {lr: 0.3}}, {use: adamw, with: {lr: 0.3}}], optimizer.with.lr: [0.1, 0.2] }";
    let reversed = "sweep: { tuning.0.with.pre_seq_len: [2], tuning: [[{use: ptune, with: {pre_seq_len: 3}}]] }";
    for (sweep, key, outer) in [
        (both, "optimizer.with.lr", "optimizer"),
        (reversed, "tuning.0.with.pre_seq_len", "tuning"),
        ("sweep: [{ optimizer: {use: sgd, with: {lr: 0.3}}, optimizer.use: adamw }]", "optimizer.use", "optimizer"),
    ] {
        let found = problems(sweep).join("\n");
        let message = format!("expected each key once, found `{key}` again in run 1: its value of `{outer}` sets it");
        assert!(found.contains(&message), "{sweep}: {found}");
    }
    // The choice does not set the key.
    let allowed = "sweep: { tuning: [{use: ptune}, {use: deep-ptune}], tuning.with.pre_seq_len: [2, 3] }";
    assert_eq!(runs(allowed).len(), 4);
    assert_eq!(runs("sweep: { tuning.use: [ptune, deep-ptune], tuning.with.pre_seq_len: [2, 3] }").len(), 4);
}

#[test]
fn halving_has_defaults() {
    let halving = load(&layers("sweep: { train.seed: [0..9], halving: { min_steps: 20 } }")).halving;
    assert_eq!(halving, Some(HalvingSpec { metric: None, factor: 3, min_steps: 20 }));
    assert_eq!(load(&layers("sweep: { train.seed: [0..9] }")).halving, None);
}

#[test]
fn written_sweep_reads_as_itself() {
    let sets = ["train.max_steps=7", "sweep.train.seed=[4, 5]"].map(str::to_owned);
    let sweep = load(&layers("sweep: { optimizer.with.lr: [1e-3, 3e-3], train.seed: [0..9] }").sets(sets));
    assert_eq!(sweep.members.len(), 4, "an option of the command line replaces the values of a key");
    let again = load(&Layers::text("sweep.yaml", sweep.yaml.as_str()));
    let specs = |sweep: &Sweep| sweep.members.iter().map(|member| member.spec.clone()).collect::<Vec<_>>();
    assert_eq!(specs(&again), specs(&sweep));
}

#[test]
fn file_of_several_runs_is_no_pipeline_of_one_unless_the_sweep_is_null() {
    let sweep = layers("sweep: { train.seed: [0..2] }");
    let error = sweep.load(registry().catalog()).expect_err("several runs").to_string();
    assert!(error.contains("demo.yaml:8:1: sweep: found several runs where one is expected"), "{error}");
    assert!(sweep.is_sweep() && !layers("").is_sweep());
    let one = sweep.clone().sets(["sweep=null".to_owned()]);
    assert!(!one.is_sweep() && one.load(registry().catalog()).is_ok());
    let rendered = sweep.render(registry().catalog()).expect("a pipeline with a sweep").to_yaml(true);
    assert!(rendered.contains("sweep:\n") && rendered.contains("  train.seed: [0..2]"), "{rendered}");
    assert_eq!(load(&Layers::text("rendered.yaml", rendered)).members.len(), 2);
}
