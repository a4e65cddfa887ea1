//! Gateways with several models, which are loaded and unloaded while requests run.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sepal_gateway::{AnswerKind, ClassifierInfo, Gateway, LoadRequest, Options, Stopper, Token};
use serde_json::{Value, json};

use crate::harness::{FakeClassifier, FakeState, Reply, check, reply};

const ADMIN: &str = "fedcba9876543210";

/// Gateway that loads any run but `broken`, and `held` only once it is released; the label of a model is the name of its run.
struct ManyModels {
    addr: SocketAddr,
    stopper: Stopper,
    fakes: Vec<Arc<FakeState>>,
    is_released: Arc<AtomicBool>,
}

impl ManyModels {
    fn start(options: Options, names: &[&str]) -> Self {
        let infos = names.iter().map(|name| ClassifierInfo::new(*name, AnswerKind::Value, &["first"]));
        Self::start_with(options, infos.collect())
    }

    fn start_with(options: Options, infos: Vec<ClassifierInfo>) -> Self {
        let admin_token = Some(Token::new(ADMIN).expect("a token"));
        let options = Options {
            listen: ([127, 0, 0, 1], 0).into(),
            retry_interval: Duration::from_millis(20),
            admin_token,
            ..options
        };
        let (gateway, models) = Gateway::start(options).expect("it listens");
        let (addr, stopper) = (gateway.addr(), gateway.stopper());
        let fakes: Vec<Arc<FakeState>> = infos.iter().map(|_| Arc::default()).collect();
        for (info, fake) in infos.into_iter().zip(fakes.clone()) {
            let worker = models.add(info.name.parse().expect("a name")).expect("added");
            thread::spawn(move || worker.serve(info, &mut FakeClassifier(fake), || ()));
        }
        let is_released = Arc::new(AtomicBool::new(false));
        let released = Arc::clone(&is_released);
        thread::spawn(move || {
            while let Some(LoadRequest { worker, run }) = models.next_load() {
                let released = Arc::clone(&released);
                thread::spawn(move || {
                    while run == "held" && !released.load(Ordering::SeqCst) {
                        worker.sleep(Duration::from_millis(5));
                    }
                    if run == "broken" {
                        return worker.reject("failed to open the run broken");
                    }
                    let info = ClassifierInfo::new("unused", AnswerKind::Value, &[run]);
                    worker.serve(info, &mut FakeClassifier(Arc::default()), || ()).expect("served");
                });
            }
            gateway.finish().expect("it ends");
        });
        let gateway = Self { addr, stopper, fakes, is_released };
        let begun = Instant::now();
        while gateway.send("GET", "/health", "", None).status != 200 {
            assert!(begun.elapsed() < Duration::from_secs(20), "never ready");
            thread::sleep(Duration::from_millis(5));
        }
        gateway
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: Option<&Value>) -> Reply {
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n{headers}\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(self.addr).expect("connected");
        stream.write_all(request.as_bytes()).expect("sent");
        reply(&mut stream)
    }

    fn classify(&self, body: &Value) -> Reply {
        self.send("POST", "/classify", "", Some(body))
    }

    fn administer(&self, method: &str, path: &str, body: Option<&Value>) -> Reply {
        self.send(method, path, &format!("Authorization: Bearer {ADMIN}\r\n"), body)
    }

    fn load(&self, name: &str, run: &str) -> Reply {
        self.administer("POST", "/v1/models", Some(&json!({ "name": name, "run": run })))
    }
}

impl Drop for ManyModels {
    fn drop(&mut self) {
        self.is_released.store(true, Ordering::SeqCst);
        self.stopper.stop();
    }
}

