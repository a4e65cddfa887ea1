use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use super::*;
use crate::examples::{evaluation, manifest, run_info, step};
use crate::python::{Script, python_with};

/// A request that a server got.
#[derive(Debug, Clone)]
struct Request {
    line: String,
    auth: Option<String>,
    body: Vec<u8>,
}

impl Request {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

/// A server on loopback that answers as a function says, and remembers what it was asked.
struct Server {
    uri: String,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(mut answer: impl FnMut(&Request) -> (u16, Value) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let uri = format!("http://{}", listener.local_addr().expect("an address"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let remembered = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let Some(request) = read(&stream) else { continue };
                let (status, body) = answer(&request);
                remembered.lock().expect("nobody panics with it").push(request);
                let body = body.to_string();
                let head =
                    format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
                let _ = stream.write_all(format!("{head}{body}").as_bytes());
            }
        });
        Self { uri, asked }
    }

    fn asked(&self) -> Vec<Request> {
        self.asked.lock().expect("nobody panics with it").clone()
    }

    /// What was asked at these paths.
    fn asked_at(&self, path: &str) -> Vec<Request> {
        self.asked().into_iter().filter(|request| request.line.contains(path)).collect()
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let header = |name: &str| {
        let value =
            |line: &String| Some(line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name))?.1.to_owned());
        lines.iter().find_map(value)
    };
    let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let auth = header("authorization");
    Some(Request { line: lines.first()?.trim_end_matches(" HTTP/1.1").to_owned(), auth, body })
}

/// As MLflow answers, with no experiment yet.
fn mlflow(request: &Request) -> (u16, Value) {
    let info = json!({ "run_id": "r1", "artifact_uri": "mlflow-artifacts:/4/r1/artifacts" });
    match request.line.split(['?', ' ']).nth(1).unwrap_or_default() {
        "/api/2.0/mlflow/experiments/get-by-name" => {
            (404, json!({ "error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none" }))
        }
        "/api/2.0/mlflow/experiments/create" => (200, json!({ "experiment_id": "4" })),
        "/api/2.0/mlflow/runs/create" => (200, json!({ "run": { "info": info } })),
        "/api/2.0/mlflow/runs/update" => (200, json!({ "run_info": info })),
        _ => (200, json!({})),
    }
}

fn tracker(uri: &str, flush_seconds: f64) -> Mlflow {
    let config = MlflowConfig { tracking_uri: Some(uri.to_owned()), flush_seconds, ..MlflowConfig::default() };
    Mlflow::new(config, MlflowAccess::default()).expect("an address")
}

fn keys(entries: &Value) -> Vec<&str> {
    entries.as_array().into_iter().flatten().filter_map(|entry| entry["key"].as_str()).collect()
}

#[test]
fn a_run_is_told_in_few_requests() {
    let (folder, server) = (tempfile::tempdir().expect("a folder"), Server::start(mlflow));
    let mut tracker = tracker(&server.uri, 3600.0);
    let mut run = run_info(folder.path().to_owned());
    run.options.push(("data.where.a%b".to_owned(), "ü".repeat(600)));
    std::fs::write(folder.path().join("adapter.safetensors"), b"numbers").expect("written");
    tracker.start(&run).expect("begun");
    (1..=20).for_each(|i| tracker.step(&step(i)).expect("kept"));
    tracker.evaluation(&evaluation(20)).expect("sent");
    tracker.finish(&manifest()).expect("ended");

    let lines: Vec<String> = server.asked().into_iter().map(|request| request.line).collect();
    let at = |method: &str, path: &str| format!("{method} /api/2.0/{path}");
    assert_eq!(
        lines,
        [
            at("GET", "mlflow/experiments/get-by-name?experiment_name=demo"),
            at("POST", "mlflow/experiments/create"),
            at("POST", "mlflow/runs/create"),
            at("POST", "mlflow/runs/log-batch"),
            at("POST", "mlflow/runs/log-batch"),
            at("POST", "mlflow/runs/log-batch"),
            at("PUT", "mlflow-artifacts/artifacts/4/r1/artifacts/adapter.safetensors"),
            at("POST", "mlflow/runs/update"),
        ]
    );
    let asked = server.asked();
    assert_eq!((&asked[2].json()["experiment_id"], &asked[2].json()["run_name"]), (&json!("4"), &json!("demo-1")));
    let params = asked[3].json()["params"].clone();
    assert!(keys(&params).contains(&"data.where.a_b") && keys(&params).contains(&"trainable"), "{params}");
    assert!(params.to_string().contains(&"ü".repeat(500)) && !params.to_string().contains(&"ü".repeat(501)));
    let metrics = asked[4].json()["metrics"].clone();
    assert_eq!(keys(&metrics).iter().filter(|&&key| key == "train/loss").count(), 20);
    assert!(keys(&metrics).contains(&"eval/accuracy"));
    assert_eq!(asked[6].body, b"numbers");
    assert_eq!((&asked[7].json()["run_id"], &asked[7].json()["status"]), (&json!("r1"), &json!("FINISHED")));
}

