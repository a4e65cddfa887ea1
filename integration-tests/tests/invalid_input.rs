//! Invalid input: one clear error each, and no partial files.

use std::fs;

use sepal_integration_tests::fixture::{Fixture, failure_messages, static_swarm};

fn check(fixture: &Fixture, sets: &[&str], expected: &[&str]) {
    let text = fixture.failure(sets);
    for part in expected {
        assert!(text.contains(part), "{sets:?}: expected `{part}` in\n{text}");
    }
    assert!(!fixture.path("runs").exists(), "{sets:?}: no run folder is made");
}

#[test]
fn invalid_pipeline_files_are_refused_with_the_key() {
    let fixture = Fixture::new("llama-gqa");
    check(&fixture, &["train.epohcs=3"], &["train.epohcs", "did you mean `epochs`"]);
    check(&fixture, &["loader.batch_size=many"], &["loader.batch_size", "many"]);
    check(&fixture, &["task.use=sequence-clasification"], &["task", "did you mean `sequence-classification`"]);
    check(&fixture, &["tuning.with.pre_seq_len=0"], &["tuning.with.pre_seq_len"]);
    check(&fixture, &["train.epohcs=3", "loader.batch_size=many"], &["epohcs", "batch_size"]);
    let text = fs::read_to_string(fixture.path("pipeline.yaml")).expect("read").replace("epochs: 5", "epohcs: 5");
    fs::write(fixture.path("pipeline.yaml"), text).expect("written");
    check(&fixture, &[], &["pipeline.yaml:10", "train.epohcs"]);
    let output = fixture.sepal(&["validate", "--set", "train.seed=1", "pipeline.yaml"]).output().expect("sepal runs");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(messages.contains("'pipeline.yaml'") && messages.contains("names of files go before --set"), "{messages}");
    fs::remove_file(fixture.path("pipeline.yaml")).expect("removed");
    check(&fixture, &[], &["pipeline.yaml"]);
}

#[test]
fn invalid_data_files_are_refused_with_the_row() {
    let fixture = Fixture::new("llama-gqa");
    check(&fixture, &["data.text=sentense"], &["sentense", "train.csv", "sentence"]);
    check(&fixture, &["data.train=nowhere.csv"], &["nowhere.csv", "no such file"]);
    // Errors of rows are reported before a model is fetched.
    check(&fixture, &["data.label=lable", "model.source=nowhere"], &["lable", "train.csv"]);
    let write = |text: &str| fs::write(fixture.path("bad.csv"), text).expect("written");
    let bad = "data.train=bad.csv";
    write("sentence,label\nthe film,0\n\"\",1\n");
    check(&fixture, &[bad], &["bad.csv", "row 2", "empty"]);
    // A text of blanks has no token.
    write("sentence,label\nthe film,0\n\"  \",1\n");
    check(&fixture, &[bad], &["bad.csv", "row 2", "no token"]);
    write("sentence,label\nthe film,0\na plot,2\n");
    check(&fixture, &[bad], &["bad.csv", "row 2", "2"]);
    write("sentence,label\nthe film,0\na plot,nice\n");
    check(&fixture, &[bad], &["bad.csv", "row 2", "nice", "good"]);
    write("sentence,label\nthe film,1\na plot,1\n");
    check(&fixture, &[bad], &["class"]);
    write("sentence,label\n");
    check(&fixture, &[bad], &["bad.csv", "row"]);
}

#[test]
fn invalid_model_files_are_refused_with_the_file() {
    let fixture = Fixture::new("llama-gqa");
    check(&fixture, &["model.source=nowhere"], &["nowhere", "no such file"]);
    let weights = fixture.path("model/model.safetensors");
    let bytes = fs::read(&weights).expect("weights");
    fs::write(&weights, &bytes[..bytes.len() / 2]).expect("cut");
    check(&fixture, &[], &["model.safetensors", "truncated"]);
    fs::write(fixture.path("cut.gguf"), b"GGUF\x03\0\0\0\x02\0\0\0").expect("written");
    check(&fixture, &["model.source=cut.gguf"], &["cut.gguf"]);
}

