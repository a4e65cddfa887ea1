//! Real server processes: chains, sockets, kills, interrupts.

use std::process::Stdio;
use std::time::{Duration, Instant};

use sepal_integration_tests::fixture::{Fixture, assert_close, json, signal, static_swarm, stdout};
use serde_json::Value;

#[test]
fn three_servers_match_the_embedded_losses() {
    let fixture = Fixture::new("llama-gqa");
    let embedded = fixture.run(&["train.max_steps=10"]);
    let socket = format!("unix:{}", fixture.path("blocks.sock").display());
    let servers =
        [fixture.serve("0:1", "127.0.0.1:0"), fixture.serve("1:2", &socket), fixture.serve("2:3", "127.0.0.1:0")];
    let [kind, addresses] = static_swarm(&servers.each_ref());
    let remote = fixture.run(&["train.max_steps=10", &kind, &addresses]);
    assert_close(&remote.losses(), &embedded.losses());
    assert!((remote.accuracy() - embedded.accuracy()).abs() < 0.03);
}

#[test]
fn killed_server_leaves_training_unchanged() {
    let fixture = Fixture::new("llama-gqa");
    let embedded = fixture.run(&["train.max_steps=150", "evaluate.every=end"]);
    let mut servers =
        [fixture.serve("0:3", "127.0.0.1:0"), fixture.serve("0:2", "127.0.0.1:0"), fixture.serve("1:3", "127.0.0.1:0")];
    let [kind, addresses] = static_swarm(&servers.each_ref());
    let mut run = fixture.sepal(&["run", "pipeline.yaml", "--set", "train.max_steps=150", "evaluate.every=end"]);
    let run = run.args(["--set", &kind, &addresses, "output.folder=killed"]);
    let mut child = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sepal runs");
    let metrics = wait_for_metrics(&fixture.path("killed"), 10);
    servers[0].child.kill().expect("killed");
    assert!(child.wait().expect("it ends").success(), "training goes on without the server");
    let text = std::fs::read_to_string(metrics).expect("metrics");
    let loss = |line: Value| line["lr"].as_f64().and(line["loss"].as_f64());
    let losses: Vec<f64> = text.lines().map(json).filter_map(loss).collect();
    assert_close(&losses, &embedded.losses());
}

/// Waits until the metrics file below `folder` has this number of lines.
pub(crate) fn wait_for_metrics(folder: &std::path::Path, lines: usize) -> std::path::PathBuf {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(60) {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.expect("an entry").path().join("metrics.jsonl");
            if std::fs::read_to_string(&path).is_ok_and(|text| text.lines().count() >= lines) {
                return path;
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("no {lines} lines of metrics below {}", folder.display());
}

#[test]
fn losing_the_last_server_saves_the_adapter() {
    let fixture = Fixture::new("llama-gqa");
    let mut server = fixture.serve("0:3", "127.0.0.1:0");
    let [kind, addresses] = static_swarm(&[&server]);
    let mut run = fixture.sepal(&["run", "pipeline.yaml", "--set", "train.max_steps=100000", &kind, &addresses]);
    let run = run.args(["--set", "swarm.with.wait_ms=1000"]);
    let child = run.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("sepal runs");
    wait_for_metrics(&fixture.path("runs"), 5);
    server.child.kill().expect("killed");
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("no server answered for blocks 0:3"), "{text}");
    let run = fixture.only_run();
    assert_eq!(run.manifest()["status"]["state"], "failed");
    assert!(run.manifest()["steps"].as_u64().expect("steps") >= 5);
    assert!(run.adapter().len() > 2000);
}

#[test]
fn interrupt_stops_cleanly_and_saves() {
    let fixture = Fixture::new("llama-gqa");
    let mut run = fixture.sepal(&["run", "pipeline.yaml", "--set", "train.max_steps=100000"]);
    let child = run.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("sepal runs");
    wait_for_metrics(&fixture.path("runs"), 5);
    signal(&child, "INT");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success());
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(stdout.contains("go on with: sepal run --resume"), "{stdout}");
    let run = fixture.only_run();
    assert_eq!(run.manifest()["status"]["state"], "interrupted");
    assert_eq!(run.records("step").len() as u64, run.manifest()["steps"].as_u64().expect("steps"));
    assert!(run.adapter().len() > 2000);
}

#[test]
fn server_on_sigterm_shuts_down_cleanly() {
    let fixture = Fixture::new("bloom");
    let socket = fixture.path("blocks.sock");
    let mut server = fixture.serve("0:2", &format!("unix:{}", socket.display()));
    assert!(socket.exists());
    signal(&server.child, "TERM");
    assert!(server.child.wait().expect("it ends").success());
    assert!(!socket.exists(), "the socket's file is removed");
}

#[test]
fn swarm_status_names_servers_and_missing_blocks() {
    let fixture = Fixture::new("llama-gqa");
    let servers = [fixture.serve("0:1", "127.0.0.1:0"), fixture.serve("2:3", "127.0.0.1:0")];
    let addresses = [servers[0].addr.as_str(), servers[1].addr.as_str(), "127.0.0.1:9"];
    let status = |more: &[&str]| stdout(fixture.sepal(&["swarm", "status"]).args(addresses).args(more));
    let table = status(&[]);
    assert!(table.contains("0:1") && table.contains("nobody holds blocks 1:2"), "{table}");
    assert!(table.contains("127.0.0.1:9") && table.contains("could not connect"), "{table}");
    let found = json(&status(&["--json"]));
    assert_eq!(found["models"][0]["servers_per_block"], serde_json::json!([1, 0, 1]));
    assert_eq!(found["models"][0]["holes"], serde_json::json!(["1:2"]));
    assert_eq!(found["servers"][1]["span"], "2:3");
    assert!(found["servers"][2]["error"].is_string());
}