#[test]
fn body_or_path_chooses_the_model() {
    let gateway = ManyModels::start(Options::default(), &["films", "books"]);
    check(&gateway.classify(&json!({ "text": "a" })), 422, "#/model: it is missing; expected one of books, films");
    for (path, body) in [
        ("/classify", json!({ "text": "four", "model": "films" })),
        ("/v1/models/films/classify", json!({ "text": "four" })),
    ] {
        let reply = gateway.send("POST", path, "", Some(&body));
        assert_eq!(reply.values(), [4.0]);
        assert_eq!(reply.json()["model"], "films");
    }
    let body = json!({ "text": "a", "model": "film" });
    check(&gateway.classify(&body), 404, "no model `film`; did you mean `films`? (models: books, films)");
    check(&gateway.send("POST", "/v1/models/x%2Fy/classify", "", Some(&json!({ "text": "a" }))), 404, "`x/y`");
    check(&gateway.send("POST", "/v1/models/films/classify", "", Some(&body)), 422, "the path names the model");
    let page = gateway.send("GET", "/", "", None).body;
    assert!(page.contains(r#""name":"books""#) && page.contains(r#""name":"films""#), "{page}");
    let health = gateway.send("GET", "/health", "", None).json();
    assert_eq!(health["models"], json!({ "books": "ready", "films": "ready" }));
}

#[test]
fn one_request_is_answered_by_several_models() {
    let gateway = ManyModels::start(Options::default(), &["films", "books", "songs"]);
    for (models, expected) in
        [(json!(["songs", "books"]), vec!["songs", "books"]), (json!("*"), vec!["books", "films", "songs"])]
    {
        let reply = gateway.classify(&json!({ "texts": ["a", "four"], "models": models }));
        assert_eq!(reply.status, 200, "{}", reply.body);
        let json = reply.json();
        let results = json["results"].as_array().expect("results");
        let names: Vec<&str> = results.iter().map(|result| result["model"].as_str().expect("a name")).collect();
        assert_eq!(names, expected);
        for result in results {
            assert_eq!(result["predictions"], json!([{ "value": 1.0 }, { "value": 4.0 }]));
        }
    }
    gateway.fakes[1].is_unavailable.store(true, Ordering::SeqCst);
    check(&gateway.classify(&json!({ "text": "a", "models": "*" })), 503, "model `books`: ");
    let metrics = gateway.send("GET", "/metrics", "", None).body;
    for line in [
        r#"sepal_task_requests_total{model="films",status="200"} 1"#,
        r#"sepal_task_requests_total{model="songs",status="200"} 2"#,
        r#"sepal_task_rows_total{model="songs"} "#,
        r#"sepal_task_ready{model="books"} 0"#,
    ] {
        assert!(metrics.lines().any(|found| found.starts_with(line)), "{line} in {metrics}");
    }
}

#[test]
fn models_of_other_inputs_are_not_asked_together() {
    let info = |name: &str| ClassifierInfo::new(name, AnswerKind::Value, &["bytes"]);
    let pairs = ClassifierInfo { takes_pairs: true, ..info("pairs") };
    let gateway = ManyModels::start_with(Options::default(), vec![info("texts"), pairs]);
    let reply = gateway.classify(&json!({ "text": "a", "models": "*" }));
    check(&reply, 422, "`pairs` takes pairs of texts and `texts` single texts");
}

#[test]
fn busy_model_does_not_delay_another() {
    let gateway = ManyModels::start(Options { batch_rows: 2, ..Options::default() }, &["slow", "fast"]);
    gateway.fakes[0].row_ms.store(20, Ordering::SeqCst);
    thread::scope(|scope| {
        let large = scope.spawn(|| gateway.classify(&json!({ "model": "slow", "texts": vec!["text"; 100] })));
        thread::sleep(Duration::from_millis(100));
        for _ in 0..5 {
            assert_eq!(gateway.classify(&json!({ "model": "fast", "text": "four" })).values(), [4.0]);
        }
        assert!(!large.is_finished(), "the other model answers in the meantime");
        assert_eq!(large.join().expect("no panic").values().len(), 100);
    });
}

#[test]
fn limits_of_a_model_leave_the_others_alone() {
    let options = Options { max_model_requests: Some(1), max_model_rows: 3, ..Options::default() };
    let gateway = ManyModels::start(options, &["slow", "fast"]);
    gateway.fakes[0].row_ms.store(100, Ordering::SeqCst);
    thread::scope(|scope| {
        let first = scope.spawn(|| gateway.classify(&json!({ "model": "slow", "texts": ["a", "b", "c", "d", "e"] })));
        thread::sleep(Duration::from_millis(100));
        let reply = gateway.classify(&json!({ "model": "slow", "text": "a" }));
        check(&reply, 503, "too many requests of this model");
        assert!(reply.header("retry-after").is_some());
        assert_eq!(gateway.classify(&json!({ "model": "fast", "text": "four" })).values(), [4.0]);
        assert_eq!(first.join().expect("no panic").values().len(), 5);
    });
    let listed = gateway.send("GET", "/v1/models", "", None).json();
    let slow = &listed["models"][1];
    assert_eq!(
        (&slow["name"], &slow["labels"], &slow["predicts"]),
        (&json!("slow"), &json!(["first"]), &json!("value"))
    );
    assert_eq!((&slow["limits"]["open_requests"], &slow["limits"]["waiting_rows"]), (&json!(1), &json!(3)));
    assert_eq!((&slow["rows"], &slow["status"]), (&json!(5), &json!("ready")));
}

#[test]
fn unloaded_model_answers_open_requests_and_refuses_new_ones() {
    let gateway = ManyModels::start(Options { batch_rows: 1, ..Options::default() }, &["films", "books"]);
    gateway.fakes[0].row_ms.store(50, Ordering::SeqCst);
    thread::scope(|scope| {
        let open = scope.spawn(|| gateway.classify(&json!({ "model": "films", "texts": vec!["four"; 10] })));
        thread::sleep(Duration::from_millis(100));
        let reply = gateway.administer("DELETE", "/v1/models/films", None);
        assert_eq!((reply.status, &reply.json()["unloaded"]), (200, &json!("films")));
        check(&gateway.classify(&json!({ "model": "films", "text": "a" })), 404, "(models: books)");
        assert_eq!(gateway.classify(&json!({ "text": "four" })).values(), [4.0], "the only one is the default");
        assert!(!open.is_finished());
        assert_eq!(open.join().expect("no panic").values(), [4.0; 10]);
    });
    check(&gateway.administer("DELETE", "/v1/models/films", None), 404, "no model `films`");
    let metrics = gateway.send("GET", "/metrics", "", None).body;
    assert!(!metrics.contains(r#"sepal_task_ready{model="films"}"#), "{metrics}");
    assert_eq!(gateway.administer("DELETE", "/v1/models/books", None).status, 200);
    check(&gateway.classify(&json!({ "text": "a" })), 503, "no model is loaded");
    let health = gateway.send("GET", "/health", "", None);
    assert_eq!((health.status, &health.json()["detail"]), (503, &json!("no model is loaded")));
    check(&gateway.send("GET", "/openapi.json", "", None), 503, "no model is loaded");
    let page = gateway.send("GET", "/", "", None);
    assert!(page.status == 503 && page.body.contains(": no model is loaded."), "{}", page.body);
    assert_eq!(gateway.load("films", "second").status, 201);
    assert_eq!(gateway.classify(&json!({ "text": "four" })).values(), [4.0]);
}

#[test]
fn models_are_replaced_under_traffic() {
    let gateway = ManyModels::start(Options::default(), &["films"]);
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let traffic: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut n = 0;
                    while !is_done.load(Ordering::SeqCst) {
                        assert_eq!(gateway.classify(&json!({ "model": "films", "text": "four" })).values(), [4.0]);
                        n += 1;
                    }
                    n
                })
            })
            .collect();
        for run in ["second", "third", "fourth"] {
            let reply = gateway.load("films", run);
            assert_eq!((reply.status, &reply.json()["labels"]), (200, &json!([run])), "{}", reply.body);
            thread::sleep(Duration::from_millis(50));
        }
        is_done.store(true, Ordering::SeqCst);
        assert!(traffic.into_iter().all(|thread| thread.join().expect("no panic") > 0));
    });
}

