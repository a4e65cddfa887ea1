//! Servers for operators: options from a file, names, logs as JSON; noise on hidden states and audits of runs.

use std::fs;
use std::process::Stdio;

use sepal_integration_tests::fixture::{Fixture, Server, failure_messages, json, signal, stdout};

#[test]
fn server_with_options_file_has_a_name_and_logs_json() {
    let fixture = Fixture::new("llama-gqa");
    let model = fixture.path("model").display().to_string();
    let options = format!("model: {model}\nblocks: 0:1\nlisten: 127.0.0.1:0\nname: rack-2\ndrain_s: 1\n");
    fs::write(fixture.path("serve.yaml"), options).expect("written");
    let mut command = fixture.sepal(&["serve", "--config", "serve.yaml", "--blocks", "1:3", "--log-format", "json"]);
    let mut server = Server::start_with_messages(command.stderr(Stdio::piped()));
    assert_eq!(server.blocks, "1:3");
    let addr = server.addr.clone();
    let table = stdout(fixture.sepal(&["swarm", "status", &addr]));
    assert!(table.contains(&format!("rack-2 ({addr})")), "{table}");
    let found = json(&stdout(fixture.sepal(&["swarm", "status", "--json", &addr])));
    assert_eq!(found["servers"][0]["name"], "rack-2");
    signal(&server.child, "TERM");
    let mut stderr = server.child.stderr.take().expect("a pipe");
    let lines = std::io::read_to_string(&mut stderr).expect("text");
    let leaving = lines.lines().map(json).find(|line| line["message"].to_string().contains("leaving"));
    let leaving = leaving.unwrap_or_else(|| panic!("{lines}"));
    assert_eq!(leaving["level"], "INFO");
    assert!(leaving["timestamp"].is_string(), "{leaving}");

    fs::write(fixture.path("serve.yaml"), "model: x\nmax_row: 3\n").expect("written");
    let refused = fixture.sepal(&["serve", "--config", "serve.yaml"]).output().expect("sepal runs");
    let messages = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{messages}");
    assert!(messages.contains("serve.yaml: there is no option `max_row`; did you mean `max_rows`?"), "{messages}");
}

#[test]
fn audit_recovers_embeddings_and_noise_hides_them() {
    let fixture = Fixture::new("llama-gqa");
    let run = fixture.run(&["train.max_steps=5", "evaluate.every=end"]);
    let folder = run.folder.to_str().expect("a path");
    let args = ["audit", folder, "--local-blocks", "0,2", "--noise", "0,20", "--json"];
    let audit = json(&stdout(fixture.sepal(&args)));
    let results = audit["results"].as_array().expect("results");
    assert_eq!(results.len(), 4);
    let share = |index: usize, key: &str| results[index][key].as_f64().expect("a share");
    assert_eq!((share(0, "nearest_embedding"), &results[1]["noise"]), (1.0, &serde_json::json!(20.0)));
    assert!(share(1, "nearest_embedding") < 0.5, "{audit}");
    let accuracy = run.records("evaluation")[0]["metrics"]["accuracy"].as_f64().expect("an accuracy");
    assert_eq!(audit["metric"], "accuracy");
    assert!((share(0, "metric") - accuracy).abs() < 1e-6 && (share(2, "metric") - accuracy).abs() < 1e-6, "{audit}");
    let usual = json(&stdout(fixture.sepal(&["audit", folder, "--noise", "0", "--rows", "16", "--json"])));
    let blocks = usual["results"].as_array().expect("results").iter().map(|result| result["local_blocks"].as_u64());
    assert!(blocks.eq([Some(0), Some(1), Some(2)]), "the model has three blocks: {usual}");
    let messages = failure_messages(fixture.sepal(&["audit", folder, "--local-blocks", "3"]));
    assert!(messages.contains("the model has 3 blocks, and servers need one"), "{messages}");
}

#[test]
fn noise_reaches_servers_and_is_refused_in_deterministic_runs() {
    let fixture = Fixture::new("llama-gqa");
    let server = fixture.serve("0:3", "127.0.0.1:0");
    let swarm = format!(r#"swarm={{"use":"static","with":{{"servers":["{}"],"noise":0.0}}}}"#, server.addr);
    let plain = fixture.run(&["train.max_steps=3", &swarm]).losses();
    let noisy = fixture.run(&["train.max_steps=3", &swarm, "swarm.with.noise=0.5"]).losses();
    assert!(noisy.iter().all(|loss| loss.is_finite()));
    assert_ne!(plain, noisy);
    let messages = fixture.failure(&["train.max_steps=3", &swarm, "swarm.with.noise=0.5", "train.deterministic=true"]);
    assert!(messages.contains("swarm.with.noise") && messages.contains("train.deterministic"), "{messages}");
}
