//! `sepal serve-task`: HTTP answers equal the predictions of the run.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Float32Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sepal_integration_tests::fixture::{Fixture, Run, failure_messages, http, http_get, signal, static_swarm};
use serde_json::{Value, json};

/// Process of `sepal serve-task`, killed when dropped.
pub(crate) struct Task {
    child: Child,
    pub(crate) addr: String,
    lines: BufReader<ChildStdout>,
}

impl Task {
    /// Starts the process and waits until it listens.
    pub(crate) fn start(fixture: &Fixture, run: &Run, args: &[&str]) -> Self {
        Self::start_all(fixture, &[run.folder.to_str().expect("a path").to_owned()], args)
    }

    /// Starts the process with several runs and waits until it listens.
    pub(crate) fn start_all(fixture: &Fixture, runs: &[String], args: &[&str]) -> Self {
        Self::start_command(fixture.sepal(&["serve-task"]).args(runs).args(args))
    }

    /// Starts the process of a command and waits until it listens.
    pub(crate) fn start_command(command: &mut Command) -> Self {
        command.args(["--listen", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("sepal serves");
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("a line");
        let addr = line.trim().strip_prefix("listening on http://").unwrap_or_else(|| panic!("it does not: {line}"));
        Self { addr: addr.trim_end_matches('/').to_owned(), child, lines }
    }

    /// Waits until `/health` answers with this status.
    pub(crate) fn until(&self, status: &str) {
        let begun = Instant::now();
        loop {
            let (_, health) = self.get("/health");
            if health["status"] == status {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "never {status}: {health}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        let (status, body) = http_get(&self.addr, path);
        (status, json_or_text(body))
    }

    pub(crate) fn ask(&self, body: &Value, headers: &str) -> (u16, Value) {
        self.send("POST", "/classify", headers, &body.to_string())
    }

    pub(crate) fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, Value) {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n{headers}\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let (status, body) = http(&self.addr, &request);
        (status, json_or_text(body))
    }

    /// Stops the process. Returns its standard error.
    pub(crate) fn stop(mut self) -> String {
        signal(&self.child, "TERM");
        assert_eq!(self.child.wait().expect("it ends").code(), Some(0));
        let mut text = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut text).expect("text");
        text
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // The process may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn json_or_text(body: String) -> Value {
    serde_json::from_str(&body).unwrap_or_else(|_| body.into())
}

/// Returns text, predicted label and probabilities of each row of `predictions.parquet`.
fn predictions(run: &Run) -> Vec<(String, String, Vec<f32>)> {
    let file = File::open(run.folder.join("predictions.parquet")).expect("predictions");
    let batches = ParquetRecordBatchReaderBuilder::try_new(file).expect("parquet").build().expect("a reader");
    let mut rows = Vec::new();
    for batch in batches {
        let batch = batch.expect("rows");
        let texts = batch.column_by_name("text").expect("texts").as_string::<i32>().clone();
        let labels = batch.column_by_name("predicted").expect("labels").as_string::<i32>().clone();
        let probabilities = batch.column_by_name("probabilities").expect("probabilities").as_fixed_size_list().clone();
        for row in 0..batch.num_rows() {
            let numbers = probabilities.value(row).as_primitive::<Float32Type>().values().to_vec();
            rows.push((texts.value(row).to_owned(), labels.value(row).to_owned(), numbers));
        }
    }
    rows
}

fn check(predicted: &Value, (text, label, probabilities): &(String, String, Vec<f32>)) {
    assert_eq!(predicted["label"], *label, "{text}");
    for (name, expected) in ["bad", "good"].iter().zip(probabilities) {
        let found = predicted["probabilities"][name].as_f64().expect("a probability");
        assert!((found - f64::from(*expected)).abs() < 1e-5, "{text}: {name} {found}, expected {expected}");
    }
    let top = predicted["probabilities"][label.as_str()].as_f64();
    assert_eq!(predicted["probability"].as_f64(), top);
}

#[test]
fn concurrent_requests_get_the_predictions_of_the_run() {
    let fixture = Fixture::new("llama-gqa");
    let run = fixture.run(&["train.max_steps=20"]);
    let expected = predictions(&run);
    assert_eq!(expected.len(), 48);
    for sets in [vec![], vec!["--set", "swarm.use=none"]] {
        let mut task = Task::start(&fixture, &run, &sets);
        task.until("ready");
        let mut line = String::new();
        task.lines.read_line(&mut line).expect("a line");
        assert_eq!(line.trim(), "serving tiny: bad, good");
        thread::scope(|scope| {
            for rows in [48, 1, 5, 7] {
                let (task, expected) = (&task, &expected);
                scope.spawn(move || {
                    for rows in expected.chunks(rows) {
                        let texts: Vec<&String> = rows.iter().map(|(text, ..)| text).collect();
                        let (status, answer) = task.ask(&json!({ "texts": texts }), "");
                        assert_eq!((status, &answer["model"]), (200, &json!("tiny")), "{answer}");
                        let predictions = answer["predictions"].as_array().expect("predictions");
                        assert_eq!(predictions.len(), rows.len());
                        predictions.iter().zip(rows).for_each(|(predicted, row)| check(predicted, row));
                    }
                });
            }
        });
        let (status, described) = task.get("/openapi.json");
        assert_eq!((status, &described["openapi"]), (200, &json!("3.1.0")));
        let labels = described.pointer("/components/schemas/Prediction/properties/label/enum").expect("labels");
        assert_eq!(*labels, json!(["bad", "good", null]));
        assert!(task.get("/").1.as_str().expect("a page").contains("tiny"));
        assert!(!task.stop().contains("warning"), "nobody else can reach it");
    }
}

#[test]
fn limits_and_token_are_enforced() {
    let fixture = Fixture::new("llama-gqa");
    let run = fixture.run(&["train.max_steps=2"]);
    std::fs::write(fixture.path("token"), "0123456789abcdef\n").expect("written");
    let args = ["--token", "token", "--max-rows", "2", "--max-text-kb", "1", "--max-body-kb", "3"];
    let task = Task::start(&fixture, &run, &args);
    task.until("ready");
    let shown = "Authorization: Bearer 0123456789abcdef\r\n";
    assert_eq!(task.ask(&json!({ "text": "a film" }), "").0, 401);
    assert_eq!(task.ask(&json!({ "text": "a film" }), shown).0, 200);
    assert_eq!(task.ask(&json!({ "texts": ["a", "b", "c"] }), shown).0, 422);
    let (status, problem) = task.ask(&json!({ "texts": ["a", ""] }), shown);
    assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!("#/texts/1")));
    assert_eq!(task.ask(&json!({ "text": "x".repeat(1025) }), shown).0, 422);
    assert_eq!(task.ask(&json!({ "text": "x".repeat(4096) }), shown).0, 413);
    task.stop();
}

#[test]
fn lost_servers_are_noticed_and_returning_servers_are_used() {
    let fixture = Fixture::new("llama-gqa");
    let run = fixture.run(&["train.max_steps=5"]);
    let expected = predictions(&run);
    let server = fixture.serve("0:3", "127.0.0.1:0");
    let addr = server.addr.clone();
    let [kind, addresses] = static_swarm(&[&server]);
    drop(server);
    // The gateway starts before its servers.
    let task = Task::start(&fixture, &run, &["--check-s", "1", "--set", &kind, &addresses, "swarm.with.wait_ms=1000"]);
    task.until("unavailable");
    assert_eq!(task.ask(&json!({ "text": "a film" }), "").0, 503);
    let ask = |row: &(String, String, Vec<f32>)| {
        let (status, answer) = task.ask(&json!({ "text": row.0 }), "");
        assert_eq!(status, 200, "{answer}");
        check(&answer["predictions"][0], row);
    };
    let mut server = fixture.serve("0:3", &addr);
    task.until("ready");
    ask(&expected[0]);
    server.child.kill().expect("killed");
    server.child.wait().expect("it ends");
    let (status, problem) = task.ask(&json!({ "text": "a film" }), "");
    assert_eq!(status, 503, "{problem}");
    assert_eq!(task.get("/health").0, 503);
    let server = fixture.serve("0:3", &addr);
    task.until("ready");
    ask(&expected[1]);
    // The failure is detected without a request.
    drop(server);
    task.until("unavailable");
    let _server = fixture.serve("0:3", &addr);
    task.until("ready");
    ask(&expected[2]);
    let messages = task.stop();
    assert!(messages.contains("no longer ready") && messages.contains("ready again"), "{messages}");
}

#[test]
fn stop_finishes_open_requests() {
    let fixture = Fixture::new("llama-gqa");
    let run = fixture.run(&["train.max_steps=2"]);
    let task = Task::start(&fixture, &run, &["--batch-rows", "1"]);
    task.until("ready");
    let addr = task.addr.clone();
    let texts = vec!["a good film"; 200];
    thread::scope(|scope| {
        let request = scope.spawn(|| task.ask(&json!({ "texts": texts }), ""));
        // Waits until the request is computed.
        let waits = |line: &&str| line.starts_with("sepal_task_waiting_rows{") && !line.ends_with(" 0");
        let begun = Instant::now();
        while !request.is_finished() && begun.elapsed() < Duration::from_secs(30) {
            let (_, counts) = task.get("/metrics");
            if counts.as_str().expect("text").lines().any(|line| waits(&line)) {
                break;
            }
        }
        assert!(!request.is_finished(), "there was no time to stop it");
        signal(&task.child, "INT");
        let (status, answer) = request.join().expect("no panic");
        assert_eq!((status, answer["predictions"].as_array().map(Vec::len)), (200, Some(200)), "{answer}");
    });
    let mut task = task;
    assert_eq!(task.child.wait().expect("it ends").code(), Some(0));
    assert!(TcpStream::connect(addr).is_err(), "the port is closed");
}

#[test]
fn folder_without_a_run_is_refused() {
    let fixture = Fixture::new("llama-gqa");
    let text = failure_messages(fixture.sepal(&["serve-task", "nowhere", "--listen", "127.0.0.1:0"]));
    assert!(text.contains("nowhere/pipeline.yaml"), "{text}");
}