#[test]
fn a_pipeline_file_with_a_secret_stays_here() {
    let stored = |value: &str| {
        let (folder, server) = (tempfile::tempdir().expect("a folder"), Server::start(mlflow));
        let mut tracker = tracker(&server.uri, 3600.0);
        let mut run = run_info(folder.path().to_owned());
        run.options.push(("swarm.with.ticket".to_owned(), value.to_owned()));
        std::fs::write(folder.path().join(PIPELINE), b"name: demo").expect("written");
        tracker.start(&run).expect("begun");
        tracker.finish(&manifest()).expect("ended");
        server.asked().iter().any(|request| request.line.ends_with(PIPELINE))
    };
    assert!(stored("null") && !stored(WITHHELD));
}

#[test]
fn a_run_that_goes_on_is_the_same_there() {
    let (folder, server) = (tempfile::tempdir().expect("a folder"), Server::start(mlflow));
    let mut run = run_info(folder.path().to_owned());
    tracker(&server.uri, 0.0).start(&run).expect("begun");
    run.resumed_at = 2;
    let mut again = tracker(&server.uri, 0.0);
    again.start(&run).expect("gone on");
    again.step(&step(3)).expect("sent");
    let stopped = Manifest { status: Status::Interrupted, ..manifest() };
    again.finish(&stopped).expect("ended");
    assert_eq!(server.asked_at("runs/create").len(), 1);
    let updates: Vec<Value> =
        server.asked_at("runs/update").iter().map(|update| update.json()["status"].clone()).collect();
    assert_eq!(updates, ["RUNNING", "KILLED"]);
}

#[test]
fn a_run_that_the_server_forgot_is_begun_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(|request| match request.line.contains("runs/update") {
        true => (404, json!({ "error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run" })),
        false => mlflow(request),
    });
    let run = run_info(folder.path().to_owned());
    tracker(&server.uri, 0.0).start(&run).expect("begun");
    tracker(&server.uri, 0.0).start(&run).expect("begun again");
    assert_eq!(server.asked_at("runs/create").len(), 2);
}

#[test]
fn what_cannot_be_sent_is_kept_and_a_busy_server_asked_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut batches = 0;
    let server = Server::start(move |request| {
        batches += usize::from(request.line.contains("log-batch"));
        // The first batch has the parameters. The second is refused, the third finds the server busy.
        match batches {
            2 if request.line.contains("log-batch") => (400, json!({ "error_code": "BAD", "message": "not now" })),
            3 if request.line.contains("log-batch") => (503, Value::Null),
            _ => mlflow(request),
        }
    });
    let mut tracker = tracker(&server.uri, 0.0);
    tracker.start(&run_info(folder.path().to_owned())).expect("begun");
    let error = tracker.step(&step(1)).expect_err("refused").to_string();
    assert_eq!(error, "MLflow refused runs/log-batch: 400 Bad Request: not now");
    tracker.step(&step(2)).expect("kept: it is not asked again at once");
    tracker.evaluation(&evaluation(2)).expect("sent");
    let batches = server.asked_at("log-batch");
    assert_eq!(batches.len(), 4);
    let sent = batches[3].json()["metrics"].clone();
    assert_eq!(keys(&sent).iter().filter(|&&key| key == "train/loss").count(), 2);
}

