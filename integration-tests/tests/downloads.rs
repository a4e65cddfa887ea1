//! Models from a hub on loopback, partially fetched by the real program.

use std::fs;
use std::path::Path;
use std::process::Command;

use sepal_integration_tests::fixture::{Fixture, Server, assert_close, failure_messages, stdout, success_messages};
use sepal_testkit::hub::{COMMIT, Fault, LoopbackHub};
use sepal_testkit::tiny;

const COMMON: [&str; 3] = ["config.json", "model.safetensors.index.json", "tokenizer.json"];

/// Publishes a tiny sharded model on a hub. Returns the names of the shards, that of the ends first.
fn sharded() -> (Fixture, LoopbackHub, Vec<String>) {
    let fixture = Fixture::new("llama-gqa");
    let shards = tiny::shard(&fixture.path("model"));
    let hub = LoopbackHub::from_folder(&fixture.path("model"));
    (fixture, hub, shards)
}

/// Returns a `sepal` command with its own cache.
fn sepal_with_cache(fixture: &Fixture, hub: &LoopbackHub, cache: &str, args: &[&str]) -> Command {
    let mut command = fixture.sepal(args);
    command.env("HF_ENDPOINT", hub.endpoint()).env("HF_HUB_OFFLINE", "0");
    command.env("SEPAL_CACHE", fixture.path(&format!("{cache}/sepal")));
    command.env("HF_HUB_CACHE", fixture.path(&format!("{cache}/hub")));
    command
}

fn serve(fixture: &Fixture, hub: &LoopbackHub, cache: &str, model: &str, blocks: &str) -> Server {
    let args = ["serve", model, "--blocks", blocks, "--listen", "127.0.0.1:0", "--threads", "1"];
    Server::start(&mut sepal_with_cache(fixture, hub, cache, &args))
}

fn with_common_files(shards: &[String]) -> Vec<String> {
    let mut files: Vec<String> = COMMON.iter().map(|file| (*file).to_owned()).chain(shards.iter().cloned()).collect();
    files.sort();
    files
}

fn shards_in(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    entries.filter(|name| name.to_string_lossy().ends_with(".safetensors")).count()
}

#[test]
fn sharded_download_fetches_only_the_needed_shards() {
    let (fixture, hub, shards) = sharded();
    let embedded = fixture.run(&["train.max_steps=6"]);

    let first = serve(&fixture, &hub, "first", "hub:a/b@main", "0:1");
    assert_eq!(hub.downloads(), with_common_files(&shards[1..2]), "a server fetches the shards of its blocks");
    assert!(first.model.starts_with(&format!("hub:a/b@{COMMIT} ")), "the commit is named: {}", first.model);
    let second = serve(&fixture, &hub, "second", "hub:a/b", "1:3");
    assert_eq!(hub.downloads(), with_common_files(&shards[2..]));
    // A replica with a complete copy of the same files serves the same model.
    let replica = serve(&fixture, &hub, "replica", "model", "1:3");
    assert_eq!(hub.requests(), []);

    let servers = [&first, &second, &replica].map(|server| format!("\"{}\"", server.addr)).join(", ");
    let servers = format!("swarm.with.servers=[{servers}]");
    let sets = ["train.max_steps=6", "model.source=hub:a/b", "swarm.use=static", servers.as_str()];
    let mut run = sepal_with_cache(&fixture, &hub, "client", &["run", "pipeline.yaml"]);
    let messages = success_messages(run.arg("--set").args(sets).arg("output.folder=remote"));
    assert_eq!(hub.downloads(), with_common_files(&shards[..1]), "a client fetches the ends");
    assert!(messages.contains(&format!("fetched a/b/{}", shards[0])), "a line for each file: {messages}");

    let remote = fixture.run_in("remote");
    assert_close(&remote.losses(), &embedded.losses());
    assert_eq!(remote.manifest()["model"]["source"], format!("hub:a/b@{COMMIT}"));
    assert_eq!(remote.manifest()["model"]["digest"], embedded.manifest()["model"]["digest"]);
    assert_eq!(remote.manifest()["parameters"], embedded.manifest()["parameters"]);
}

