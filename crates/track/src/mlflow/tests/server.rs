//! Loopback server that answers like MLflow.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) line: String,
    pub(super) auth: Option<String>,
    pub(super) body: Vec<u8>,
}

impl Request {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

pub(super) struct Server {
    pub(super) uri: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(super) fn start(answer: impl FnMut(&Request) -> (u16, Value) + Send + 'static) -> Self {
        Self::start_at("127.0.0.1:0", answer)
    }

    pub(super) fn start_at(addr: &str, mut answer: impl FnMut(&Request) -> (u16, Value) + Send + 'static) -> Self {
        let listener = TcpListener::bind(addr).expect("a port");
        let uri = format!("http://{}", listener.local_addr().expect("an address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let Some(request) = read(&stream) else { continue };
                let (status, body) = answer(&request);
                log.lock().expect("not poisoned").push(request);
                let body = body.to_string();
                let head =
                    format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
                let _ = stream.write_all(format!("{head}{body}").as_bytes());
            }
        });
        Self { uri, requests }
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("not poisoned").clone()
    }

    /// Entries of this kind in accepted batches, in order. `is_accepted` selects the batches.
    pub(super) fn accepted(&self, kind: &str, is_accepted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let batches = self.requests_at("log-batch").into_iter().map(|request| request.json()).filter(is_accepted);
        batches.flat_map(|batch| batch[kind].as_array().cloned().unwrap_or_default()).collect()
    }

    pub(super) fn requests_at(&self, path: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.line.contains(path)).collect()
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

/// Answers of MLflow without an experiment.
pub(super) fn mlflow(request: &Request) -> (u16, Value) {
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