#[test]
fn who_asks_is_said_as_by_the_official_client() {
    let auth = |access: MlflowAccess| {
        let (folder, server) = (tempfile::tempdir().expect("a folder"), Server::start(mlflow));
        let access = MlflowAccess { tracking_uri: Some(server.uri.clone()), ..access };
        let mut tracker = Mlflow::new(MlflowConfig::default(), access).expect("an address");
        tracker.start(&run_info(folder.path().to_owned())).expect("begun");
        assert!(!format!("{tracker:?}").contains("secret"));
        server.asked()[0].auth.clone()
    };
    let secret = || Some("secret".to_owned());
    assert_eq!(auth(MlflowAccess::default()), None);
    assert_eq!(auth(MlflowAccess { token: secret(), ..<_>::default() }), Some("Bearer secret".to_owned()));
    let named = MlflowAccess { username: Some("me".to_owned()), password: secret(), token: secret(), ..<_>::default() };
    assert_eq!(auth(named), Some("Basic bWU6c2VjcmV0".to_owned()));
}

#[test]
fn no_server_is_said_at_once() {
    assert!(matches!(Mlflow::new(MlflowConfig::default(), MlflowAccess::default()), Err(MlflowError::Nowhere)));
    for uri in ["mlruns", "sqlite:///x.db", "databricks"] {
        let config = MlflowConfig { tracking_uri: Some(uri.to_owned()), ..MlflowConfig::default() };
        assert!(matches!(config.problem(), Some(MlflowError::Address(_))), "{uri}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let folder = tempfile::tempdir().expect("a folder");
    let error = tracker(&format!("http://{nobody}"), 0.0).start(&run_info(folder.path().to_owned()));
    assert_eq!(error.expect_err("nobody answers").to_string(), "reach the MLflow server");
}

/// A process that ends with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Its workers are its children: they are asked to end by the group, which is its own.
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn mlflow_server(python: &Path, folder: &Path) -> (Killed, String) {
    use std::os::unix::process::CommandExt;
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let mut command = Command::new(python);
    command.args(["-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1", "--port", &port.to_string()]);
    command.arg("--backend-store-uri").arg(format!("sqlite:///{}", folder.join("mlflow.db").display()));
    command.arg("--artifacts-destination").arg(folder.join("artifacts"));
    let output = std::fs::File::create(folder.join("output")).expect("a file");
    command.stdout(output.try_clone().expect("a file")).stderr(output).stdin(Stdio::null());
    let server = Killed(command.current_dir(folder).process_group(0).spawn().expect("it starts"));
    for _ in 0..900 {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return (server, format!("http://127.0.0.1:{port}"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("no server: {}", std::fs::read_to_string(folder.join("output")).unwrap_or_default());
}

#[test]
fn a_real_server_shows_a_run() {
    let Some(python) = python_with("mlflow") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (_server, uri) = mlflow_server(&python, folder.path());
    let mut run = run_info(folder.path().join("run"));
    std::fs::create_dir(&run.folder).expect("made");
    run.options.push(("data.template".to_owned(), "x: {text}".repeat(100)));
    let mut first = tracker(&uri, 0.0);
    first.start(&run).expect("begun");
    (1..=2).for_each(|i| first.step(&step(i)).expect("sent"));
    run.resumed_at = 2;
    std::fs::write(run.folder.join("manifest.json"), b"{}").expect("written");
    let mut second = tracker(&uri, 0.0);
    second.start(&run).expect("gone on");
    second.step(&step(3)).expect("sent");
    second.evaluation(&evaluation(3)).expect("sent");
    second.finish(&manifest()).expect("ended");

    let read = Script { python: &python, code: include_str!("read.py") }.json(&[&uri, &"demo"]);
    assert_eq!((&read["status"], &read["name"], &read["runs"]), (&json!("FINISHED"), &json!("demo-1"), &json!(1)));
    assert_eq!(read["history"], json!([[1, 1.0], [2, 0.5], [3, 1.0 / 3.0]]));
    assert_eq!(read["metrics"]["eval/accuracy"], 0.75);
    let params: BTreeMap<String, String> = serde_json::from_value(read["params"].clone()).expect("text");
    assert_eq!((&*params["train.seed"], &*params["trainable"], params["data.template"].len()), ("7", "1234", 500));
    assert_eq!(read["artifacts"], json!({ "manifest.json": "{}" }));
    assert_eq!(read["tags"]["sepal.adapter_digest"], "abc");
}