#[test]
fn tokenizer_with_more_ids_than_embeddings_is_refused() {
    let fixture = Fixture::new("llama-gqa");
    let token =
        |id: usize| (id.to_string(), serde_json::json!({ "content": format!("<extra-{id}>"), "special": true }));
    let tokens: serde_json::Map<_, _> = (100..200).map(token).collect();
    let config = serde_json::json!({ "added_tokens_decoder": tokens });
    fs::write(fixture.path("model/tokenizer_config.json"), config.to_string()).expect("written");
    check(&fixture, &[], &["ids, up to `<extra-199>`", "embeddings"]);
}

#[test]
fn template_without_room_for_the_text_is_refused() {
    let fixture = Fixture::new("llama-gqa");
    let template = "data.template='the film was {text} and the plot is'";
    check(&fixture, &[template, "data.max_length=7"], &["train.csv", "7 tokens", "take 8", "raise the limit"]);
}

#[test]
fn unusable_servers_are_refused_with_the_address() {
    let fixture = Fixture::new("llama-gqa");
    let all = fixture.serve("0:2", "127.0.0.1:0");
    let [kind, addresses] = static_swarm(&[&all]);
    check(&fixture, &[&kind, &addresses], &["no server holds blocks 2:3", "sepal serve"]);
    let unreachable = ["swarm.use=static", "swarm.with.servers=[\"127.0.0.1:1\"]"];
    check(&fixture, &unreachable, &["127.0.0.1:1", "could not be reached"]);
    check(&fixture, &["swarm.use=static", "swarm.with.servers=[nonsense]"], &["swarm.with.servers", "nonsense"]);

    let other = Fixture::new("llama-gqa");
    let weights = other.path("model/model.safetensors");
    let mut bytes = fs::read(&weights).expect("weights");
    let last = bytes.len() - 2;
    bytes[last] ^= 0x40;
    fs::write(&weights, bytes).expect("changed");
    let server = other.serve("0:3", "127.0.0.1:0");
    let [kind, addresses] = static_swarm(&[&server]);
    check(&fixture, &[&kind, &addresses], &["another model", "digest"]);
}

#[test]
fn loss_that_is_not_finite_stops_the_run_and_names_the_step() {
    let fixture = Fixture::new("llama-gqa");
    let text = fixture.failure(&["optimizer.with.lr=1.0e+38", "schedule.with.warmup_steps=0", "train.clip_norm=null"]);
    assert!(text.contains("step") && text.contains("non-finite"), "{text}");
    assert_eq!(fixture.only_run().manifest()["status"]["state"], "failed");
}

#[test]
fn output_folder_that_cannot_be_written_is_named() {
    let fixture = Fixture::new("llama-gqa");
    fs::write(fixture.path("taken"), b"").expect("a file");
    let text = fixture.failure(&["output.folder=taken/runs"]);
    assert!(text.contains("taken/runs"), "{text}");
}

/// A limit on the size of files simulates a full disk: the write that exceeds it fails.
#[test]
fn full_disk_fails_the_run_and_saves_the_adapter() {
    let fixture = Fixture::new("llama-gqa");
    let sepal = fixture.sepal(&["run", "pipeline.yaml", "--set", "train.max_steps=100000"]);
    let mut command = std::process::Command::new("bash");
    let script = "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\"";
    command.args(["-c", script]).arg(sepal.get_program()).args(sepal.get_args());
    command.current_dir(fixture.folder.path()).env("SEPAL_CACHE", fixture.path("cache"));
    let text = failure_messages(command);
    assert!(text.contains("metrics.jsonl") && text.contains("too large"), "{text}");
    let run = fixture.only_run();
    assert_eq!(run.manifest()["status"]["state"], "failed");
    assert!(run.adapter().len() > 2000, "what was trained is saved");
}
