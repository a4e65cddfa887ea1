//! Folders saved by PEFT, used by the real program for prediction, evaluation, serving, training and export.

use std::fs;
use std::path::PathBuf;

use crate::serve_task::Task;
use safetensors::SafeTensors;
use sepal_integration_tests::fixture::{Fixture, Run, assert_close, combined_output, failure_messages, static_swarm};
use sepal_testkit::tiny;
use serde_json::{Value, json};

fn succeeds(fixture: &Fixture, args: &[&str]) -> String {
    combined_output(fixture.sepal(args))
}

fn saved_by_peft(name: &str) -> PathBuf {
    tiny::goldens().join("peft").join(name)
}

/// Returns the texts of the goldens, and PEFT's predictions for them with the folder `name`.
fn golden(name: &str) -> (Vec<String>, Vec<Vec<f64>>) {
    let text = fs::read_to_string(tiny::goldens().join("peft.json")).expect("goldens");
    let mut json: Value = serde_json::from_str(&text).expect("JSON");
    let case = json["cases"].as_array().expect("cases").iter().find(|case| case["name"] == name).expect("a case");
    let predicted = serde_json::from_value(case["predicted"].clone()).expect("numbers");
    (serde_json::from_value(json["texts"].take()).expect("texts"), predicted)
}

/// Imports the folder `name` of the goldens as `imported`. Returns the messages.
fn import(fixture: &Fixture, name: &str, more: &[&str]) -> String {
    let folder = saved_by_peft(name);
    let folder = folder.to_str().expect("a path");
    let args = ["import", "peft", folder, "imported", "--model", "model", "--text", "sentence"];
    succeeds(fixture, &[&args, more].concat())
}

/// Returns the setting of a tuning mode that begins with the imported adapter.
fn tuning(fixture: &Fixture, mode: &str) -> String {
    let adapter = fixture.path("imported");
    format!("tuning={{use: {mode}, with: {{ pre_seq_len: 4, init: {{ adapter: {} }} }} }}", adapter.display())
}

/// Returns the probabilities that a run predicts for the texts.
fn probabilities(fixture: &Fixture, run: &str, sets: &[&str]) -> Vec<Vec<f64>> {
    let rows = "texts.csv";
    let out = ["-o", "predicted.jsonl", "--overwrite", "--probabilities"];
    let sets: Vec<&str> = if sets.is_empty() { Vec::new() } else { [&["--set"], sets].concat() };
    succeeds(fixture, &[&["predict", run, "-i", rows], &out[..], &sets].concat());
    let text = fs::read_to_string(fixture.path("predicted.jsonl")).expect("predictions");
    let row = |line: &str| -> Vec<f64> {
        let row: Value = serde_json::from_str(line).expect("JSON");
        let fields = row.as_object().expect("an object").iter().filter(|(name, _)| name.starts_with("probability_"));
        fields.map(|(_, value)| value.as_f64().expect("a number")).collect()
    };
    text.lines().map(row).collect()
}

fn assert_same(what: &str, found: &[Vec<f64>], expected: &[Vec<f64>], most: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.concat().iter().zip(expected.concat()) {
        assert!((found - expected).abs() <= most, "{what}: {found} instead of {expected}");
    }
}

fn write_texts(fixture: &Fixture, texts: &[String]) {
    fs::write(fixture.path("texts.csv"), format!("sentence\n{}\n", texts.join("\n"))).expect("written");
}

fn tensors(run: PathBuf) -> Vec<(String, Vec<u8>)> {
    let bytes = fs::read(run.join("adapter.safetensors")).expect("an adapter");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut all: Vec<_> = tensors.iter().map(|(name, view)| (name.to_owned(), view.data().to_vec())).collect();
    all.sort();
    all
}

