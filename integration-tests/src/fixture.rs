//! Temporary folders with a tiny model, and the real program on them.

use std::borrow::BorrowMut;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use sepal_testkit::tiny;
use serde_json::Value;
use tempfile::TempDir;

/// Folder with a tiny model, sentences and a pipeline file.
pub struct Fixture {
    pub folder: TempDir,
}

impl Fixture {
    #[expect(clippy::disallowed_methods, reason = "a test needs no sync")]
    pub fn new(model: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        tiny::model(folder.path(), model);
        fs::rename(folder.path().join(model), folder.path().join("model")).expect("renamed");
        tiny::csv(&folder.path().join("train.csv"), 192, 1);
        tiny::csv(&folder.path().join("validation.csv"), 48, 2);
        fs::write(folder.path().join("pipeline.yaml"), PIPELINE).expect("a pipeline file");
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn sepal(&self, args: &[&str]) -> Command {
        let mut command = self.command(&binary());
        command.args(args);
        command
    }

    /// A program in the folder, with a cache of its own.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.folder.path());
        command.env("SEPAL_CACHE", self.path("cache")).env("HF_HUB_CACHE", self.path("hub")).env("HF_HUB_OFFLINE", "1");
        command
    }

    pub fn output(&self, sets: &[&str]) -> Output {
        let mut command = self.sepal(&["run", "pipeline.yaml"]);
        bounded_output(command.args(sets.iter().flat_map(|set| ["--set", *set])))
    }

    pub fn run(&self, sets: &[&str]) -> Run {
        self.run_with_messages(sets).0
    }

    /// Returns the run and its standard error.
    pub fn run_with_messages(&self, sets: &[&str]) -> (Run, String) {
        let output = self.output(sets);
        let (stdout, messages) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{messages}");
        let folder = stdout.lines().find_map(|line| line.strip_prefix("folder ")).expect("the folder is named");
        (Run { folder: self.path(folder.trim()), stdout }, messages)
    }

    /// Replaces the tuning mode of the pipeline file.
    pub fn set_tuning(&self, tuning: &str) {
        let path = self.path("pipeline.yaml");
        let text = fs::read_to_string(&path).expect("a pipeline file");
        let line = |line: &str| match line.strip_prefix("tuning: ") {
            Some(_) => format!("tuning: {tuning}\n"),
            None => format!("{line}\n"),
        };
        fs::write(path, text.lines().map(line).collect::<String>()).expect("a pipeline file");
    }

    /// Returns the error text of a run that fails and checks that no partial file is left.
    pub fn failure(&self, sets: &[&str]) -> String {
        let output = self.output(sets);
        let text = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "it fails by itself: {text}");
        assert!(!text.contains("panicked"), "a clear error, not a panic: {text}");
        for path in files(&self.path("runs")) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            assert!(!name.starts_with('.'), "{} is left half-written", path.display());
        }
        text
    }

    pub fn only_run(&self) -> Run {
        self.run_in("runs")
    }

    pub fn run_in(&self, folder: &str) -> Run {
        let mut folders: Vec<PathBuf> =
            fs::read_dir(self.path(folder)).expect("runs").map(|entry| entry.expect("an entry").path()).collect();
        assert_eq!(folders.len(), 1, "{folders:?}");
        Run { folder: folders.remove(0), stdout: String::new() }
    }

    /// Starts `sepal serve model` and waits until it serves.
    pub fn serve(&self, blocks: &str, listen: &str) -> Server {
        self.serve_with(blocks, listen, &[])
    }

    pub fn serve_with(&self, blocks: &str, listen: &str, more: &[&str]) -> Server {
        let args = [&["--blocks", blocks, "--listen", listen, "--threads", "1"], more].concat();
        let server = self.serve_args(&args);
        assert_eq!(server.blocks, blocks);
        server
    }

    /// Starts `sepal serve model` with these arguments and waits until it serves.
    pub fn serve_args(&self, args: &[&str]) -> Server {
        Server::start(self.sepal(&["serve", "model"]).args(args))
    }
}

/// Time after which a command hangs, on a busy machine too.
const COMMAND_LIMIT: Duration = Duration::from_secs(300);

const PIPELINE: &str = "\
name: tiny
model: { source: model }
swarm: { use: embedded }
task: { use: sequence-classification, with: { labels: [bad, good] } }
tuning: { use: deep-ptune, with: { pre_seq_len: 4 } }
data: { train: train.csv, validation: validation.csv, text: sentence, label: label, max_length: 16 }
loader: { batch_size: 16 }
optimizer: { use: adamw, with: { lr: 3.0e-2, weight_decay: 0.0 } }
schedule: { use: linear, with: { warmup_steps: 5 } }
train: { epochs: 5, seed: 7, threads: 1 }
";

pub struct Run {
    pub folder: PathBuf,
    pub stdout: String,
}

