//! Tests with servers that refuse entries, or everything for a while.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::server::Request;
use super::*;

/// Refusal of an entry: status and message.
type Refusal = Option<(u16, &'static str)>;

/// Answers like MLflow, and refuses each batch with an entry that `refuses`.
fn refusing(refuses: impl Fn(&Value) -> Refusal + Send + 'static) -> impl FnMut(&Request) -> (u16, Value) + Send {
    move |request| {
        let refusal = if request.line.contains("log-batch") { first_refusal(&request.json(), &refuses) } else { None };
        match refusal {
            Some((status, message)) => (status, json!({ "error_code": "ERROR", "message": message })),
            None => mlflow(request),
        }
    }
}

fn first_refusal(batch: &Value, refuses: &impl Fn(&Value) -> Refusal) -> Refusal {
    let items = ["metrics", "params", "tags"].into_iter().filter_map(|kind| batch[kind].as_array()).flatten();
    items.into_iter().find_map(refuses)
}

/// Keys of this kind that a server accepted which `refuses` some.
fn accepted(server: &Server, kind: &str, refuses: impl Fn(&Value) -> Refusal) -> Vec<String> {
    let items = server.accepted(kind, |batch| first_refusal(batch, &refuses).is_none());
    items.iter().filter_map(|item| item["key"].as_str().map(str::to_owned)).collect()
}

/// Rule of MLflow's `validation.py`: word characters and some others, and a path in normal form.
fn mlflow_refusal(item: &Value) -> Refusal {
    let key = item["key"].as_str().expect("a key");
    let is_known = key.chars().all(|c| crate::names::is_word(c) || "/.- :".contains(c));
    let is_normal = key.split('/').all(|segment| !["", ".", ".."].contains(&segment)) && !key.starts_with("..");
    let is_short = key.chars().count() <= 250 && item["value"].as_str().is_none_or(|text| text.chars().count() <= 6000);
    (!(is_known && is_normal && is_short)).then_some((400, "invalid name"))
}

fn containing(text: &'static str, status: u16) -> impl Fn(&Value) -> Refusal + Copy {
    move |item| item["key"].as_str().is_some_and(|key| key.contains(text)).then_some((status, "no"))
}

fn with_labels(step: u64, labels: &[&str]) -> EvaluationRecord {
    let metrics: BTreeMap<String, f64> = labels.iter().map(|label| (format!("f1/{label}"), 0.5)).collect();
    EvaluationRecord { metrics, ..evaluation(step) }
}

struct TrackedRun {
    tracker: Mlflow,
    server: Server,
    folder: tempfile::TempDir,
}

fn track(answer: impl FnMut(&Request) -> (u16, Value) + Send + 'static) -> TrackedRun {
    let (folder, server) = (tempfile::tempdir().expect("a folder"), Server::start(answer));
    let mut tracker = tracker(&server.uri, 0.0);
    tracker.start(&run_info(folder.path().to_owned())).expect("begun");
    TrackedRun { tracker, server, folder }
}

const LABELS: [&str; 12] =
    ["/r/news", "_r/news", "..", ".", "", "a//b", "a/", "差评", "好评", "C++", "C--", "a long name, and more of it"];

#[test]
fn refused_names_are_escaped() {
    let TrackedRun { mut tracker, server, folder: _folder } = track(refusing(mlflow_refusal));
    for i in 1..=4 {
        tracker.step(&step(i)).expect("sent");
        tracker.evaluation(&with_labels(i, &LABELS)).expect("sent");
    }
    let keys = accepted(&server, "metrics", mlflow_refusal);
    assert_eq!(keys.iter().filter(|key| *key == "train/loss").count(), 4);
    let of_labels: Vec<&String> = keys.iter().filter(|key| key.starts_with("eval/f1")).collect();
    assert_eq!(of_labels.len(), 4 * LABELS.len());
    for key in ["eval/f1/_x2F_r/news", "eval/f1/_x2E_.", "eval/f1/差评", "eval/f1/好评", "eval/f1/_r/news"] {
        assert_eq!(of_labels.iter().filter(|found| **found == key).count(), 4, "{key}");
    }
    assert_eq!(server.requests_at("log-batch").len(), 9, "one request for each flush, and one for the parameters");
}

#[test]
fn refused_entry_is_dropped_and_reported_once() {
    let refuses = containing("news", 400);
    let TrackedRun { mut tracker, server, folder: _folder } = track(refusing(refuses));
    tracker.step(&step(1)).expect("sent");
    let error = tracker.evaluation(&with_labels(1, &["news", "other", "more"])).expect_err("one is left out");
    assert_eq!(
        error.to_string(),
        "record the metrics `eval/f1/news` on the MLflow server, which refuses it: dropped for the rest of the run"
    );
    let before = server.requests_at("log-batch").len();
    tracker.step(&step(2)).expect("sent");
    tracker.evaluation(&with_labels(2, &["news", "other", "more"])).expect("said once");
    assert_eq!(server.requests_at("log-batch").len(), before + 2);
    tracker.finish(&manifest()).expect("ended");
    let keys = accepted(&server, "metrics", refuses);
    for key in ["train/loss", "eval/loss", "eval/f1/other", "eval/f1/more"] {
        assert_eq!(keys.iter().filter(|found| **found == key).count(), 2, "{key}");
    }
}

#[test]
fn stricter_server_gets_plain_names() {
    let refuses = |item: &Value| {
        let is_odd = |c: char| !c.is_ascii() || c == ':';
        item["key"].as_str().is_some_and(|key| key.contains(is_odd)).then_some((400, "invalid name"))
    };
    let TrackedRun { mut tracker, server, folder: _folder } = track(refusing(refuses));
    for i in 1..=2 {
        tracker.step(&step(i)).expect("sent");
        tracker.evaluation(&with_labels(i, &["a:b", "ab", "差评", "好评"])).expect("sent");
    }
    let keys = accepted(&server, "metrics", refuses);
    for key in ["eval/f1/a_x3A_b", "eval/f1/ab", "eval/f1/_x5DEE__x8BC4_", "eval/f1/_x597D__x8BC4_"] {
        assert_eq!(keys.iter().filter(|found| **found == key).count(), 2, "{key} among {keys:?}");
    }
}

#[test]
fn older_server_gets_shorter_parameters() {
    for limit in [250, 500, 6000] {
        let refuses = move |item: &Value| {
            item["value"].as_str().is_some_and(|text| text.chars().count() > limit).then_some((400, "too long"))
        };
        let (folder, server) = (tempfile::tempdir().expect("a folder"), Server::start(refusing(refuses)));
        let mut run = run_info(folder.path().to_owned());
        run.options.push(("data.template".to_owned(), "ü".repeat(7000)));
        run.options.push(("data.Text".to_owned(), "short".to_owned()));
        tracker(&server.uri, 0.0).start(&run).expect("begun");
        let params = server.accepted("params", |batch| first_refusal(batch, &refuses).is_none());
        let value =
            |key: &str| params.iter().find(|param| param["key"] == key).and_then(|param| param["value"].as_str());
        assert_eq!(value("data.template").map(|text| text.chars().count()), Some(limit));
        assert_eq!(value("data.Text"), Some("short"));
        assert_eq!(params.len(), run.options.len() + 1);
    }
}

#[test]
fn requests_stay_below_byte_limit() {
    let (folder, server) = (tempfile::tempdir().expect("a folder"), Server::start(mlflow));
    let mut run = run_info(folder.path().to_owned());
    run.options.extend((0..120).map(|i| (format!("data.x{i}"), "評".repeat(6000))));
    tracker(&server.uri, 0.0).start(&run).expect("begun");
    let batches = server.requests_at("log-batch");
    assert!(batches.iter().all(|batch| batch.body.len() < 1_000_000), "{}", batches.len());
    assert_eq!(server.accepted("params", |_| true).len(), run.options.len() + 1);
}

#[test]
fn refusing_server_gets_entries_later() {
    for status in [400, 401, 429, 500, 503] {
        let now = Arc::new(AtomicU16::new(200));
        let seen = Arc::clone(&now);
        let refuses = move |_: &Value| Some((seen.load(Ordering::Relaxed), "no")).filter(|&(status, _)| status != 200);
        let TrackedRun { mut tracker, server, folder: _folder } = track(refusing(refuses));
        now.store(status, Ordering::Relaxed);
        tracker.evaluation(&with_labels(1, &["a", "b"])).expect_err("it takes nothing");
        assert!(server.requests_at("log-batch").len() < 30, "{}", server.requests_at("log-batch").len());
        now.store(200, Ordering::Relaxed);
        let before = server.requests_at("log-batch").len();
        tracker.evaluation(&with_labels(2, &["a", "b"])).expect("it takes all");
        let batches = &server.requests_at("log-batch")[before..];
        let sent: Vec<Value> = batches.iter().map(|batch| batch.json()["metrics"].clone()).collect();
        let of_a = sent.iter().flat_map(keys).filter(|&key| key == "eval/f1/a").count();
        assert_eq!((sent.len(), of_a), (1, 2), "after {status}");
    }
}

#[test]
fn failing_entry_is_dropped_after_rounds() {
    let refuses = containing("news", 500);
    let TrackedRun { mut tracker, server, folder: _folder } = track(refusing(refuses));
    let errors: Vec<String> = (1..=4)
        .map(|i| match tracker.evaluation(&with_labels(i, &["news", "other"])) {
            Ok(()) => String::new(),
            Err(error) => error.to_string().split(':').next().unwrap_or_default().to_owned(),
        })
        .collect();
    let failure = "MLflow refused runs/log-batch";
    let dropped = "record the metrics `eval/f1/news` on the MLflow server, which refuses it";
    assert_eq!(errors, [failure, failure, dropped, ""]);
    assert_eq!(accepted(&server, "metrics", refuses).iter().filter(|key| *key == "eval/f1/other").count(), 4);
}

#[test]
fn unreachable_server_gets_run_later() {
    let addr = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let mut tracker = tracker(&format!("http://{addr}"), 0.0);
    tracker.start(&run_info(folder.path().to_owned())).expect_err("nobody answers");
    assert!(tracker.retries_start());
    (1..=3).for_each(|i| tracker.step(&step(i)).expect("kept"));
    let server = Server::start_at(&addr, mlflow);
    tracker.evaluation(&evaluation(3)).expect("sent");
    tracker.finish(&manifest()).expect("ended");
    let metrics = server.accepted("metrics", |_| true);
    assert_eq!(metrics.iter().filter(|metric| metric["key"] == "train/loss").count(), 3);
    assert!(server.accepted("params", |_| true).iter().any(|param| param["key"] == "train.seed"));
    assert_eq!(server.requests_at("runs/create").len(), 1);
}

#[test]
fn unsent_numbers_are_counted_at_end() {
    let addr = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let mut tracker = tracker(&format!("http://{addr}"), 0.0);
    tracker.start(&run_info(folder.path().to_owned())).expect_err("nobody answers");
    tracker.step(&step(1)).expect("kept");
    let n = step_scalars(&step(1)).len();
    let error = tracker.finish(&manifest()).expect_err("nobody answers").to_string();
    assert!(error.starts_with(&format!("send {n} numbers to the MLflow server before the run ended")), "{error}");
}

#[test]
fn unsent_parameters_are_sent_on_resume() {
    let now = Arc::new(AtomicU16::new(403));
    let seen = Arc::clone(&now);
    let refuses = move |_: &Value| Some((seen.load(Ordering::Relaxed), "no")).filter(|&(status, _)| status != 200);
    let (folder, server) = (tempfile::tempdir().expect("a folder"), Server::start(refusing(refuses)));
    let run = run_info(folder.path().to_owned());
    tracker(&server.uri, 0.0).start(&run).expect_err("no parameters");
    now.store(200, Ordering::Relaxed);
    tracker(&server.uri, 0.0).start(&run).expect("gone on");
    tracker(&server.uri, 0.0).start(&run).expect("gone on again");
    assert_eq!(server.requests_at("runs/create").len(), 1);
    let batches = server.requests_at("log-batch");
    assert_eq!(batches.iter().filter(|batch| !batch.json()["params"].is_null()).count(), 2);
}

#[test]
fn deleted_run_gets_no_requests() {
    let mut is_deleted = false;
    let TrackedRun { mut tracker, server, folder } = track(move |request| {
        let info = json!({ "run": { "info": { "lifecycle_stage": "deleted" } } });
        match request.line.as_str() {
            line if line.contains("runs/get") => (200, info),
            line if line.contains("log-batch") && is_deleted => (400, json!({ "message": "must be active" })),
            line if line.contains("runs/update") && is_deleted => (400, json!({ "message": "must be active" })),
            line => {
                // The server accepts nothing after the parameters.
                is_deleted |= line.contains("log-batch");
                mlflow(request)
            }
        }
    });
    let error = tracker.step(&step(1)).expect_err("deleted").to_string();
    assert_eq!(error, "write to the run r1: it was deleted on the MLflow server, and nothing more is sent");
    let before = server.requests().len();
    tracker.evaluation(&evaluation(1)).expect("said once");
    tracker.finish(&manifest()).expect("said once");
    assert_eq!(server.requests().len(), before);
    // A resumed run becomes a new run on the server.
    let _ = self::tracker(&server.uri, 0.0).start(&run_info(folder.path().to_owned()));
    assert_eq!(server.requests_at("runs/create").len(), 2);
}
