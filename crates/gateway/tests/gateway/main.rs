//! Requests over sockets to a gateway with fake classifiers.

mod harness;
mod models;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use harness::{FakeState, Reply, TestGateway, check, post, reply};
use sepal_gateway::{
    Answer, AnswerKind, ClassifierInfo, Classify, ClassifyError, Gateway, Options, Token, WorkerError,
};
use serde_json::json;

#[test]
fn texts_of_a_request_are_answered_in_order() {
    let gateway = TestGateway::start(Options { batch_rows: 2, ..Options::default() }).wait_until_ready();
    let reply = gateway.classify(&json!({ "texts": ["a", "four", "ab", "abc", "ä"] }));
    assert_eq!(reply.values(), [1.0, 4.0, 2.0, 3.0, 2.0]);
    assert_eq!(reply.json()["model"], "length");
    assert_eq!(gateway.classify(&json!({ "text": "four" })).values(), [4.0]);
}

#[test]
fn pairs_of_texts_are_answered() {
    let info = ClassifierInfo { takes_pairs: true, ..ClassifierInfo::new("lengths", AnswerKind::Value, &["bytes"]) };
    let gateway = TestGateway::start_with(Options::default(), info, Arc::default()).wait_until_ready();
    let reply = gateway.classify(&json!({ "texts": [["a", "four"], ["ab", "c"]] }));
    assert_eq!(reply.values(), [401.0, 102.0]);
    check(&gateway.classify(&json!({ "texts": ["a"] })), 422, "#/texts/0");
}

#[test]
fn waiting_requests_share_batches_with_a_large_one() {
    let gateway = TestGateway::start(Options { batch_rows: 4, ..Options::default() }).wait_until_ready();
    gateway.fake.row_ms.store(10, Ordering::SeqCst);
    gateway.fake.batches.lock().expect("a lock").clear();
    thread::scope(|scope| {
        let large = scope.spawn(|| {
            let texts: Vec<String> = (0..200).map(|row| "x".repeat(row % 7 + 1)).collect();
            let reply = gateway.classify(&json!({ "texts": texts }));
            (reply.values(), Instant::now())
        });
        thread::sleep(Duration::from_millis(100));
        let small: Vec<_> = (1..=6)
            .map(|n| {
                let gateway = &gateway;
                scope.spawn(move || (n, gateway.classify(&json!({ "text": "y".repeat(n) })).values(), Instant::now()))
            })
            .collect();
        let mut last = None;
        for one in small {
            let (n, values, finished_at) = one.join().expect("no panic");
            assert_eq!(values, [n as f64]);
            last = last.max(Some(finished_at));
        }
        let (values, finished_at) = large.join().expect("no panic");
        assert_eq!(values, (0..200).map(|row| (row % 7 + 1) as f64).collect::<Vec<_>>());
        assert!(last < Some(finished_at), "small requests finish first");
    });
    let batches = gateway.fake.batches.lock().expect("a lock");
    assert_eq!(batches.iter().sum::<usize>(), 206);
    assert!(batches.len() <= 60 && batches.iter().all(|&rows| rows <= 4), "requests share batches: {batches:?}");
}

#[test]
fn invalid_requests_are_refused() {
    let options = Options { max_body_bytes: 200, max_rows: 2, max_text_bytes: 50, ..Options::default() };
    let gateway = TestGateway::start(options).wait_until_ready();
    check(&gateway.get("/nowhere"), 404, "expected /");
    let reply = gateway.get("/classify");
    check(&reply, 405, "expected POST, found GET");
    assert_eq!(reply.header("allow"), Some("POST"));
    check(&gateway.post("{}", ""), 415, "found none");
    check(&gateway.post("{}", "Content-Type: text/plain\r\n"), 415, "found text/plain");
    check(&gateway.post("{}", "Content-Type: application/json\r\nContent-Encoding: gzip\r\n"), 415, "found gzip");
    check(&gateway.post("{", "Content-Type: application/json; charset=utf-8\r\n"), 400, "not JSON");
    check(&gateway.classify(&json!({ "text": "x".repeat(300) })), 413, "200 bytes");
    check(&gateway.classify(&json!({ "text": "x".repeat(51) })), 422, "50 bytes at the most, found 51");
    check(&gateway.classify(&json!({ "texts": ["a", "b", "c"] })), 422, "2 texts at the most");
    let reply = gateway.classify(&json!({ "texts": ["a", ""] }));
    check(&reply, 422, "#/texts/1: it is empty");
    assert_eq!(reply.json()["errors"], json!([{ "pointer": "#/texts/1", "detail": "it is empty" }]));
    let chunked = "POST /classify HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n\
                   Transfer-Encoding: chunked\r\n\r\n";
    let more = format!("{chunked}fa\r\n{}\r\n0\r\n\r\n", "x".repeat(250));
    check(&gateway.send(more.as_bytes()), 413, "200 bytes");
    assert_eq!(gateway.classify(&json!({ "text": "ok" })).values(), [2.0], "the gateway still works");
}