impl Run {
    pub fn manifest(&self) -> Value {
        json(&fs::read_to_string(self.folder.join("manifest.json")).expect("a manifest"))
    }

    pub fn records(&self, kind: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.join("metrics.jsonl")).expect("metrics");
        text.lines().map(json).filter(|line| line["kind"] == kind).collect()
    }

    pub fn losses(&self) -> Vec<f64> {
        self.records("step").iter().map(|record| record["loss"].as_f64().expect("a loss")).collect()
    }

    pub fn adapter(&self) -> Vec<u8> {
        fs::read(self.folder.join("adapter.safetensors")).expect("an adapter")
    }

    pub fn accuracy(&self) -> f64 {
        self.manifest()["metrics"]["accuracy"].as_f64().expect("an accuracy")
    }
}

/// Process of `sepal serve`, killed when dropped.
pub struct Server {
    pub child: Child,
    pub addr: String,
    pub blocks: String,
    pub model: String,
    lines: BufReader<ChildStdout>,
}

impl Server {
    /// Starts `sepal serve` and waits until it serves.
    pub fn start(command: &mut Command) -> Self {
        Self::start_with_messages(command.stderr(Stdio::null()))
    }

    /// Starts `sepal serve` with the standard error of the command, and waits until it serves.
    pub fn start_with_messages(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("sepal serves");
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("a line");
        let parts = line.trim().strip_prefix("serving blocks ").and_then(|line| {
            let (blocks, line) = line.split_once(" of ")?;
            line.rsplit_once(" on ").map(|(model, addr)| [blocks, model, addr].map(str::to_owned))
        });
        let [blocks, model, addr] = parts.unwrap_or_else(|| panic!("it serves nothing: {line}"));
        Self { child, addr, blocks, model, lines }
    }

    /// Returns the next line with this prefix, without it.
    pub fn line(&mut self, begin: &str) -> String {
        let lines = self.lines.by_ref().lines().map_while(Result::ok);
        let suffix = lines.filter_map(|line| Some(line.strip_prefix(begin)?.to_owned())).next();
        suffix.unwrap_or_else(|| panic!("it ended without `{begin}`"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn static_swarm(servers: &[&Server]) -> [String; 2] {
    let addresses: Vec<&str> = servers.iter().map(|server| server.addr.as_str()).collect();
    ["swarm.use=static".to_owned(), format!("swarm.with.servers=[\"{}\"]", addresses.join("\", \""))]
}

pub fn signal(child: &Child, name: &str) {
    let done = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().expect("kill runs");
    assert!(done.success());
}

pub fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= 1e-4, "step {}: loss {found}, expected {expected}", step + 1);
    }
}

/// Returns the program that was built with these tests.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("this test is a file");
    let folder = test.parent().and_then(Path::parent).expect("it lies in target/debug/deps");
    let binary = folder.join("sepal");
    for program in [&binary, &folder.join("sepal-engine")] {
        assert!(program.is_file(), "{} is missing; run `cargo build --workspace --bins`", program.display());
    }
    binary
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// Returns the output of a command, which is killed if it does not end.
pub fn bounded_output(command: &mut Command) -> Output {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("sepal runs");
    let (ended, end) = mpsc::channel::<()>();
    let id = child.id().to_string();
    let watch = thread::spawn(move || {
        if end.recv_timeout(COMMAND_LIMIT) == Err(RecvTimeoutError::Timeout) {
            // The command may end at this moment.
            let _ = Command::new("kill").args(["-KILL", &id]).status();
        }
    });
    let output = child.wait_with_output().expect("it ends");
    drop(ended);
    watch.join().expect("no panic");
    output
}

/// Returns the standard output of a command that succeeds.
pub fn stdout(command: impl BorrowMut<Command>) -> String {
    text(&run_to_end(command, 0).stdout)
}

/// Returns the standard error of a command that succeeds.
pub fn success_messages(command: impl BorrowMut<Command>) -> String {
    text(&run_to_end(command, 0).stderr)
}

/// Returns the standard error of a command that fails with exit code 1.
pub fn failure_messages(command: impl BorrowMut<Command>) -> String {
    text(&run_to_end(command, 1).stderr)
}

/// Returns standard error and standard output of a command that succeeds.
pub fn combined_output(command: impl BorrowMut<Command>) -> String {
    let output = run_to_end(command, 0);
    text(&[output.stderr, output.stdout].concat())
}

fn run_to_end(mut command: impl BorrowMut<Command>, code: i32) -> Output {
    let command = command.borrow_mut();
    let output = command.output().expect("the command runs");
    assert_eq!(output.status.code(), Some(code), "{command:?}: {}", text(&output.stderr));
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Sends an HTTP request. Returns the status and the body of the answer.
pub fn http(addr: &str, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(addr).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status"), body.to_owned())
}

pub fn http_get(addr: &str, path: &str) -> (u16, String) {
    http(addr, &format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n"))
}

pub fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}
