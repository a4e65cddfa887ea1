//! Runs that are interrupted at any moment and gone on with: they come to the same, to the last bit.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use crate::program::{Bench, Run, Server, signal, static_swarm};

/// Options under which everything that a checkpoint holds matters: several batches to a step, evaluations in between, an
/// optimizer with moments.
const OPTIONS: [&str; 6] = [
    "train.deterministic=true",
    "train.accumulate=2",
    "train.epochs=40",
    "evaluate.every={steps: 5}",
    "checkpoint.every_steps=1",
    "optimizer.with.weight_decay=0.01",
];
const STEPS: usize = 240;
const KILLS: usize = 20;

/// `sepal run pipeline.yaml --resume`, begun.
fn begin(bench: &Bench, sets: &[String]) -> Child {
    let mut command = bench.sepal(&["run", "pipeline.yaml", "--resume", "--set"]);
    let command = command.args(sets).arg("output.folder=killed");
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sepal runs")
}

fn lines(folder: &Path) -> usize {
    let runs = fs::read_dir(folder).into_iter().flatten().flatten();
    let count = |path: PathBuf| fs::read_to_string(path).map_or(0, |text| text.lines().count());
    runs.map(|run| count(run.path().join("metrics.jsonl"))).sum()
}

/// Whether there is a checkpoint.
fn is_saved(folder: &Path) -> bool {
    let runs = fs::read_dir(folder).into_iter().flatten().flatten();
    let saved = runs.flat_map(|run| fs::read_dir(run.path().join("checkpoints")).into_iter().flatten().flatten());
    saved.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("step-"))
}

/// Kills the run at random moments after it has begun to make steps, and lets it end at last. Without a checkpoint it
/// would begin anew, in a folder of its own.
fn run_with_kills(bench: &Bench, sets: &[String], seed: u64) -> Run {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let folder = bench.path("killed");
    let mut kills = 0;
    while kills < KILLS {
        let before = lines(&folder);
        let mut child = begin(bench, sets);
        let started = Instant::now();
        // A line more than before: what was cut off behind the checkpoint is there again.
        while (lines(&folder) <= before || !is_saved(&folder)) && child.try_wait().expect("asked").is_none() {
            assert!(started.elapsed() < Duration::from_secs(120), "no step is made");
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_micros(random.random_range(0..30_000)));
        assert!(child.try_wait().expect("asked").is_none(), "the run was over after {kills} kills");
        signal(&child, "KILL");
        child.wait().expect("it ends");
        kills += 1;
    }
    assert!(begin(bench, sets).wait().expect("it ends").success());
    bench.run_in("killed")
}

/// Everything of a run's records but times and bytes.
fn timeless(run: &Run) -> Vec<Value> {
    let mut records = [run.records("step"), run.records("evaluation")].concat();
    for record in &mut records {
        for key in ["seconds", "bytes_up", "bytes_down"] {
            record.as_object_mut().expect("an object").remove(key);
        }
    }
    records
}