#[test]
fn failing_rows_fail_no_other_request() {
    let gateway = TestGateway::start(Options::default()).wait_until_ready();
    gateway.fake.row_ms.store(20, Ordering::SeqCst);
    thread::scope(|scope| {
        let send = |text: &'static str| {
            scope.spawn({
                let gateway = &gateway;
                move || gateway.classify(&json!({ "text": text }))
            })
        };
        let requests: Vec<_> = ["good", "poison", "fine", "nan", "better", " ", "endless"].map(send).into();
        let replies: Vec<Reply> = requests.into_iter().map(|reply| reply.join().expect("no panic")).collect();
        assert_eq!(replies[0].values(), [4.0]);
        check(&replies[1], 500, "could not be computed");
        assert_eq!(replies[2].values(), [4.0]);
        check(&replies[3], 500, "could not be computed");
        assert_eq!(replies[4].values(), [6.0]);
        check(&replies[5], 422, "yields no token");
        check(&replies[6], 422, "9 windows, at most 8");
    });
    assert_eq!(gateway.get("/health").status, 200);
}

#[test]
fn all_invalid_rows_of_a_request_are_named() {
    let gateway = TestGateway::start(Options { batch_rows: 2, ..Options::default() }).wait_until_ready();
    let named = |body: &serde_json::Value| {
        let reply = gateway.classify(body);
        check(&reply, 422, "");
        let errors = reply.json()["errors"].as_array().expect("errors").clone();
        let texts = |key: &str| -> Vec<String> {
            errors.iter().map(|error| error[key].as_str().expect("a text").to_owned()).collect()
        };
        let [pointers, details]: [Vec<String>; 2] = ["pointer", "detail"].map(texts);
        (pointers, details)
    };
    // The second batch fails; the rows behind it are in no batch.
    let texts = ["a", "b", "c", " ", "d", "endless", "e", " "];
    let (pointers, details) = named(&json!({ "texts": texts }));
    assert_eq!(pointers, ["#/texts/3", "#/texts/5", "#/texts/7"]);
    assert!(details[0].contains("yields no token") && details[1].contains("9 windows, at most 8"), "{details:?}");
    assert_eq!(named(&json!({ "text": " " })).0, ["#/text"]);
    assert_eq!(named(&json!({ "text": "endless" })).0, ["#/text"]);
    assert_eq!(named(&json!({ "texts": ["a", "endless"] })).0, ["#/texts/1"]);
    assert_eq!(named(&json!({ "texts": vec![" "; 20] })).0.len(), 8, "the first eight");
    assert_eq!(gateway.get("/health").status, 200);
}

#[test]
fn request_beyond_limit_is_refused_with_retry_time() {
    let gateway = TestGateway::start(Options { max_requests: 2, ..Options::default() }).wait_until_ready();
    gateway.fake.row_ms.store(400, Ordering::SeqCst);
    thread::scope(|scope| {
        let requests = [0, 1].map(|_| scope.spawn(|| gateway.classify(&json!({ "text": "four" }))));
        thread::sleep(Duration::from_millis(200));
        let reply = gateway.classify(&json!({ "text": "four" }));
        check(&reply, 503, "too many requests");
        let pause: u64 = reply.header("retry-after").expect("a header").parse().expect("a number");
        assert!((1..=60).contains(&pause));
        requests.into_iter().for_each(|reply| assert_eq!(reply.join().expect("no panic").values(), [4.0]));
    });
    assert_eq!(gateway.classify(&json!({ "text": "four" })).values(), [4.0]);
}

#[test]
fn slow_request_times_out() {
    let gateway =
        TestGateway::start(Options { timeout: Duration::from_millis(300), ..Options::default() }).wait_until_ready();
    let mut stream = TcpStream::connect(gateway.addr).expect("connected");
    let slow = post("{\"text\": \"four\"}", "Content-Type: application/json\r\n");
    stream.write_all(&slow.as_bytes()[..slow.len() - 3]).expect("sent");
    check(&reply(&mut stream), 408, "0.3 s");
    gateway.fake.row_ms.store(1000, Ordering::SeqCst);
    check(&gateway.classify(&json!({ "text": "four" })), 504, "0.3 s");
    gateway.fake.row_ms.store(0, Ordering::SeqCst);
    thread::sleep(Duration::from_millis(1000));
    assert_eq!(gateway.classify(&json!({ "text": "four" })).values(), [4.0]);
}