#[test]
fn imported_peft_folder_works_as_a_run() {
    for (name, model) in [("llama-prompts", "llama-gqa"), ("gpt2-prefix", "gpt2"), ("gemma3-prefix", "gemma3")] {
        let fixture = Fixture::new(model);
        let (texts, expected) = golden(name);
        write_texts(&fixture, &texts);
        let messages = import(&fixture, name, &["--max-length", "16"]);
        assert!(messages.contains("they are LABEL_0 and so on") && messages.contains("--labels"), "{messages}");
        assert!(messages.contains("`sepal predict imported --input FILE` predicts with it"), "{messages}");
        assert_same(name, &probabilities(&fixture, "imported", &[]), &expected, 1e-5);

        let text = succeeds(&fixture, &["evaluate", "imported", "--data", "validation.csv", "--json"]);
        assert!(text.contains("\"rows\": 48"), "{text}");
        succeeds(&fixture, &["report", "imported"]);
        // The first step uses the head and the prefix of the folder.
        let sets = ["--set", "data.train=train.csv", "train.max_steps=0", "train.threads=1"];
        let messages = succeeds(&fixture, &[&["run", "imported/pipeline.yaml"], &sets[..]].concat());
        assert!(messages.contains("the head starts as that of"), "{messages}");
        let [found, expected] = [fixture.only_run().folder, fixture.path("imported")].map(tensors);
        assert_eq!(found, expected);
        fs::remove_dir_all(fixture.path("runs")).expect("removed");
        let args = "run imported/pipeline.yaml --set data.train=train.csv train.epochs=8 train.threads=1 \
                    loader.batch_size=16 optimizer.with.lr=0.03";
        succeeds(&fixture, &args.split(' ').collect::<Vec<_>>());
        let trained = fixture.only_run();
        let losses = trained.losses();
        assert!(losses[losses.len() - 1] < 0.7 * losses[0], "{name}: {losses:?}");
        // The result is exported to PEFT and imported again without the files of this program.
        let run = trained.folder.to_str().expect("a path");
        succeeds(&fixture, &["export", "peft", run, "export", "--verify", "--base-model", "owner/name"]);
        fs::remove_file(fixture.path("export/sepal.json")).expect("removed");
        succeeds(&fixture, &["import", "peft", "export", "back", "--model", "model", "--text", "sentence"]);
        let [before, after] = [run, "back"].map(|run| probabilities(&fixture, run, &[]));
        assert_same(name, &after, &before, 1e-5);
    }
}

#[test]
fn imported_layers_work_as_a_run() {
    for (name, model, mode) in [
        ("llama-lora-patterns", "llama-gqa", "lora"),
        ("llama-lora-last", "llama-gqa", "lora"),
        ("gpt2-ia3", "gpt2", "ia3"),
    ] {
        let fixture = Fixture::new(model);
        let (texts, expected) = golden(name);
        write_texts(&fixture, &texts);
        let messages = import(&fixture, name, &["--max-length", "16"]);
        assert!(messages.contains(&format!("adapter.safetensors: {mode}, ")), "{messages}");
        assert_eq!(messages.contains("were converted"), name.ends_with("patterns"), "{messages}");
        assert_same(name, &probabilities(&fixture, "imported", &[]), &expected, 1e-5);
        let sets = ["--set", "data.train=train.csv", "train.max_steps=0", "train.threads=1"];
        succeeds(&fixture, &[&["run", "imported/pipeline.yaml"], &sets[..]].concat());
        let [found, started] = [fixture.only_run().folder, fixture.path("imported")].map(tensors);
        assert_eq!(found, started);

        let messages =
            succeeds(&fixture, &["export", "peft", "imported", "export", "--verify", "--base-model", "owner/name"]);
        assert!(messages.contains(&format!(" as {mode}, labels ")) && messages.contains("verified:"), "{messages}");
        fs::remove_file(fixture.path("export/sepal.json")).expect("removed");
        succeeds(&fixture, &["import", "peft", "export", "back", "--model", "model", "--text", "sentence"]);
        assert_same(name, &probabilities(&fixture, "back", &[]), &expected, 1e-5);

        let messages = succeeds(&fixture, &["merge", "imported", "--out", "merged"]);
        assert!(messages.contains("ForSequenceClassification with "), "{messages}");
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            assert!(fixture.path("merged").join(file).is_file(), "{file}");
        }
        let messages = failure_messages(fixture.sepal(&["merge", "imported", "--out", "merged"]));
        assert!(messages.contains("it exists; name another folder, or use --overwrite"), "{messages}");
    }
}

#[test]
fn encoded_prompts_are_exported_as_their_values() {
    let fixture = Fixture::new("llama-gqa");
    write_texts(&fixture, &golden("llama-prompts").0);
    let tuning = "tuning={use: p-tuning, with: { pre_seq_len: 4, encoder: lstm, hidden: 16 }}";
    let run = fixture.run(&[tuning, "train.max_steps=3", "swarm.use=none"]);
    let run = run.folder.to_str().expect("a path");
    let trained = probabilities(&fixture, run, &[]);
    for (index, form) in ["prefix-tuning", "p-tuning"].into_iter().enumerate() {
        let [export, own, foreign] = ["export", "own", "foreign"].map(|name| format!("{name}{index}"));
        let args = ["export", "peft", run, &export, "--as", form, "--verify", "--base-model", "owner/name"];
        let messages = succeeds(&fixture, &args);
        assert!(messages.contains(&format!("4 soft prompts as {form}")), "{messages}");
        let import = |out: &str| {
            succeeds(&fixture, &["import", "peft", &export, out, "--model", "model", "--text", "sentence"]);
            assert_same(form, &probabilities(&fixture, out, &[]), &trained, 1e-5);
        };
        import(&own);
        fs::remove_file(fixture.path(&export).join("sepal.json")).expect("removed");
        import(&foreign);
    }
    let messages = failure_messages(fixture.sepal(&["merge", run, "--out", "merged"]));
    assert!(messages.contains("merge p-tuning: it puts trained positions before each row"), "{messages}");
    assert!(messages.contains("`sepal export peft"), "{messages}");
}