#[test]
fn fetch_for_an_embedded_run_downloads_every_shard_once() {
    let (fixture, hub, shards) = sharded();
    let args = ["fetch", "pipeline.yaml", "--set", "model.source=hub:a/b"];
    let fetch = || success_messages(sepal_with_cache(&fixture, &hub, "own", &args));
    // The download breaks in the second shard and is refused in the third; the next requests resume.
    hub.fail(&shards[1], [Fault::Cut(1000)]);
    hub.fail(&shards[2], [Fault::Refuse(503)]);
    let messages = fetch();
    assert!(messages.contains("retrying in"), "{messages}");
    let resumed: Vec<_> = hub.requests().into_iter().filter(|request| request.file == shards[1]).collect();
    assert_eq!(resumed.last().expect("a request").range.as_deref(), Some("bytes=1000-"));
    assert_eq!(shards_in(&fixture.path("own/hub/models--a--b/snapshots").join(COMMIT)), shards.len());
    fetch();
    assert_eq!(hub.requests(), [], "what is here is not asked for again");
}

#[test]
fn partial_folder_with_an_outline_is_served() {
    let (fixture, hub, shards) = sharded();
    stdout(fixture.sepal(&["outline", "model"]));
    fs::create_dir(fixture.path("part")).expect("a folder");
    for file in ["config.json", "model.safetensors.index.json", &shards[3]] {
        fs::copy(fixture.path("model").join(file), fixture.path("part").join(file)).expect("copied");
    }
    let messages = failure_messages(fixture.sepal(&["serve", "part", "--blocks", "2:3"]));
    assert!(messages.contains(&shards[0]) && messages.contains("sepal outline"), "{messages}");

    let name = ".sepal-outline.json";
    fs::copy(fixture.path("model").join(name), fixture.path("part").join(name)).expect("copied");
    let server = serve(&fixture, &hub, "own", "part", "2:3");
    assert!(server.blocks == "2:3" && server.model.starts_with("part"), "{}", server.model);
    let messages = failure_messages(fixture.sepal(&["serve", "part", "--blocks", "1:3"]));
    assert!(messages.contains(&shards[2]), "{messages}");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test needs no sync")]
fn pickled_weights_are_refused() {
    let fixture = Fixture::new("llama-gqa");
    fs::rename(fixture.path("model/model.safetensors"), fixture.path("model/pytorch_model.bin")).expect("renamed");
    let hub = LoopbackHub::from_folder(&fixture.path("model"));
    for model in ["model", "hub:a/b"] {
        let messages = failure_messages(sepal_with_cache(&fixture, &hub, "own", &["serve", model]));
        assert!(messages.contains("pytorch_model.bin") && messages.contains("save_pretrained"), "{messages}");
    }
}

#[test]
fn unsupported_model_is_refused_before_weights_are_fetched() {
    let fixture = Fixture::new("llama-gqa");
    let path = fixture.path("model/config.json");
    let config: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("readable")).expect("JSON");
    for (key, value, needle) in [
        ("quantization_config", serde_json::json!({"quant_method": "aqlm"}), "`quantization_config` is aqlm"),
        ("model_type", serde_json::json!("mamba"), "`model_type` is \"mamba\""),
    ] {
        let mut changed = config.clone();
        changed[key] = value;
        fs::write(&path, changed.to_string()).expect("written");
        let hub = LoopbackHub::from_folder(&fixture.path("model"));
        let messages = failure_messages(sepal_with_cache(&fixture, &hub, key, &["serve", "hub:a/b"]));
        assert!(messages.contains(needle) && messages.contains("a/b"), "{messages}");
        let downloads = hub.downloads();
        assert!(downloads.contains(&"config.json".to_owned()), "{downloads:?}");
        assert!(downloads.iter().all(|file| !file.ends_with(".safetensors")), "{downloads:?}");
    }
}
