mod real;
mod refused;
mod server;

use std::net::TcpListener;

use serde_json::{Value, json};

use super::*;
use crate::examples::{evaluation, manifest, run_info, step};
use server::{Server, mlflow};

fn tracker(uri: &str, flush_seconds: f64) -> Mlflow {
    let config = MlflowConfig { tracking_uri: Some(uri.to_owned()), flush_seconds, ..MlflowConfig::default() };
    Mlflow::new(config, MlflowAccess::default()).expect("an address")
}

fn keys(entries: &Value) -> Vec<&str> {
    entries.as_array().into_iter().flatten().filter_map(|entry| entry["key"].as_str()).collect()
}

#[test]
fn run_is_sent_in_few_requests() {
    let (folder, server) = (tempfile::tempdir().expect("a folder"), Server::start(mlflow));
    let mut tracker = tracker(&server.uri, 3600.0);
    let mut run = run_info(folder.path().to_owned());
    run.options.push(("data.where.a%b".to_owned(), "ü".repeat(600)));
    std::fs::write(folder.path().join("adapter.safetensors"), b"numbers").expect("written");
    tracker.start(&run).expect("begun");
    (1..=20).for_each(|i| tracker.step(&step(i)).expect("kept"));
    tracker.evaluation(&evaluation(20)).expect("sent");
    tracker.finish(&manifest()).expect("ended");

    let lines: Vec<String> = server.requests().into_iter().map(|request| request.line).collect();
    let request_line = |method: &str, path: &str| format!("{method} /api/2.0/{path}");
    assert_eq!(
        lines,
        [
            request_line("GET", "mlflow/experiments/get-by-name?experiment_name=demo"),
            request_line("POST", "mlflow/experiments/create"),
            request_line("POST", "mlflow/runs/create"),
            request_line("POST", "mlflow/runs/log-batch"),
            request_line("POST", "mlflow/runs/log-batch"),
            request_line("POST", "mlflow/runs/log-batch"),
            request_line("PUT", "mlflow-artifacts/artifacts/4/r1/artifacts/adapter.safetensors"),
            request_line("POST", "mlflow/runs/update"),
        ]
    );
    let requests = server.requests();
    let created = requests[2].json();
    assert_eq!((&created["experiment_id"], &created["run_name"]), (&json!("4"), &json!("demo-1")));
    let params = requests[3].json()["params"].clone();
    assert!(keys(&params).contains(&"data.where.a_x25_b") && keys(&params).contains(&"trainable"), "{params}");
    assert!(params.to_string().contains(&"ü".repeat(600)));
    let metrics = requests[4].json()["metrics"].clone();
    assert_eq!(keys(&metrics).iter().filter(|&&key| key == "train/loss").count(), 20);
    assert!(keys(&metrics).contains(&"eval/accuracy"));
    assert_eq!(requests[6].body, b"numbers");
    assert_eq!((&requests[7].json()["run_id"], &requests[7].json()["status"]), (&json!("r1"), &json!("FINISHED")));
}

#[test]
fn pipeline_file_with_secret_is_not_stored() {
    let stored = |value: &str| {
        let (folder, server) = (tempfile::tempdir().expect("a folder"), Server::start(mlflow));
        let mut tracker = tracker(&server.uri, 3600.0);
        let mut run = run_info(folder.path().to_owned());
        run.options.push(("swarm.with.ticket".to_owned(), value.to_owned()));
        std::fs::write(folder.path().join(PIPELINE), b"name: demo").expect("written");
        tracker.start(&run).expect("begun");
        tracker.finish(&manifest()).expect("ended");
        server.requests().iter().any(|request| request.line.ends_with(PIPELINE))
    };
    assert!(stored("null") && !stored(REDACTED));
}