#[test]
fn imported_prefix_is_served_and_trains_through_servers() {
    let fixture = Fixture::new("llama-gqa");
    let (texts, expected) = golden("llama-prefix");
    write_texts(&fixture, &texts);
    import(&fixture, "llama-prefix", &["--labels", "bad,fair,good"]);
    let servers = [fixture.serve("0:1", "127.0.0.1:0"), fixture.serve("1:3", "127.0.0.1:0")];
    let [used, addresses] = static_swarm(&servers.each_ref());
    assert_same("servers", &probabilities(&fixture, "imported", &[&used, &addresses]), &expected, 1e-5);
    let tuning = tuning(&fixture, "prefix-tuning");
    let sets = ["task.with.labels=[bad, fair, good]", &tuning, "train.max_steps=6", "train.deterministic=true"];
    let local = fixture.run(&[&sets[..], &["swarm.use=none"]].concat());
    let remote = fixture.run(&[&sets[..], &[&used, &addresses]].concat());
    assert_close(&remote.losses(), &local.losses());
    let both = ["model.local_blocks=1", used.as_str(), addresses.as_str()];
    assert_close(&fixture.run(&[&sets[..], &both].concat()).losses(), &local.losses());

    let imported = Run { folder: fixture.path("imported"), stdout: String::new() };
    let task = Task::start(&fixture, &imported, &[]);
    task.until("ready");
    let (status, answer) = task.ask(&json!({ "texts": texts }), "");
    assert_eq!(status, 200, "{answer}");
    let results = answer["predictions"].as_array().expect("predictions");
    let label_probabilities = |result: &Value| {
        ["bad", "fair", "good"].map(|label| result["probabilities"][label].as_f64().expect("a number")).to_vec()
    };
    let found: Vec<Vec<f64>> = results.iter().map(label_probabilities).collect();
    assert_same("serve-task", &found, &expected, 1e-5);
}

#[test]
fn head_with_other_labels_is_initialized_again() {
    let fixture = Fixture::new("llama-gqa");
    import(&fixture, "llama-prompts", &["--labels", "no,yes"]);
    let start = |labels: &str| {
        let (tuning, labels) = (tuning(&fixture, "ptune"), format!("task.with.labels={labels}"));
        let output = fixture.output(&[&tuning, &labels, "train.max_steps=0", "swarm.use=none"]);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let messages = start("[no, yes]");
    assert!(messages.contains("the head starts as that of"), "{messages}");
    let messages = start("[yes, no]");
    assert!(messages.contains("the head starts anew: the adapter's labels are `no`, `yes`, not these"), "{messages}");
}

#[test]
fn import_options_supply_missing_metadata() {
    let fixture = Fixture::new("llama-gqa");
    let folder = saved_by_peft("llama-prompts");
    let folder = folder.to_str().expect("a path");
    let refused = |args: &[&str], part: &str| {
        let messages = failure_messages(fixture.sepal(&[&["import", "peft", folder, "imported"], args].concat()));
        assert!(messages.contains(part), "{messages}");
        assert!(!fixture.path("imported").exists());
    };
    refused(&[], "name its base model (--model hub:owner/tiny-llama-gqa)");
    refused(&["--model", "model", "--labels", "a,b,c"], "it names 3 labels for 2 logits");
    refused(&["--model", "model", "--template", "no place"], "data.template");
    refused(&["--model", "model", "--max-length", "100000"], "tokens");

    let template = "It says: {text}\nSo it is \"good\"?";
    let args = ["--labels", "no: never,yes", "--template", template, "--max-length", "20", "--label", "verdict"];
    let messages = import(&fixture, "llama-prompts", &args);
    assert!(!messages.contains("note:"), "{messages}");
    let run = Run { folder: fixture.path("imported"), stdout: String::new() };
    let manifest = run.manifest();
    assert_eq!(manifest["labels"], json!(["no: never", "yes"]));
    assert_eq!(manifest["data"]["template"], template);
    assert_eq!(manifest["data"]["max_length"], 20);
    assert_eq!(manifest["data"]["label"], "verdict");
}
