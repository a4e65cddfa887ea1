//! Gateways with fake classifiers, and requests over sockets.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sepal_gateway::{
    Answer, AnswerKind, ClassifierInfo, Classify, ClassifyError, Gateway, InvalidRow, Options, RowProblem, Stopper,
    WorkerError,
};
use serde_json::Value;

/// Answers each text with its length; some texts cause errors.
#[derive(Default)]
pub(crate) struct FakeState {
    pub(crate) batches: Mutex<Vec<usize>>,
    pub(crate) is_unavailable: AtomicBool,
    pub(crate) row_ms: AtomicU64,
}

pub(crate) struct FakeClassifier(pub(crate) Arc<FakeState>);

impl Classify for FakeClassifier {
    fn classify(&mut self, texts: &[&str], pairs: Option<&[&str]>) -> Result<Vec<Answer>, ClassifyError> {
        if self.0.is_unavailable.load(Ordering::SeqCst) {
            return Err(ClassifyError::Unavailable("no server".into()));
        }
        self.0.batches.lock().expect("a lock").push(texts.len());
        thread::sleep(Duration::from_millis(self.0.row_ms.load(Ordering::SeqCst)) * texts.len() as u32);
        self.check(texts, pairs)?;
        if texts.contains(&"poison") {
            return Err(ClassifyError::Failed("it is poison".into()));
        }
        let second = |row: usize| pairs.map_or(0, |pairs| pairs[row].len());
        let value = |(row, text): (usize, &&str)| match *text {
            "nan" => f32::NAN,
            text => (text.len() + 100 * second(row)) as f32,
        };
        Ok(texts.iter().enumerate().map(|row| Answer::Value(value(row))).collect())
    }

    fn check(&mut self, texts: &[&str], _: Option<&[&str]>) -> Result<(), ClassifyError> {
        let problem = |text: &str| match text {
            " " => Some(RowProblem::NoToken),
            "endless" => Some(RowProblem::TooLong { n_windows: 9, max_windows: 8 }),
            _ => None,
        };
        let rows = texts.iter().enumerate();
        let invalid = rows.filter_map(|(row, &text)| Some(InvalidRow { row, problem: problem(text)? }));
        let invalid: Vec<InvalidRow> = invalid.collect();
        if invalid.is_empty() { Ok(()) } else { Err(ClassifyError::InvalidRows(invalid)) }
    }

    fn uses_remote_servers(&self) -> bool {
        true
    }
}

pub(crate) struct TestGateway {
    pub(crate) fake: Arc<FakeState>,
    pub(crate) addr: SocketAddr,
    pub(crate) stopper: Stopper,
    pub(crate) gateway: Option<Gateway>,
    pub(crate) worker: Option<JoinHandle<Result<(), WorkerError>>>,
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("JSON: {}", self.body))
    }

    pub(crate) fn values(&self) -> Vec<f64> {
        assert_eq!(self.status, 200, "{}", self.body);
        let json = self.json();
        let predictions = json["predictions"].as_array().expect("predictions").clone();
        predictions.iter().map(|prediction| prediction["value"].as_f64().expect("a value")).collect()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl TestGateway {
    pub(crate) fn start(options: Options) -> Self {
        Self::start_with(options, ClassifierInfo::new("length", AnswerKind::Value, &["bytes"]), Arc::default())
    }

    pub(crate) fn start_with(options: Options, info: ClassifierInfo, fake: Arc<FakeState>) -> Self {
        let options =
            Options { listen: ([127, 0, 0, 1], 0).into(), retry_interval: Duration::from_millis(20), ..options };
        let (gateway, models) = Gateway::start(options).expect("it listens");
        let (addr, stopper, state) = (gateway.addr(), gateway.stopper(), Arc::clone(&fake));
        let worker = models.add(info.name.parse().expect("a name")).expect("added");
        let worker = thread::spawn(move || worker.serve(info, &mut FakeClassifier(state), || ()));
        Self { fake, addr, stopper, gateway: Some(gateway), worker: Some(worker) }
    }

    pub(crate) fn wait_until_ready(self) -> Self {
        self.wait_for_status("ready");
        self
    }

    pub(crate) fn wait_for_status(&self, status: &str) {
        let started_at = Instant::now();
        while self.get("/health").json()["status"] != status {
            assert!(started_at.elapsed() < Duration::from_secs(20), "never {status}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn send(&self, request: &[u8]) -> Reply {
        let mut stream = TcpStream::connect(self.addr).expect("connected");
        stream.write_all(request).expect("sent");
        reply(&mut stream)
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes())
    }

    pub(crate) fn post(&self, body: &str, headers: &str) -> Reply {
        self.send(post(body, headers).as_bytes())
    }

    pub(crate) fn classify(&self, body: &Value) -> Reply {
        self.post(&body.to_string(), "Content-Type: application/json\r\n")
    }

    pub(crate) fn stop(&mut self) {
        self.stopper.stop();
        self.worker.take().expect("a worker").join().expect("no panic").expect("served");
        self.gateway.take().expect("a gateway").finish().expect("it ends");
    }
}

impl Drop for TestGateway {
    fn drop(&mut self) {
        self.stopper.stop();
    }
}

pub(crate) fn post(body: &str, headers: &str) -> String {
    let length = body.len();
    format!(
        "POST /classify HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )
}

pub(crate) fn reply(stream: &mut TcpStream) -> Reply {
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("a reply");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("a reply: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Reply { status, head: head.to_owned(), body: body.to_owned() }
}

pub(crate) fn check(reply: &Reply, status: u16, detail: &str) {
    assert_eq!(reply.status, status, "{} {}", reply.head, reply.body);
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    let json = reply.json();
    assert_eq!(json["status"], status);
    assert!(json["title"].as_str().is_some_and(|title| !title.is_empty()));
    assert!(json["detail"].as_str().expect("a detail").contains(detail), "{json}");
}