#[test]
fn resumed_run_keeps_run_id() {
    let (folder, server) = (tempfile::tempdir().expect("a folder"), Server::start(mlflow));
    let mut run = run_info(folder.path().to_owned());
    tracker(&server.uri, 0.0).start(&run).expect("begun");
    run.resumed_at = 2;
    let mut resumed = tracker(&server.uri, 0.0);
    resumed.start(&run).expect("gone on");
    resumed.step(&step(3)).expect("sent");
    let stopped = Manifest { status: Status::Interrupted, ..manifest() };
    resumed.finish(&stopped).expect("ended");
    assert_eq!(server.requests_at("runs/create").len(), 1);
    let updates: Vec<Value> =
        server.requests_at("runs/update").iter().map(|update| update.json()["status"].clone()).collect();
    assert_eq!(updates, ["RUNNING", "KILLED"]);
}

#[test]
fn unknown_run_is_created_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(|request| match request.line.contains("runs/update") {
        true => (404, json!({ "error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run" })),
        false => mlflow(request),
    });
    let run = run_info(folder.path().to_owned());
    tracker(&server.uri, 0.0).start(&run).expect("begun");
    tracker(&server.uri, 0.0).start(&run).expect("begun again");
    assert_eq!(server.requests_at("runs/create").len(), 2);
}

#[test]
fn unsent_numbers_are_kept_and_busy_server_is_retried() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut batches = 0;
    let server = Server::start(move |request| {
        batches += usize::from(request.line.contains("log-batch"));
        // The first batch has the parameters, the second is refused, and the third finds the server busy.
        match batches {
            2 if request.line.contains("log-batch") => (403, json!({ "error_code": "BAD", "message": "not now" })),
            3 if request.line.contains("log-batch") => (503, Value::Null),
            _ => mlflow(request),
        }
    });
    let mut tracker = tracker(&server.uri, 0.0);
    tracker.start(&run_info(folder.path().to_owned())).expect("begun");
    let error = tracker.step(&step(1)).expect_err("refused").to_string();
    assert_eq!(error, "MLflow refused runs/log-batch: 403 Forbidden: not now");
    tracker.step(&step(2)).expect("kept: it is not asked again at once");
    tracker.evaluation(&evaluation(2)).expect("sent");
    let batches = server.requests_at("log-batch");
    assert_eq!(batches.len(), 4);
    let sent = batches[3].json()["metrics"].clone();
    assert_eq!(keys(&sent).iter().filter(|&&key| key == "train/loss").count(), 2);
}

#[test]
fn credentials_equal_official_client() {
    let auth = |access: MlflowAccess| {
        let (folder, server) = (tempfile::tempdir().expect("a folder"), Server::start(mlflow));
        let access = MlflowAccess { tracking_uri: Some(server.uri.clone()), ..access };
        let mut tracker = Mlflow::new(MlflowConfig::default(), access).expect("an address");
        tracker.start(&run_info(folder.path().to_owned())).expect("begun");
        assert!(!format!("{tracker:?}").contains("secret"));
        server.requests()[0].auth.clone()
    };
    let secret = || Some("secret".to_owned());
    assert_eq!(auth(MlflowAccess::default()), None);
    assert_eq!(auth(MlflowAccess { token: secret(), ..<_>::default() }), Some("Bearer secret".to_owned()));
    let named = MlflowAccess { username: Some("me".to_owned()), password: secret(), token: secret(), ..<_>::default() };
    assert_eq!(auth(named), Some("Basic bWU6c2VjcmV0".to_owned()));
}

#[test]
fn missing_server_is_reported_at_start() {
    assert!(matches!(Mlflow::new(MlflowConfig::default(), MlflowAccess::default()), Err(MlflowError::NoServer)));
    for uri in ["mlruns", "sqlite:///x.db", "databricks"] {
        let config = MlflowConfig { tracking_uri: Some(uri.to_owned()), ..MlflowConfig::default() };
        assert!(matches!(config.problem(), Some(MlflowError::Address(_))), "{uri}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let folder = tempfile::tempdir().expect("a folder");
    let error = tracker(&format!("http://{nobody}"), 0.0).start(&run_info(folder.path().to_owned()));
    assert_eq!(error.expect_err("nobody answers").to_string(), "reach the MLflow server");
}