#[test]
fn dripping_requests_do_not_keep_out_an_honest_one() {
    let options = Options { max_connections: 8, max_requests: 2, ..Options::default() };
    let gateway = TestGateway::start(options).wait_until_ready();
    let slow = post("{\"text\": \"four\"}", "Content-Type: application/json\r\n");
    let send_part = |n_left: usize| {
        let mut stream = TcpStream::connect(gateway.addr).expect("connected");
        stream.write_all(&slow.as_bytes()[..slow.len() - n_left]).expect("sent");
        stream
    };
    let _dripping: Vec<TcpStream> = (1..=30).map(send_part).collect();
    assert_eq!(gateway.classify(&json!({ "text": "four" })).values(), [4.0]);
    let metrics = gateway.get("/metrics").body;
    assert!(metrics.contains("sepal_task_connections_ended_total{reason=\"replaced\"}"), "{metrics}");
}

#[test]
fn silent_connection_is_closed() {
    let gateway = TestGateway::start(Options { head_timeout: Duration::from_millis(200), ..Options::default() })
        .wait_until_ready();
    let mut stream = TcpStream::connect(gateway.addr).expect("connected");
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answered and closed");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let mut half = TcpStream::connect(gateway.addr).expect("connected");
    half.write_all(b"GET /hea").expect("sent");
    half.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    half.read_to_end(&mut Vec::new()).expect("closed");
}

#[test]
fn request_of_closed_connection_is_not_computed() {
    let gateway = TestGateway::start(Options { batch_rows: 1, ..Options::default() }).wait_until_ready();
    gateway.fake.row_ms.store(300, Ordering::SeqCst);
    thread::scope(|scope| {
        let first = scope.spawn(|| gateway.classify(&json!({ "text": "first" })));
        thread::sleep(Duration::from_millis(100));
        let mut stream = TcpStream::connect(gateway.addr).expect("connected");
        let texts = json!({ "texts": ["1", "2", "3", "4", "5", "6"] }).to_string();
        stream.write_all(post(&texts, "Content-Type: application/json\r\n").as_bytes()).expect("sent");
        thread::sleep(Duration::from_millis(50));
        stream.shutdown(Shutdown::Both).expect("gone");
        drop(stream);
        assert_eq!(first.join().expect("no panic").values(), [5.0]);
    });
    assert_eq!(gateway.classify(&json!({ "text": "last" })).values(), [4.0]);
    let rows: usize = gateway.fake.batches.lock().expect("a lock").iter().sum();
    assert!(rows <= 4, "the trial, the first, the last, and at most one row of the closed connection: {rows}");
}

#[test]
fn lost_classifier_is_reported_and_recovers() {
    let fake = Arc::new(FakeState::default());
    fake.is_unavailable.store(true, Ordering::SeqCst);
    let info = ClassifierInfo::new("length", AnswerKind::Value, &["bytes"]);
    let options = Options { check_interval: Some(Duration::from_millis(50)), ..Options::default() };
    let gateway = TestGateway::start_with(options, info, Arc::clone(&fake));
    gateway.wait_for_status("unavailable");
    assert_eq!(gateway.get("/health").status, 503);
    check(&gateway.get("/openapi.json"), 503, "cannot be reached");
    assert!(gateway.get("/").body.contains("cannot be reached"));
    check(&gateway.classify(&json!({ "text": "four" })), 503, "cannot be reached");
    assert_eq!(gateway.get("/").status, 503);
    fake.is_unavailable.store(false, Ordering::SeqCst);
    gateway.wait_for_status("ready");
    assert_eq!(gateway.classify(&json!({ "text": "four" })).values(), [4.0]);
    // Detected by a request or by a check.
    fake.is_unavailable.store(true, Ordering::SeqCst);
    let reply = gateway.classify(&json!({ "text": "four" }));
    check(&reply, 503, "cannot be reached");
    assert_eq!(reply.header("retry-after"), Some("5"));
    fake.is_unavailable.store(false, Ordering::SeqCst);
    gateway.wait_for_status("ready");
    fake.is_unavailable.store(true, Ordering::SeqCst);
    gateway.wait_for_status("unavailable");
    fake.is_unavailable.store(false, Ordering::SeqCst);
    gateway.wait_for_status("ready");
    assert_eq!(gateway.classify(&json!({ "text": "four" })).values(), [4.0]);
}

