//! Tests with a real MLflow server, if installed.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use super::*;
use crate::python::{Script, python_with};

/// Process that is killed at the end of the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // The server has worker processes in its own process group.
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
fn real_server_shows_run() {
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

    let read = Script { python: &python, code: include_str!("../read.py") }.json(&[&uri, &"demo"]);
    assert_eq!((&read["status"], &read["name"], &read["runs"]), (&json!("FINISHED"), &json!("demo-1"), &json!(1)));
    assert_eq!(read["history"], json!([[1, 1.0], [2, 0.5], [3, 1.0 / 3.0]]));
    assert_eq!(read["metrics"]["eval/accuracy"], 0.75);
    let params: BTreeMap<String, String> = serde_json::from_value(read["params"].clone()).expect("text");
    assert_eq!((&*params["train.seed"], &*params["trainable"], params["data.template"].len()), ("7", "1234", 900));
    assert_eq!(read["artifacts"], json!({ "manifest.json": "{}" }));
    assert_eq!(read["tags"]["sepal.adapter_digest"], "abc");
}

/// Names with each ASCII character, path segments and other scripts.
fn odd_names() -> Vec<String> {
    let ascii = (0..128_u8).map(char::from);
    let mut names: Vec<String> = ascii.flat_map(|c| [c.to_string(), format!("a{c}b"), format!("{c}a{c}")]).collect();
    let others =
        ".. ... ../a a/.. a/./b /r/news // a//b a/ 差评 好评 é हिन्दी 😀 😁 C++ C# _x2F_ _x_ News news NEWS 𠀀 ١";
    let others = others.split(' ').chain(["", "a\u{0}b", "\u{2028}", "e\u{301}"]);
    names.extend(others.map(str::to_owned));
    names.extend(["a", "b"].map(|end| format!("{}{end}", "long ".repeat(60))));
    names.sort();
    names.dedup();
    names
}

#[test]
fn odd_names_stay_different_on_real_server() {
    let Some(python) = python_with("mlflow") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (_server, uri) = mlflow_server(&python, folder.path());
    let names = odd_names();
    let mut run = run_info(folder.path().join("run"));
    std::fs::create_dir(&run.folder).expect("made");
    run.options.extend(names.iter().map(|name| (format!("x.{name}"), name.repeat(20))));
    run.options.push(("y".to_owned(), "long".repeat(3000)));
    let mut tracker = tracker(&uri, 0.0);
    tracker.start(&run).expect("nothing is left out");
    let metrics: BTreeMap<String, f64> =
        names.iter().enumerate().map(|(i, name)| (format!("f1/{name}"), i as f64)).collect();
    tracker.step(&step(1)).expect("nothing is left out");
    tracker.evaluation(&EvaluationRecord { metrics: metrics.clone(), ..evaluation(1) }).expect("nothing is left out");
    tracker.finish(&manifest()).expect("ended");

    let read = Script { python: &python, code: include_str!("../read.py") }.json(&[&uri, &"demo"]);
    let found: BTreeMap<String, f64> = serde_json::from_value(read["metrics"].clone()).expect("numbers");
    let mut of_labels: Vec<f64> = found.iter().filter(|(key, _)| key.starts_with("eval/f1")).map(|(_, &v)| v).collect();
    of_labels.sort_by(f64::total_cmp);
    assert_eq!(of_labels, (0..names.len()).map(|i| i as f64).collect::<Vec<_>>());
    let params: BTreeMap<String, String> = serde_json::from_value(read["params"].clone()).expect("text");
    assert_eq!(params.len(), run.options.len() + 1);
    assert_eq!(params["y"].len(), 6000);
    eprintln!("{} metrics and {} parameters of odd names arrived", of_labels.len(), params.len());
}