#[test]
fn model_that_is_being_loaded_leaves_the_others_alone() {
    let gateway = ManyModels::start(Options::default(), &["films"]);
    thread::scope(|scope| {
        let load = scope.spawn(|| gateway.load("books", "held"));
        let begun = Instant::now();
        let is_loading = || gateway.send("GET", "/health", "", None).json()["models"]["books"] == "loading";
        while !is_loading() && begun.elapsed() < Duration::from_secs(20) {
            thread::sleep(Duration::from_millis(5));
        }
        let unnamed = gateway.classify(&json!({ "text": "four" }));
        let all = gateway.classify(&json!({ "text": "four", "models": "*" }));
        let named = gateway.classify(&json!({ "text": "four", "model": "books" }));
        gateway.is_released.store(true, Ordering::SeqCst);
        assert_eq!(load.join().expect("no panic").status, 201);
        assert_eq!(unnamed.values(), [4.0]);
        assert_eq!(all.json()["results"].as_array().map(Vec::len), Some(1), "{}", all.body);
        check(&named, 503, "");
    });
    check(&gateway.classify(&json!({ "text": "a" })), 422, "expected one of books, films");
}

#[test]
fn run_that_cannot_be_loaded_changes_nothing() {
    let gateway = ManyModels::start(Options::default(), &["films"]);
    for name in ["films", "books"] {
        check(&gateway.load(name, "broken"), 422, "failed to open the run broken");
    }
    check(&gateway.load("a/b", "second"), 422, "use `a/b` as the name of a model");
    check(&gateway.administer("POST", "/v1/models", Some(&json!({ "name": "films" }))), 422, "#/run: it is missing");
    let listed = gateway.send("GET", "/v1/models", "", None).json();
    assert_eq!(listed["models"].as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(listed["models"][0]["labels"], json!(["first"]));
    assert_eq!(gateway.classify(&json!({ "text": "four" })).values(), [4.0]);
    let metrics = || gateway.send("GET", "/metrics", "", None).body;
    assert!(metrics().contains("sepal_task_refused_loads_total 4\n"), "{}", metrics());
    assert_eq!(gateway.load("books", "second").status, 201);
    let body = json!({ "name": "songs", "run": "third" });
    check(&gateway.send("POST", "/v1/models", "", Some(&body)), 401, "Authorization");
    assert!(metrics().contains("sepal_task_refused_loads_total 4\n"), "{}", metrics());
}

#[test]
fn path_of_a_model_offers_no_other_model() {
    let gateway = ManyModels::start(Options::default(), &["films"]);
    let body = json!({ "text": "a", "foo": 1 });
    let detail = |path: &str| {
        let reply = gateway.send("POST", path, "", Some(&body));
        check(&reply, 422, "#/foo: there is no such field");
        reply.json()["detail"].as_str().expect("a detail").to_owned()
    };
    assert!(detail("/classify").ends_with("expected texts or text, model or models"));
    assert!(detail("/v1/models/films/classify").ends_with("expected texts or text"));
}

#[test]
fn models_beyond_their_maximum_are_refused_and_counted() {
    let gateway = ManyModels::start(Options { max_models: 2, ..Options::default() }, &["films"]);
    assert_eq!(gateway.load("books", "second").status, 201);
    check(&gateway.load("songs", "third"), 409, "add the model `songs`: there are 2 models, which is the maximum");
    assert_eq!(gateway.load("books", "third").status, 200, "a replacement is no further model");
    let metrics = gateway.send("GET", "/metrics", "", None).body;
    assert!(metrics.contains("sepal_task_models 2\n"), "{metrics}");
    assert!(metrics.contains("sepal_task_refused_loads_total 1\n"), "{metrics}");
    assert_eq!(gateway.administer("DELETE", "/v1/models/books", None).status, 200);
    assert_eq!(gateway.load("songs", "third").status, 201);
}

#[test]
fn only_administrators_load_and_unload() {
    let token = Some(Token::new("0123456789abcdef").expect("a token"));
    let gateway = ManyModels::start(Options { token, ..Options::default() }, &["films"]);
    let client = "Authorization: Bearer 0123456789abcdef\r\n";
    let body = json!({ "name": "films", "run": "second" });
    for headers in ["", client] {
        check(&gateway.send("POST", "/v1/models", headers, Some(&body)), 401, "Authorization");
        check(&gateway.send("DELETE", "/v1/models/films", headers, None), 401, "Authorization");
    }
    check(&gateway.send("GET", "/v1/models", "", None), 401, "Authorization");
    assert_eq!(gateway.send("GET", "/v1/models", client, None).status, 200);
    assert_eq!(gateway.administer("GET", "/v1/models/films", None).json()["name"], "films");
    let closed = crate::harness::TestGateway::start(Options::default()).wait_until_ready();
    let request = "DELETE /v1/models/length HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    check(&closed.send(request.as_bytes()), 403, "no token for administrators");
    let reply = closed.send(request.replace("DELETE", "PUT").as_bytes());
    check(&reply, 405, "expected GET or DELETE, found PUT");
}