fn check(bench: &Bench, swarm: &[String], seed: u64) {
    let sets: Vec<String> = OPTIONS.iter().map(|set| (*set).to_owned()).chain(swarm.iter().cloned()).collect();
    let straight = bench.run(&sets.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(straight.records("step").len(), STEPS);
    let killed = run_with_kills(bench, &sets, seed);
    assert!(killed.adapter() == straight.adapter(), "the adapters differ");
    assert_eq!(timeless(&killed), timeless(&straight));
    let predictions = |run: &Run| fs::read(run.folder.join("predictions.parquet")).expect("predictions");
    assert!(predictions(&killed) == predictions(&straight), "the predictions differ");
    let (found, expected) = (killed.manifest(), straight.manifest());
    for key in ["metrics", "best", "steps", "train_tokens", "adapter_digest", "status"] {
        assert_eq!(found[key], expected[key], "{key}");
    }
    let resumed = found["resumed_at"].as_array().expect("a list").len();
    assert!(resumed >= 1, "it was resumed");
    let left = fs::read_dir(killed.folder.join("checkpoints")).expect("checkpoints").count();
    assert_eq!(left, 2, "the newest two are kept, and nothing that is half-written");
}

#[test]
fn a_run_that_is_killed_comes_to_the_same_adapter() {
    check(&Bench::new("llama-gqa"), &[], 1);
}

#[test]
fn it_does_so_with_three_servers() {
    let bench = Bench::new("llama-gqa");
    let servers: Vec<Server> =
        ["0:1", "1:2", "2:3"].into_iter().map(|blocks| bench.serve(blocks, "127.0.0.1:0")).collect();
    let swarm = static_swarm(&servers.iter().collect::<Vec<_>>());
    check(&bench, &swarm, 2);
}

/// A run that is stopped in the middle, with its folder and the options that it was begun with.
fn stopped(bench: &Bench, sets: &[&str]) -> Run {
    let mut command = bench.sepal(&["run", "pipeline.yaml", "--set", "train.max_steps=100000"]);
    let child = command.args(sets).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sepal runs");
    crate::processes::wait_for_metrics(&bench.path("runs"), 5);
    signal(&child, "INT");
    assert!(child.wait_with_output().expect("it ends").status.success());
    bench.only_run()
}

/// What `sepal run ARGS` says when it fails.
fn refused(bench: &Bench, args: &[&str]) -> String {
    let output = bench.sepal(&[&["run"], args].concat()).output().expect("sepal runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    text
}

fn newest_checkpoint(run: &Run) -> PathBuf {
    let entries = fs::read_dir(run.folder.join("checkpoints")).expect("checkpoints");
    entries.map(|entry| entry.expect("an entry").path()).max().expect("one")
}

#[test]
fn a_checkpoint_that_cannot_be_used_is_refused_with_a_reason() {
    let bench = Bench::new("llama-gqa");
    let run = stopped(&bench, &[]);
    let (folder, checkpoint) = (run.folder.to_str().expect("a path"), newest_checkpoint(&run));
    let whole = fs::read(&checkpoint).expect("read");
    let (adapter, metrics) = (run.adapter(), fs::read(run.folder.join("metrics.jsonl")).expect("read"));

    let mut damaged = whole.clone();
    let middle = damaged.len() - 100;
    damaged[middle] ^= 1;
    for (content, expected) in [
        (&damaged[..], "its digest is not that of its content"),
        (&whole[..whole.len() / 2], "not a whole safetensors file"),
        (&adapter[..], "it was not written by this version, or is something else"),
    ] {
        fs::write(&checkpoint, content).expect("written");
        let text = refused(&bench, &["--resume", folder]);
        assert!(text.contains(expected) && text.contains("checkpoints/step-"), "{text}");
        assert!(run.adapter() == adapter, "the run is as it was");
        assert!(fs::read(run.folder.join("metrics.jsonl")).expect("read") == metrics, "the run is as it was");
    }
    fs::write(&checkpoint, &whole).expect("written");

    let text = refused(&bench, &["--resume", folder, "--set", "loader.batch_size=8"]);
    assert!(text.contains("`loader.batch_size` was 16, is 8"), "{text}");
    let rows = fs::read_to_string(bench.path("train.csv")).expect("rows");
    let fewer: Vec<&str> = rows.lines().take(rows.lines().count() - 1).collect();
    fs::write(bench.path("train.csv"), fewer.join("\n")).expect("written");
    let text = refused(&bench, &["--resume", folder]);
    assert!(text.contains("it was begun with other training rows; its checkpoint is sound"), "{text}");
}

#[test]
fn a_run_is_resumed_by_its_folder_alone_and_by_one_process_alone() {
    let bench = Bench::new("llama-gqa");
    let run = stopped(&bench, &[]);
    let before = run.records("step").len();
    let folder = run.folder.to_str().expect("a path");
    let mut command = bench.sepal(&["run", "--resume", folder]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sepal runs");
    let started = Instant::now();
    while run.records("step").len() < before + 3 && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let text = refused(&bench, &["--resume", folder]);
    assert!(text.contains("another process is at work on this run"), "{text}");
    child.kill().expect("killed");
    child.wait().expect("it ends");

    let text = refused(&bench, &["--resume", "model"]);
    assert!(text.contains("failed to read model/pipeline.yaml"), "{text}");
}
