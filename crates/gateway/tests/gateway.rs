//! A gateway before a classifier that is none, asked over sockets.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sepal_gateway::{About, Answer, Classify, ClassifyError, DeskError, Gateway, Kind, Options, Stopper, Token};
use serde_json::{Value, json};

/// Answers each text with its length; does what texts say.
#[derive(Default)]
struct Fake {
    /// Rows of each batch.
    batches: Mutex<Vec<usize>>,
    gone: AtomicBool,
    /// Milliseconds that a row takes.
    row_ms: AtomicU64,
    asked: AtomicUsize,
}

struct Shared(Arc<Fake>);

impl Classify for Shared {
    fn classify(&mut self, texts: &[&str], pairs: Option<&[&str]>) -> Result<Vec<Answer>, ClassifyError> {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        if self.0.gone.load(Ordering::SeqCst) {
            return Err(ClassifyError::Unavailable("nobody is there".into()));
        }
        self.0.batches.lock().expect("a lock").push(texts.len());
        thread::sleep(Duration::from_millis(self.0.row_ms.load(Ordering::SeqCst)) * texts.len() as u32);
        if texts.contains(&" ") {
            return Err(ClassifyError::NoToken);
        }
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

    fn needs_others(&self) -> bool {
        true
    }
}

struct Served {
    fake: Arc<Fake>,
    addr: SocketAddr,
    stopper: Stopper,
    gateway: Option<Gateway>,
    desk: Option<JoinHandle<Result<(), DeskError>>>,
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("JSON: {}", self.body))
    }

    fn values(&self) -> Vec<f64> {
        assert_eq!(self.status, 200, "{}", self.body);
        let json = self.json();
        let predictions = json["predictions"].as_array().expect("predictions").clone();
        predictions.iter().map(|prediction| prediction["value"].as_f64().expect("a value")).collect()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl Served {
    fn start(options: Options) -> Self {
        Self::start_as(options, About::new("length", Kind::Value, &["bytes"]), Arc::default())
    }

    fn start_as(options: Options, about: About, fake: Arc<Fake>) -> Self {
        let options = Options { listen: ([127, 0, 0, 1], 0).into(), retry: Duration::from_millis(20), ..options };
        let (gateway, desk) = Gateway::start(options).expect("it listens");
        let (addr, stopper, asked) = (gateway.addr(), gateway.stopper(), Arc::clone(&fake));
        let desk = thread::spawn(move || desk.serve(about, &mut Shared(asked), || ()));
        Self { fake, addr, stopper, gateway: Some(gateway), desk: Some(desk) }
    }

    fn ready(self) -> Self {
        self.until("ready");
        self
    }

    fn until(&self, status: &str) {
        let begun = Instant::now();
        while self.get("/health").json()["status"] != status {
            assert!(begun.elapsed() < Duration::from_secs(20), "never {status}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn raw(&self, request: &[u8]) -> Reply {
        let mut stream = TcpStream::connect(self.addr).expect("connected");
        stream.write_all(request).expect("sent");
        reply(&mut stream)
    }

    fn get(&self, path: &str) -> Reply {
        self.raw(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes())
    }

    fn post(&self, body: &str, headers: &str) -> Reply {
        self.raw(post(body, headers).as_bytes())
    }

    fn ask(&self, body: &Value) -> Reply {
        self.post(&body.to_string(), "Content-Type: application/json\r\n")
    }

    fn stop(&mut self) {
        self.stopper.stop();
        self.desk.take().expect("a desk").join().expect("no panic").expect("served");
        self.gateway.take().expect("a gateway").finish().expect("it ends");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stopper.stop();
    }
}

fn post(body: &str, headers: &str) -> String {
    let length = body.len();
    format!(
        "POST /classify HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )
}

fn reply(stream: &mut TcpStream) -> Reply {
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("a reply");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("a reply: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Reply { status, head: head.to_owned(), body: body.to_owned() }
}

/// A problem document of this status, whose detail says this.
fn check(reply: &Reply, status: u16, detail: &str) {
    assert_eq!(reply.status, status, "{} {}", reply.head, reply.body);
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    let json = reply.json();
    assert_eq!(json["status"], status);
    assert!(json["title"].as_str().is_some_and(|title| !title.is_empty()));
    assert!(json["detail"].as_str().expect("a detail").contains(detail), "{json}");
}

#[test]
fn texts_are_answered_in_order() {
    let served = Served::start(Options { batch_rows: 2, ..Options::default() }).ready();
    let reply = served.ask(&json!({ "texts": ["a", "four", "ab", "abc", "ä"] }));
    assert_eq!(reply.values(), [1.0, 4.0, 2.0, 3.0, 2.0]);
    assert_eq!(reply.json()["model"], "length");
    assert_eq!(served.ask(&json!({ "text": "four" })).values(), [4.0]);
}

#[test]
fn pairs_are_answered() {
    let about = About { takes_pairs: true, ..About::new("lengths", Kind::Value, &["bytes"]) };
    let served = Served::start_as(Options::default(), about, Arc::default()).ready();
    let reply = served.ask(&json!({ "texts": [["a", "four"], ["ab", "c"]] }));
    assert_eq!(reply.values(), [401.0, 102.0]);
    check(&served.ask(&json!({ "texts": ["a"] })), 422, "#/texts/0");
}

#[test]
fn requests_that_wait_go_together_and_a_giant_one_lets_others_by() {
    let served = Served::start(Options { batch_rows: 4, ..Options::default() }).ready();
    served.fake.row_ms.store(10, Ordering::SeqCst);
    served.fake.batches.lock().expect("a lock").clear();
    thread::scope(|scope| {
        let giant = scope.spawn(|| {
            let texts: Vec<String> = (0..200).map(|row| "x".repeat(row % 7 + 1)).collect();
            let reply = served.ask(&json!({ "texts": texts }));
            (reply.values(), Instant::now())
        });
        thread::sleep(Duration::from_millis(100));
        let small: Vec<_> = (1..=6)
            .map(|n| {
                let served = &served;
                scope.spawn(move || (n, served.ask(&json!({ "text": "y".repeat(n) })).values(), Instant::now()))
            })
            .collect();
        let mut last = None;
        for one in small {
            let (n, values, at) = one.join().expect("no panic");
            assert_eq!(values, [n as f64]);
            last = last.max(Some(at));
        }
        let (values, at) = giant.join().expect("no panic");
        assert_eq!(values, (0..200).map(|row| (row % 7 + 1) as f64).collect::<Vec<_>>());
        assert!(last < Some(at), "small ones come first");
    });
    let batches = served.fake.batches.lock().expect("a lock");
    assert_eq!(batches.iter().sum::<usize>(), 206);
    assert!(batches.len() <= 60 && batches.iter().all(|&rows| rows <= 4), "they go together: {batches:?}");
}

#[test]
fn wrong_requests_are_refused() {
    let options = Options { max_body_bytes: 200, max_rows: 2, max_text_bytes: 50, ..Options::default() };
    let served = Served::start(options).ready();
    check(&served.get("/nowhere"), 404, "expected /");
    let reply = served.get("/classify");
    check(&reply, 405, "expected POST, found GET");
    assert_eq!(reply.header("allow"), Some("POST"));
    check(&served.post("{}", ""), 415, "found none");
    check(&served.post("{}", "Content-Type: text/plain\r\n"), 415, "found text/plain");
    check(&served.post("{}", "Content-Type: application/json\r\nContent-Encoding: gzip\r\n"), 415, "found gzip");
    check(&served.post("{", "Content-Type: application/json; charset=utf-8\r\n"), 400, "not JSON");
    check(&served.ask(&json!({ "text": "x".repeat(300) })), 413, "200 bytes");
    check(&served.ask(&json!({ "text": "x".repeat(51) })), 422, "50 bytes at the most, found 51");
    check(&served.ask(&json!({ "texts": ["a", "b", "c"] })), 422, "2 texts at the most");
    let reply = served.ask(&json!({ "texts": ["a", ""] }));
    check(&reply, 422, "#/texts/1: it is empty");
    assert_eq!(reply.json()["errors"], json!([{ "pointer": "#/texts/1", "detail": "it is empty" }]));
    let chunked = "POST /classify HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n\
                   Transfer-Encoding: chunked\r\n\r\n";
    let more = format!("{chunked}fa\r\n{}\r\n0\r\n\r\n", "x".repeat(250));
    check(&served.raw(more.as_bytes()), 413, "200 bytes");
    assert_eq!(served.ask(&json!({ "text": "ok" })).values(), [2.0], "it still works");
}

#[test]
fn rows_that_fail_fail_no_other_request() {
    let served = Served::start(Options::default()).ready();
    served.fake.row_ms.store(20, Ordering::SeqCst);
    thread::scope(|scope| {
        let ask = |text: &'static str| {
            scope.spawn({
                let served = &served;
                move || served.ask(&json!({ "text": text }))
            })
        };
        let asked: Vec<_> = ["good", "poison", "fine", "nan", "better", " "].map(ask).into();
        let replies: Vec<Reply> = asked.into_iter().map(|reply| reply.join().expect("no panic")).collect();
        assert_eq!(replies[0].values(), [4.0]);
        check(&replies[1], 500, "could not be computed");
        assert_eq!(replies[2].values(), [4.0]);
        check(&replies[3], 500, "could not be computed");
        assert_eq!(replies[4].values(), [6.0]);
        check(&replies[5], 422, "yields no token");
    });
    assert_eq!(served.get("/health").status, 200);
}

#[test]
fn too_many_requests_are_told_to_come_back() {
    let served = Served::start(Options { max_requests: 2, ..Options::default() }).ready();
    served.fake.row_ms.store(400, Ordering::SeqCst);
    thread::scope(|scope| {
        let asked = [0, 1].map(|_| scope.spawn(|| served.ask(&json!({ "text": "four" }))));
        thread::sleep(Duration::from_millis(200));
        let reply = served.ask(&json!({ "text": "four" }));
        check(&reply, 503, "as many requests");
        let pause: u64 = reply.header("retry-after").expect("a header").parse().expect("a number");
        assert!((1..=60).contains(&pause));
        asked.into_iter().for_each(|reply| assert_eq!(reply.join().expect("no panic").values(), [4.0]));
    });
    assert_eq!(served.ask(&json!({ "text": "four" })).values(), [4.0]);
}

#[test]
fn a_request_may_not_take_too_long() {
    let served = Served::start(Options { timeout: Duration::from_millis(300), ..Options::default() }).ready();
    let mut stream = TcpStream::connect(served.addr).expect("connected");
    let slow = post("{\"text\": \"four\"}", "Content-Type: application/json\r\n");
    stream.write_all(&slow.as_bytes()[..slow.len() - 3]).expect("sent");
    check(&reply(&mut stream), 408, "0.3 s");
    served.fake.row_ms.store(1000, Ordering::SeqCst);
    check(&served.ask(&json!({ "text": "four" })), 504, "0.3 s");
    served.fake.row_ms.store(0, Ordering::SeqCst);
    thread::sleep(Duration::from_millis(1000));
    assert_eq!(served.ask(&json!({ "text": "four" })).values(), [4.0]);
}

#[test]
fn a_silent_connection_is_closed() {
    let served = Served::start(Options { head_timeout: Duration::from_millis(200), ..Options::default() }).ready();
    let mut stream = TcpStream::connect(served.addr).expect("connected");
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it is answered, and closed after a while");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let mut half = TcpStream::connect(served.addr).expect("connected");
    half.write_all(b"GET /hea").expect("sent");
    half.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    half.read_to_end(&mut Vec::new()).expect("it is closed");
}

#[test]
fn whoever_goes_away_is_not_computed() {
    let served = Served::start(Options { batch_rows: 1, ..Options::default() }).ready();
    served.fake.row_ms.store(300, Ordering::SeqCst);
    thread::scope(|scope| {
        let first = scope.spawn(|| served.ask(&json!({ "text": "first" })));
        thread::sleep(Duration::from_millis(100));
        let mut stream = TcpStream::connect(served.addr).expect("connected");
        let texts = json!({ "texts": ["1", "2", "3", "4", "5", "6"] }).to_string();
        stream.write_all(post(&texts, "Content-Type: application/json\r\n").as_bytes()).expect("sent");
        thread::sleep(Duration::from_millis(50));
        stream.shutdown(Shutdown::Both).expect("gone");
        drop(stream);
        assert_eq!(first.join().expect("no panic").values(), [5.0]);
    });
    assert_eq!(served.ask(&json!({ "text": "last" })).values(), [4.0]);
    let rows: usize = served.fake.batches.lock().expect("a lock").iter().sum();
    assert!(rows <= 4, "the trial, the first, the last, and one at the most of whoever went: {rows}");
}

#[test]
fn what_is_lost_is_said_and_comes_back_by_itself() {
    let fake = Arc::new(Fake::default());
    fake.gone.store(true, Ordering::SeqCst);
    let about = About::new("length", Kind::Value, &["bytes"]);
    let options = Options { check: Some(Duration::from_millis(50)), ..Options::default() };
    let served = Served::start_as(options, about, Arc::clone(&fake));
    served.until("unavailable");
    assert_eq!(served.get("/health").status, 503);
    check(&served.ask(&json!({ "text": "four" })), 503, "cannot be reached");
    assert_eq!(served.get("/").status, 503);
    fake.gone.store(false, Ordering::SeqCst);
    served.until("ready");
    assert_eq!(served.ask(&json!({ "text": "four" })).values(), [4.0]);
    // Noticed by whoever asks, or without anybody asking.
    fake.gone.store(true, Ordering::SeqCst);
    let reply = served.ask(&json!({ "text": "four" }));
    check(&reply, 503, "cannot be reached");
    assert_eq!(reply.header("retry-after"), Some("5"));
    fake.gone.store(false, Ordering::SeqCst);
    served.until("ready");
    fake.gone.store(true, Ordering::SeqCst);
    served.until("unavailable");
    fake.gone.store(false, Ordering::SeqCst);
    served.until("ready");
    assert_eq!(served.ask(&json!({ "text": "four" })).values(), [4.0]);
}

#[test]
fn a_token_opens_what_costs_something() {
    let token = Some(Token::new("0123456789abcdef").expect("a token"));
    let served = Served::start(Options { token, ..Options::default() }).ready();
    let reply = served.ask(&json!({ "text": "four" }));
    check(&reply, 401, "Authorization");
    assert!(reply.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")));
    check(&served.get("/metrics"), 401, "Authorization");
    let headers = "Content-Type: application/json\r\nAuthorization: Bearer 0123456789abcdef\r\n";
    assert_eq!(served.post(r#"{"text": "four"}"#, headers).values(), [4.0]);
    assert!(!served.get("/").body.contains("0123456789abcdef"));
}

#[test]
fn there_are_a_page_a_description_and_counts() {
    let served = Served::start(Options::default()).ready();
    let page = served.get("/");
    assert_eq!(page.status, 200);
    assert!(page.header("content-security-policy").is_some_and(|policy| policy.contains("default-src 'none'")));
    assert!(page.body.contains(r#""name":"length""#), "{}", page.body);
    let described = served.get("/openapi.json").json();
    assert_eq!(described["openapi"], "3.1.0");
    assert_eq!(described["info"]["title"], "length");
    assert_eq!(served.ask(&json!({ "texts": ["a", "b"] })).status, 200);
    assert_eq!(served.ask(&json!({})).status, 422);
    let counts = served.get("/metrics").body;
    for line in [
        r#"sepal_task_requests_total{status="200"} 1"#,
        r#"sepal_task_requests_total{status="422"} 1"#,
        "sepal_task_rows_total 2",
        "sepal_task_ready 1",
        "sepal_task_waiting_rows 0",
        "# EOF",
    ] {
        assert!(counts.lines().any(|found| found == line), "{line} in {counts}");
    }
}

#[test]
fn a_stop_finishes_what_waits() {
    let mut served = Served::start(Options { batch_rows: 1, ..Options::default() }).ready();
    served.fake.row_ms.store(100, Ordering::SeqCst);
    let addr = served.addr;
    let asked: Vec<_> = (1..=3)
        .map(|n| {
            thread::spawn(move || {
                let mut stream = TcpStream::connect(addr).expect("connected");
                let body = json!({ "texts": ["x".repeat(n), "y"] }).to_string();
                stream.write_all(post(&body, "Content-Type: application/json\r\n").as_bytes()).expect("sent");
                reply(&mut stream).values()
            })
        })
        .collect();
    // One that asks nothing is not waited for.
    let _idle = TcpStream::connect(addr).expect("connected");
    thread::sleep(Duration::from_millis(150));
    let begun = Instant::now();
    served.stop();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    for (n, values) in asked.into_iter().enumerate() {
        assert_eq!(values.join().expect("no panic"), [n as f64 + 1.0, 1.0]);
    }
    assert!(TcpStream::connect(addr).is_err(), "the port is closed");
}

#[test]
fn a_classifier_that_fails_from_the_start_is_not_served() {
    struct Broken;
    impl Classify for Broken {
        fn classify(&mut self, _: &[&str], _: Option<&[&str]>) -> Result<Vec<Answer>, ClassifyError> {
            Err(ClassifyError::Failed("it is broken".into()))
        }
    }
    let (gateway, desk) =
        Gateway::start(Options { listen: ([127, 0, 0, 1], 0).into(), ..Options::default() }).expect("it listens");
    let error = desk.serve(About::new("a", Kind::Value, &["b"]), &mut Broken, || ()).expect_err("it fails");
    assert!(matches!(error, DeskError::Trial(_)), "{error}");
    let taken = Gateway::start(Options { listen: gateway.addr(), ..Options::default() });
    assert!(taken.expect_err("the port is taken").to_string().starts_with("listen on http://127.0.0.1"));
    drop(desk);
    gateway.finish().expect("it ends");
}
