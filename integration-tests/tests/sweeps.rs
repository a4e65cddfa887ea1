//! Sweeps: runs that share one server equal single runs, and a killed sweep goes on as if nothing had happened.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use sepal_integration_tests::fixture::{Fixture, Run, failure_messages, signal};
use serde_json::Value;

/// Three rates and three seeds.
const GRID: [&str; 3] =
    ["train.deterministic=true", "sweep.optimizer.with.lr=[1e-3, 1e-2, 3e-2]", "sweep.train.seed=[0..3]"];

/// Returns the JSON of a sweep that ends without failed runs.
fn sweep(fixture: &Fixture, sets: &[&str]) -> Value {
    let mut command = fixture.sepal(&["sweep", "pipeline.yaml", "--json", "--set"]);
    let output = command.args(sets).output().expect("sepal runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn folder(fixture: &Fixture, result: &Value) -> PathBuf {
    fixture.path(result["folder"].as_str().expect("a folder"))
}

fn run_of(sweep: &Path, run: &Value) -> Run {
    Run { folder: sweep.join(run["folder"].as_str().expect("a name")), stdout: String::new() }
}

/// Adapters of all runs by the names of their folders.
fn adapters(sweep: &Path, result: &Value) -> BTreeMap<String, Vec<u8>> {
    let runs = result["runs"].as_array().expect("runs").iter();
    runs.map(|run| (run["folder"].to_string(), run_of(sweep, run).adapter())).collect()
}

fn states(result: &Value) -> Vec<&str> {
    result["runs"].as_array().expect("runs").iter().map(|run| run["state"].as_str().expect("a state")).collect()
}

#[test]
fn runs_of_a_sweep_equal_single_runs_and_the_best_one_can_be_repeated() {
    let fixture = Fixture::new("llama-gqa");
    let result = sweep(&fixture, &[&GRID[..], &["train.epochs=2"]].concat());
    let folder = folder(&fixture, &result);
    assert_eq!(states(&result), ["finished"; 9]);
    let runs = result["runs"].as_array().expect("runs");
    for (index, run) in runs.iter().enumerate() {
        let (rate, seed) = (["1e-3", "1e-2", "3e-2"][index / 3], index % 3);
        let (rate, seed) = (format!("optimizer.with.lr={rate}"), format!("train.seed={seed}"));
        let single = fixture.run(&["train.deterministic=true", "train.epochs=2", &rate, &seed]);
        let member = run_of(&folder, run);
        assert!(member.adapter() == single.adapter(), "{rate}, {seed}");
        assert_eq!(member.losses(), single.losses(), "{rate}, {seed}");
        assert_eq!(member.manifest()["metrics"], single.manifest()["metrics"], "{rate}, {seed}");
    }

    let groups = result["groups"].as_array().expect("groups");
    assert_eq!(groups.len(), 3, "runs that differ in seeds are one group");
    assert!(groups.iter().all(|group| group["n"] == 3 && group["deviation"].is_number()));
    let means: Vec<f64> = groups.iter().map(|group| group["mean"].as_f64().expect("a mean")).collect();
    assert!(means.is_sorted_by(|a, b| a >= b), "{means:?}");
    let page = fs::read_to_string(folder.join("report.html")).expect("a page");
    assert!(page.contains("optimizer.with.lr 0.03"), "the page lists the settings");

    let best = result["best"]["pipeline"].as_str().expect("a pipeline");
    let output = fixture.sepal(&["run", best, "--set", "output.folder=repeated"]).output().expect("sepal runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let first = Run { folder: folder.join(result["best"]["run"].as_str().expect("a run")), stdout: String::new() };
    assert!(fixture.run_in("repeated").adapter() == first.adapter(), "best.yaml repeats the best run");
}

/// Kills a sweep after `lines` records of its runs, with some luck in the middle of several of them.
fn kill_after(fixture: &Fixture, sets: &[&str], lines: usize) {
    let mut command = fixture.sepal(&["sweep", "pipeline.yaml", "--parallel", "2", "--set"]);
    let child = command.args(sets).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut child = child.expect("sepal runs");
    let started = Instant::now();
    while recorded(&fixture.path("killed")) < lines && child.try_wait().expect("asked").is_none() {
        assert!(started.elapsed() < Duration::from_secs(120), "no step is made");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(child.try_wait().expect("asked").is_none(), "the sweep was over");
    signal(&child, "KILL");
    child.wait().expect("it ends");
}

/// Lines of all records below a folder with sweeps.
fn recorded(parent: &Path) -> usize {
    let children =
        |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    let runs = children(parent).into_iter().flat_map(|sweep| children(&sweep));
    runs.map(|run| fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count())).sum()
}

/// Compares a sweep that is killed and resumed with one without an interruption.
fn check_kill(fixture: &Fixture, sets: &[&str], lines: usize) -> [Value; 2] {
    let straight = sweep(fixture, sets);
    let killed = [sets, &["output.folder=killed"]].concat();
    kill_after(fixture, &killed, lines);
    let resumed = fixture.sepal(&["sweep", "pipeline.yaml", "--resume", "--json", "--set"]).args(&killed).output();
    let resumed = resumed.expect("sepal runs");
    let messages = String::from_utf8_lossy(&resumed.stderr);
    assert!(resumed.status.success() && messages.contains("resuming killed/tiny-sweep-"), "{messages}");
    let resumed: Value = serde_json::from_slice(&resumed.stdout).expect("JSON");
    assert_eq!(states(&resumed), states(&straight));
    let (found, expected) = (folder(fixture, &resumed), folder(fixture, &straight));
    assert!(adapters(&found, &resumed) == adapters(&expected, &straight), "the adapters differ");
    let value = |run: &Value| (run["value"].clone(), run["measured"].clone());
    let values = |result: &Value| result["runs"].as_array().expect("runs").iter().map(value).collect::<Vec<_>>();
    assert_eq!(values(&resumed), values(&straight));
    [straight, resumed]
}

#[test]
fn killed_sweep_resumes_to_the_same_result() {
    let fixture = Fixture::new("llama-gqa");
    let [_, resumed] = check_kill(&fixture, &[&GRID[..], &["checkpoint.every_steps=1"]].concat(), 150);
    // Nothing is left to do: the folder is read, and no run changes.
    let folder = folder(&fixture, &resumed);
    let before = adapters(&folder, &resumed);
    let args = ["sweep", "--resume", resumed["folder"].as_str().expect("a folder"), "--json"];
    let again = fixture.sepal(&args).output().expect("sepal runs");
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert!(adapters(&folder, &serde_json::from_slice(&again.stdout).expect("JSON")) == before);

    // A finished run that was removed is trained again, and has the same adapter.
    fs::remove_dir_all(run_of(&folder, &resumed["runs"][1]).folder).expect("removed");
    let again = fixture.sepal(&args).output().expect("sepal runs");
    let messages = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.success() && messages.contains("is not there any more"), "{messages}");
    assert!(adapters(&folder, &serde_json::from_slice(&again.stdout).expect("JSON")) == before);
}

#[test]
fn halving_stops_runs_that_fall_behind_and_resumes_to_the_same_selections() {
    let fixture = Fixture::new("llama-gqa");
    let halving = ["checkpoint.every_steps=1", "sweep.halving={ factor: 3, min_steps: 6 }"];
    let [straight, _] = check_kill(&fixture, &[&GRID[..], &halving].concat(), 40);
    let (folder, runs) = (folder(&fixture, &straight), straight["runs"].as_array().expect("runs"));
    let steps = |run: &Value| run_of(&folder, run).manifest()["steps"].as_u64().expect("steps");
    let mut counts: Vec<u64> = runs.iter().map(steps).collect();
    counts.sort_unstable();
    assert_eq!(counts, [6, 6, 6, 6, 6, 6, 18, 18, 60], "9, 3 and 1 runs");
    // Pauses change nothing in the run that is left: neither its steps nor its schedule.
    let last = runs.iter().find(|run| run["state"] == "finished").expect("one run finishes");
    let set = |key: &str| format!("{key}={}", last["settings"][key]);
    let (rate, seed) = (set("optimizer.with.lr"), set("train.seed"));
    let single = fixture.run(&["train.deterministic=true", &rate, &seed]);
    assert!(run_of(&folder, last).adapter() == single.adapter(), "{rate}, {seed}");
    assert_eq!(straight["best"]["run"], last["folder"]);
}

#[test]
fn runs_that_all_fail_before_a_selection_are_tried_again() {
    let fixture = Fixture::new("llama-gqa");
    let halving = "sweep.halving={ factor: 2, min_steps: 2 }";
    let sets = ["train.max_steps=4", "sweep.data.train=[one.csv, two.csv]", halving];
    let messages = failure_messages(fixture.sepal(&[&["sweep", "pipeline.yaml", "--set"][..], &sets].concat()));
    assert!(messages.contains("failed to finish 2 of 2 runs (`--resume` tries them again)"), "{messages}");
    for name in ["one.csv", "two.csv"] {
        fs::copy(fixture.path("train.csv"), fixture.path(name)).expect("copied");
    }
    let resumed = fixture.sepal(&["sweep", "pipeline.yaml", "--resume", "--json", "--set"]).args(sets).output();
    let resumed = resumed.expect("sepal runs");
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    let resumed: Value = serde_json::from_slice(&resumed.stdout).expect("JSON");
    let mut found = states(&resumed);
    found.sort_unstable();
    assert_eq!(found, ["finished", "stopped"]);
}

#[test]
fn resume_with_other_rows_is_refused_before_a_run_begins() {
    let fixture = Fixture::new("llama-gqa");
    let done = sweep(&fixture, &["train.max_steps=2", "sweep.train.seed=[0..3]"]);
    let folder = folder(&fixture, &done);
    // As if the third run had not begun.
    let path = folder.join("sweep.json");
    let read = || -> Value { serde_json::from_slice(&fs::read(&path).expect("a record")).expect("JSON") };
    let mut record = read();
    let last = folder.join(record["runs"][2]["folder"].as_str().expect("a name"));
    record["runs"][2]["state"] = "waiting".into();
    fs::write(&path, record.to_string()).expect("written");
    fs::remove_dir_all(&last).expect("removed");
    let whole = fs::read_to_string(fixture.path("train.csv")).expect("rows");
    let fewer: Vec<&str> = whole.lines().take(97).collect();
    fs::write(fixture.path("train.csv"), fewer.join("\n")).expect("written");

    let resume = ["sweep", "--resume", done["folder"].as_str().expect("a folder"), "--json"];
    let messages = failure_messages(fixture.sepal(&resume));
    for expected in ["the training rows of 003", "found 96 rows (", "but run 001-seed=0 has 192 rows ("] {
        assert!(messages.contains(expected), "{messages}");
    }
    assert!(!last.exists(), "no run begins");
    assert_eq!(read()["runs"], record["runs"]);

    fs::write(fixture.path("train.csv"), whole).expect("written");
    let output = fixture.sepal(&resume).output().expect("sepal runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(states(&serde_json::from_slice(&output.stdout).expect("JSON")), ["finished"; 3]);
}

#[test]
fn failed_run_is_named_and_the_others_finish() {
    let fixture = Fixture::new("llama-gqa");
    let sets = ["train.epochs=1", "sweep.data.train=[train.csv, missing.csv]"];
    let mut command = fixture.sepal(&["sweep", "pipeline.yaml", "--json", "--set"]);
    let output = command.args(sets).output().expect("sepal runs");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{messages}");
    assert!(messages.contains("error: failed to finish 1 of 2 runs"), "{messages}");
    assert!(messages.contains("002-train=missing.csv: failed to fetch the data"), "{messages}");
    let result: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(states(&result), ["finished", "failed"]);
    assert_eq!(result["best"]["run"], "001-train=train.csv");
}

#[test]
fn file_with_a_sweep_is_validated_and_refused_as_one_run() {
    let fixture = Fixture::new("llama-gqa");
    let pipeline = fs::read_to_string(fixture.path("pipeline.yaml")).expect("a pipeline");
    fs::write(fixture.path("sweep.yaml"), format!("{pipeline}sweep: {{ train.seed: [0..2] }}\n")).expect("written");
    let text = failure_messages(fixture.sepal(&["run", "sweep.yaml"]));
    assert!(text.contains("start them by `sepal sweep sweep.yaml`"), "{text}");
    let output = fixture.sepal(&["validate", "sweep.yaml"]).output().expect("sepal runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("# sweep of 2 runs, with 2 seeds\n#   1: train.seed 0\n#   2: train.seed 1\n"), "{text}");

    fs::write(fixture.path("over.yaml"), "train.seed: [7]\nloader.batch_size: [8, many]\n").expect("written");
    let text = failure_messages(fixture.sepal(&["sweep", "sweep.yaml", "--over", "over.yaml"]));
    assert!(text.contains("over.yaml:2:24: loader.batch_size: expected a whole number"), "{text}");
    assert!(text.contains("(run 2: train.seed 7, loader.batch_size many)"), "{text}");
    assert!(!fixture.path("runs").exists(), "no run starts");
}
