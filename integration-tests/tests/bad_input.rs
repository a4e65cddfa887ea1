//! Bad input: one clear error each, and nothing half-written.

use std::fs;

use crate::program::{Bench, static_swarm};

/// The run fails, and says all of this.
fn check(bench: &Bench, sets: &[&str], expected: &[&str]) {
    let text = bench.failure(sets);
    for part in expected {
        assert!(text.contains(part), "{sets:?}: expected `{part}` in\n{text}");
    }
    assert!(!bench.path("runs").exists(), "{sets:?}: no run folder is made");
}

#[test]
fn pipeline_files() {
    let bench = Bench::new("llama-gqa");
    check(&bench, &["train.epohcs=3"], &["train.epohcs", "did you mean `epochs`"]);
    check(&bench, &["loader.batch_size=many"], &["loader.batch_size", "many"]);
    check(&bench, &["task.use=sequence-clasification"], &["task", "did you mean `sequence-classification`"]);
    check(&bench, &["tuning.with.pre_seq_len=0"], &["tuning.with.pre_seq_len"]);
    check(&bench, &["train.epohcs=3", "loader.batch_size=many"], &["epohcs", "batch_size"]);
    let text = fs::read_to_string(bench.path("pipeline.yaml")).expect("read").replace("epochs: 5", "epohcs: 5");
    fs::write(bench.path("pipeline.yaml"), text).expect("written");
    check(&bench, &[], &["pipeline.yaml:10", "train.epohcs"]);
    let output = bench.sepal(&["validate", "--set", "train.seed=1", "pipeline.yaml"]).output().expect("sepal runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("'pipeline.yaml'") && said.contains("names of files go before --set"), "{said}");
    fs::remove_file(bench.path("pipeline.yaml")).expect("removed");
    check(&bench, &[], &["pipeline.yaml"]);
}

#[test]
fn data_files() {
    let bench = Bench::new("llama-gqa");
    check(&bench, &["data.text=sentense"], &["sentense", "train.csv", "sentence"]);
    check(&bench, &["data.train=nowhere.csv"], &["nowhere.csv", "no such file"]);
    // What is wrong with the rows is told before a model is fetched.
    check(&bench, &["data.label=lable", "model.source=nowhere"], &["lable", "train.csv"]);
    let write = |text: &str| fs::write(bench.path("bad.csv"), text).expect("written");
    let bad = "data.train=bad.csv";
    write("sentence,label\nthe film,0\n\"\",1\n");
    check(&bench, &[bad], &["bad.csv", "row 2", "empty"]);
    // Blanks are a text, but not one of words.
    write("sentence,label\nthe film,0\n\"  \",1\n");
    check(&bench, &[bad], &["bad.csv", "row 2", "no token"]);
    write("sentence,label\nthe film,0\na plot,2\n");
    check(&bench, &[bad], &["bad.csv", "row 2", "2"]);
    write("sentence,label\nthe film,0\na plot,nice\n");
    check(&bench, &[bad], &["bad.csv", "row 2", "nice", "good"]);
    write("sentence,label\nthe film,1\na plot,1\n");
    check(&bench, &[bad], &["class"]);
    write("sentence,label\n");
    check(&bench, &[bad], &["bad.csv", "row"]);
}

#[test]
fn model_files() {
    let bench = Bench::new("llama-gqa");
    check(&bench, &["model.source=nowhere"], &["nowhere", "no such file"]);
    let weights = bench.path("model/model.safetensors");
    let bytes = fs::read(&weights).expect("weights");
    fs::write(&weights, &bytes[..bytes.len() / 2]).expect("cut");
    check(&bench, &[], &["model.safetensors", "truncated"]);
    fs::write(bench.path("cut.gguf"), b"GGUF\x03\0\0\0\x02\0\0\0").expect("written");
    check(&bench, &["model.source=cut.gguf"], &["cut.gguf"]);
}

#[test]
fn tokenizer_with_more_ids_than_embeddings_is_refused() {
    let bench = Bench::new("llama-gqa");
    let token =
        |id: usize| (id.to_string(), serde_json::json!({ "content": format!("<extra-{id}>"), "special": true }));
    let tokens: serde_json::Map<_, _> = (100..200).map(token).collect();
    let config = serde_json::json!({ "added_tokens_decoder": tokens });
    fs::write(bench.path("model/tokenizer_config.json"), config.to_string()).expect("written");
    check(&bench, &[], &["ids, up to `<extra-199>`", "embeddings"]);
}

#[test]
fn template_that_leaves_no_token_to_the_text_is_refused() {
    let bench = Bench::new("llama-gqa");
    let template = "data.template='the film was {text} and the plot is'";
    check(&bench, &[template, "data.max_length=7"], &["train.csv", "7 tokens", "take 8", "raise the limit"]);
}

#[test]
fn servers() {
    let bench = Bench::new("llama-gqa");
    let all = bench.serve("0:2", "127.0.0.1:0");
    let [kind, addresses] = static_swarm(&[&all]);
    check(&bench, &[&kind, &addresses], &["no server holds blocks 2:3", "sepal serve"]);
    check(
        &bench,
        &["swarm.use=static", "swarm.with.servers=[\"127.0.0.1:1\"]"],
        &["127.0.0.1:1", "could not be reached"],
    );
    check(&bench, &["swarm.use=static", "swarm.with.servers=[nonsense]"], &["swarm.with.servers", "nonsense"]);

    let other = Bench::new("llama-gqa");
    let weights = other.path("model/model.safetensors");
    let mut bytes = fs::read(&weights).expect("weights");
    let last = bytes.len() - 2;
    bytes[last] ^= 0x40;
    fs::write(&weights, bytes).expect("changed");
    let server = other.serve("0:3", "127.0.0.1:0");
    let [kind, addresses] = static_swarm(&[&server]);
    check(&bench, &[&kind, &addresses], &["another model", "digest"]);
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_says_where() {
    let bench = Bench::new("llama-gqa");
    let text = bench.failure(&["optimizer.with.lr=1.0e+38", "schedule.with.warmup_steps=0", "train.clip_norm=null"]);
    assert!(text.contains("step"), "{text}");
    assert!(text.contains("not finite"), "{text}");
    let run = bench.only_run();
    assert_eq!(run.manifest()["status"]["state"], "failed");
}

#[test]
fn a_folder_that_cannot_be_written() {
    let bench = Bench::new("llama-gqa");
    fs::write(bench.path("taken"), b"").expect("a file");
    let text = bench.failure(&["output.folder=taken/runs"]);
    assert!(text.contains("taken/runs"), "{text}");
}

/// A limit on the size of files stands in for a full disk: the write that passes it fails.
#[test]
fn a_full_disk() {
    let bench = Bench::new("llama-gqa");
    let sepal = bench.sepal(&["run", "pipeline.yaml", "--set", "train.max_steps=100000"]);
    let mut command = std::process::Command::new("bash");
    command
        .args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\""])
        .arg(sepal.get_program())
        .args(sepal.get_args());
    command.current_dir(bench.folder.path()).env("SEPAL_CACHE", bench.path("cache"));
    let output = command.output().expect("bash runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("metrics.jsonl") && text.contains("too large"), "{text}");
    let run = bench.only_run();
    assert_eq!(run.manifest()["status"]["state"], "failed");
    assert!(run.adapter().len() > 2000, "what was trained is saved");
}