#[test]
fn token_protects_predictions_and_metrics() {
    let token = Some(Token::new("0123456789abcdef").expect("a token"));
    let gateway = TestGateway::start(Options { token, ..Options::default() }).wait_until_ready();
    let reply = gateway.classify(&json!({ "text": "four" }));
    check(&reply, 401, "Authorization");
    assert!(reply.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")));
    check(&gateway.get("/metrics"), 401, "Authorization");
    let headers = "Content-Type: application/json\r\nAuthorization: Bearer 0123456789abcdef\r\n";
    assert_eq!(gateway.post(r#"{"text": "four"}"#, headers).values(), [4.0]);
    assert!(!gateway.get("/").body.contains("0123456789abcdef"));
}

#[test]
fn page_openapi_and_metrics_describe_classifier() {
    let gateway = TestGateway::start(Options::default()).wait_until_ready();
    let page = gateway.get("/");
    assert_eq!(page.status, 200);
    assert!(page.header("content-security-policy").is_some_and(|policy| policy.contains("default-src 'none'")));
    assert!(page.body.contains(r#""name":"length""#), "{}", page.body);
    let document = gateway.get("/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["title"], "length");
    assert_eq!(gateway.classify(&json!({ "texts": ["a", "b"] })).status, 200);
    assert_eq!(gateway.classify(&json!({})).status, 422);
    let metrics = gateway.get("/metrics").body;
    for line in [
        r#"sepal_task_requests_total{model="length",status="200"} 1"#,
        r#"sepal_task_requests_total{model="length",status="422"} 1"#,
        r#"sepal_task_rows_total{model="length"} 2"#,
        r#"sepal_task_request_seconds_count{model="length"} 2"#,
        r#"sepal_task_ready{model="length"} 1"#,
        r#"sepal_task_waiting_rows{model="length"} 0"#,
        r#"sepal_task_open_requests{model="length"} 0"#,
        "# EOF",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} in {metrics}");
    }
}

#[test]
fn stop_finishes_waiting_requests() {
    let mut gateway = TestGateway::start(Options { batch_rows: 1, ..Options::default() }).wait_until_ready();
    gateway.fake.row_ms.store(100, Ordering::SeqCst);
    let addr = gateway.addr;
    let requests: Vec<_> = (1..=3)
        .map(|n| {
            thread::spawn(move || {
                let mut stream = TcpStream::connect(addr).expect("connected");
                let body = json!({ "texts": ["x".repeat(n), "y"] }).to_string();
                stream.write_all(post(&body, "Content-Type: application/json\r\n").as_bytes()).expect("sent");
                reply(&mut stream).values()
            })
        })
        .collect();
    // The stop does not wait for idle connections.
    let _idle = TcpStream::connect(addr).expect("connected");
    thread::sleep(Duration::from_millis(150));
    let started_at = Instant::now();
    gateway.stop();
    assert!(started_at.elapsed() < Duration::from_secs(5), "{:?}", started_at.elapsed());
    for (n, values) in requests.into_iter().enumerate() {
        assert_eq!(values.join().expect("no panic"), [n as f64 + 1.0, 1.0]);
    }
    assert!(TcpStream::connect(addr).is_err(), "the port is closed");
}

#[test]
fn classifier_failing_its_trial_is_not_served() {
    struct Broken;
    impl Classify for Broken {
        fn classify(&mut self, _: &[&str], _: Option<&[&str]>) -> Result<Vec<Answer>, ClassifyError> {
            Err(ClassifyError::Failed("it is broken".into()))
        }
    }
    let (gateway, models) =
        Gateway::start(Options { listen: ([127, 0, 0, 1], 0).into(), ..Options::default() }).expect("it listens");
    let worker = models.add("a".parse().expect("a name")).expect("added");
    let error =
        worker.serve(ClassifierInfo::new("a", AnswerKind::Value, &["b"]), &mut Broken, || ()).expect_err("it fails");
    assert!(matches!(error, WorkerError::Trial(_)), "{error}");
    let taken = Gateway::start(Options { listen: gateway.addr(), ..Options::default() });
    assert!(taken.expect_err("the port is taken").to_string().starts_with("listen on http://127.0.0.1"));
    drop(worker);
    gateway.finish().expect("it ends");
}
