//! Task heads beside the classifier of single texts: the example pipelines on generated data, with a tiny model.

use std::fs;
use std::path::Path;

use sepal_integration_tests::fixture::{
    Fixture, Run, Server, failure_messages, static_swarm, stdout, success_messages,
};
use sepal_testkit::tiny;
use serde_json::Value;

/// Folder with a tiny model and the example pipeline `name`.
fn fixture(name: &str) -> Fixture {
    let fixture = Fixture::new("llama-gqa");
    let pipelines = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pipelines");
    fs::copy(pipelines.join(name), fixture.path("pipeline.yaml")).expect("an example pipeline");
    fixture
}

const SHORT: [&str; 6] = [
    "model.source=model",
    "train.threads=1",
    "train.seed=7",
    "tuning.with.pre_seq_len=4",
    "optimizer.with.lr=0.03",
    "evaluate.every=end",
];

fn run(fixture: &Fixture, sets: &[&str]) -> Run {
    fixture.run(&[&SHORT[..], sets].concat())
}

fn metric(run: &Run, name: &str) -> f64 {
    run.manifest()["metrics"][name].as_f64().unwrap_or_else(|| panic!("{name} in {}", run.manifest()["metrics"]))
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("lines");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn report(run: &Run) -> String {
    fs::read_to_string(run.folder.join("report.html")).expect("a report")
}

/// Checks that `sepal evaluate` measures on the file `data` what the run measured.
fn check_evaluation(fixture: &Fixture, run: &Run, data: &str, name: &str) {
    let folder = run.folder.to_str().expect("a path");
    let text = stdout(fixture.sepal(&["evaluate", folder, "--data", data, "--json"]));
    let found: Value = serde_json::from_str(&text).expect("JSON");
    let far = (found["metrics"][name].as_f64().expect("the metric") - metric(run, name)).abs();
    assert!(far < 1e-6, "{name}: {found} instead of {}", metric(run, name));
}

const NER: [&str; 5] = [
    "data.train=rows.jsonl",
    "data.validation=other.jsonl",
    "data.validation_split=null",
    "data.max_length=16",
    "task.with.labels=[O, B-BAD, I-BAD, B-GOOD, I-GOOD]",
];

#[test]
fn entities_are_learnt_predicted_and_reported() {
    let fixture = fixture("ner.yaml");
    tiny::entities(&fixture.path("rows.jsonl"), 192, 1);
    tiny::entities(&fixture.path("other.jsonl"), 48, 2);
    let run = run(&fixture, &[&NER[..], &["train.max_steps=60"]].concat());
    assert!(metric(&run, "f1") > 0.5 && metric(&run, "f1/GOOD") > 0.4, "{}", run.manifest()["metrics"]);
    assert!(report(&run).contains("Each type of entity"));
    check_evaluation(&fixture, &run, "other.jsonl", "f1");

    fs::write(fixture.path("texts.csv"), "text\nthe film was bright\na very dull plot\n").expect("written");
    let folder = run.folder.to_str().expect("a path");
    success_messages(fixture.sepal(&["predict", folder, "-i", "texts.csv", "-o", "out.jsonl"]));
    for line in lines(&fixture.path("out.jsonl")) {
        let (tags, probabilities) = (line["predicted"].as_array(), line["probability"].as_array());
        let (tags, probabilities) = (tags.expect("a list"), probabilities.expect("a list"));
        assert_eq!((tags.len(), probabilities.len()), (4, 4), "{line}");
        assert_eq!(tags[0], "O", "{line}");
    }
}

#[test]
fn entities_are_the_same_through_servers() {
    let fixture = fixture("ner.yaml");
    tiny::entities(&fixture.path("rows.jsonl"), 96, 1);
    tiny::entities(&fixture.path("other.jsonl"), 24, 2);
    let sets = [&NER[..], &["train.max_steps=8", "train.deterministic=true"]].concat();
    let local = run(&fixture, &[&sets[..], &["swarm.use=none"]].concat()).losses();
    let servers: Vec<Server> = ["0:1", "1:3"].iter().map(|blocks| fixture.serve(blocks, "127.0.0.1:0")).collect();
    let swarm = static_swarm(&servers.iter().collect::<Vec<_>>());
    let swarm: Vec<&str> = swarm.iter().map(String::as_str).collect();
    let remote = run(&fixture, &[&sets[..], &swarm[..]].concat()).losses();
    sepal_integration_tests::fixture::assert_close(&remote, &local);
}

#[test]
fn options_are_learnt_and_predicted() {
    let fixture = fixture("choice.yaml");
    tiny::choices(&fixture.path("rows.jsonl"), 192, 1);
    tiny::choices(&fixture.path("other.jsonl"), 48, 2);
    let sets = [
        "data.train=rows.jsonl",
        "data.validation=other.jsonl",
        "data.validation_split=null",
        "data.options=[ending0, ending1]",
        "data.max_length=16",
        "train.max_steps=60",
    ];
    let run = run(&fixture, &sets);
    assert!(metric(&run, "accuracy") > 0.8, "{}", run.manifest()["metrics"]);
    assert!(report(&run).contains("By chance"));
    let accuracy = run.records("step").last().expect("steps")["accuracy"].as_f64();
    assert!(accuracy.is_some(), "steps count right options");
    check_evaluation(&fixture, &run, "other.jsonl", "accuracy");

    let folder = run.folder.to_str().expect("a path");
    let args = ["predict", folder, "-i", "other.jsonl", "-o", "out.jsonl", "--label", "label"];
    success_messages(fixture.sepal(&args));
    let found = lines(&fixture.path("out.jsonl"));
    let right = found.iter().filter(|line| line["predicted"] == line["label"]).count();
    assert!((right as f64 / 48.0 - metric(&run, "accuracy")).abs() < 1e-9, "as right as the run says");
    let messages = failure_messages(fixture.sepal(&["serve-task", folder, "--listen", "127.0.0.1:0"]));
    assert!(messages.contains("one of the options of each row"), "{messages}");
}

#[test]
fn answers_get_less_surprising() {
    let fixture = fixture("answers.yaml");
    tiny::answers(&fixture.path("rows.jsonl"), 192, 1);
    tiny::answers(&fixture.path("other.jsonl"), 48, 2);
    let sets = [
        "data.train=rows.jsonl",
        "data.validation=other.jsonl",
        "data.validation_split=null",
        "data.template=\"{text}\"",
        "data.max_length=24",
    ];
    let before = run(&fixture, &[&sets[..], &["train.max_steps=0"]].concat());
    let after = run(&fixture, &[&sets[..], &["train.max_steps=60"]].concat());
    assert!(metric(&after, "perplexity") < 0.8 * metric(&before, "perplexity"), "{}", after.manifest()["metrics"]);
    assert!(report(&after).contains("Perplexity"));
    check_evaluation(&fixture, &after, "other.jsonl", "perplexity");
    let folder = after.folder.to_str().expect("a path");
    let messages = failure_messages(fixture.sepal(&["predict", folder, "-i", "other.jsonl", "-o", "out.csv"]));
    assert!(messages.contains("evaluate labelled rows instead"), "{messages}");
}

const FEW: [&str; 8] = [
    "data.train=train.csv",
    "data.validation=validation.csv",
    "data.otherwise=[]",
    "data.template=\"{text}\"",
    "data.max_length=16",
    "task.with.labels=[bad, good]",
    "tuning.with.init=vocabulary",
    "train.max_steps=0",
];

const WORDS: &str = "{ bad: [dull], good: [bright] }";

#[test]
fn label_words_and_verbalizer_start_as_the_same_classifier() {
    let fixture = fixture("sst2-few-shot.yaml");
    let words = "task.with.label_words=[dull, bright]";
    let labels = run(&fixture, &[&FEW[..], &[words]].concat());
    assert_eq!(labels.manifest()["data"]["train_rows"], 32, "16 rows of each class");
    let verbalizer = |more: &str| {
        let text = fs::read_to_string(fixture.path("pipeline.yaml")).expect("a pipeline");
        let (start, end) = (text.find("task:").expect("a task"), text.find("tuning:").expect("a tuning mode"));
        let task = format!("task: {{ use: verbalizer, with: {{ labels: [bad, good], words: {WORDS}{more} }} }}\n");
        fs::write(fixture.path("pipeline.yaml"), format!("{}{task}{}", &text[..start], &text[end..])).expect("written");
    };
    verbalizer("");
    let without_labels = [&FEW[..5], &FEW[6..]].concat();
    let fixed = run(&fixture, &without_labels);
    let loss = |run: &Run| run.records("evaluation")[0]["loss"].as_f64().expect("a loss");
    assert!((loss(&labels) - loss(&fixed)).abs() < 1e-6, "{} and {}", loss(&labels), loss(&fixed));
    assert_eq!(metric(&labels, "accuracy"), metric(&fixed, "accuracy"));

    verbalizer(", calibrate: [the film]");
    let calibrated = run(&fixture, &without_labels);
    assert!((loss(&calibrated) - loss(&fixed)).abs() < 1e-9, "calibration changes predictions only");
    assert_ne!(metric(&calibrated, "ece"), metric(&fixed, "ece"));
    let bare = run(&fixture, &[&without_labels[1..], &["data.train=null"]].concat());
    assert_eq!(loss(&bare), loss(&calibrated), "no training rows are needed without training");
    check_evaluation(&fixture, &calibrated, "validation.csv", "accuracy");
}

#[test]
fn mean_pooling_trains_through_a_server() {
    let fixture = Fixture::new("llama-gqa");
    let run = fixture.run(&["task.with.pooling=mean", "train.max_steps=40"]);
    let losses = run.losses();
    assert!(losses[36..].iter().sum::<f64>() < losses[..4].iter().sum::<f64>(), "{losses:?}");
}

#[test]
fn heads_that_do_not_fit_the_data_are_refused() {
    let refused = |fixture: &Fixture, sets: &[&str], expected: &str| {
        let text = fixture.failure(&[&SHORT[..], sets].concat());
        assert!(text.contains(expected), "{sets:?}: expected `{expected}` in\n{text}");
    };
    let few = fixture("sst2-few-shot.yaml");
    // The tiny tokenizer has no pieces of words, so that two words stand for a word of two tokens.
    let sets = [&FEW[..], &["task.with.label_words=[dull, very bright]"]].concat();
    refused(&few, &sets, "of the label `good`, `very bright` is 2 tokens");
    let sets = [&FEW[..], &["data.few_shot.per_class=1000", "task.with.label_words=[dull, bright]"]].concat();
    refused(&few, &sets, "take 1000 rows of each class");

    let ner = fixture("ner.yaml");
    fs::write(ner.path("rows.jsonl"), "{\"tokens\": [\"a\", \"b\"], \"ner_tags\": [\"O\"]}\n").expect("written");
    tiny::entities(&ner.path("other.jsonl"), 4, 2);
    refused(&ner, &NER, "it has 1 labels for 2 words");
    fs::write(ner.path("rows.jsonl"), "{\"tokens\": [\"a\", \"b c\"], \"ner_tags\": [0, 0]}\n").expect("written");
    refused(&ner, &NER, "expected a list of words without blanks");
    refused(&ner, &["task.with.labels=[O, I-PER]"], "expected `B-PER` beside `I-PER`");

    let choice = fixture("choice.yaml");
    tiny::choices(&choice.path("choices.jsonl"), 8, 1);
    refused(&choice, &["data.options=[ending0, ending1]", "data.template=\"{text}\""], "has no {text_pair}");
    refused(&choice, &["data.options=[]"], "data.template: expected `text_pair` or `options`");
}
