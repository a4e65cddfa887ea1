//! Runs that are interrupted at any moment and resumed: the result is bit-exact.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sepal_integration_tests::fixture::{Fixture, Run, Server, failure_messages, signal, static_swarm};
use serde_json::Value;

/// Options with which all content of a checkpoint matters: several batches per step, evaluations in between, an
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

/// Starts `sepal run pipeline.yaml --resume`.
fn begin(fixture: &Fixture, sets: &[String]) -> Child {
    let mut command = fixture.sepal(&["run", "pipeline.yaml", "--resume", "--set"]);
    let command = command.args(sets).arg("output.folder=killed");
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sepal runs")
}

fn lines(folder: &Path) -> usize {
    let runs = fs::read_dir(folder).into_iter().flatten().flatten();
    let count = |path: PathBuf| fs::read_to_string(path).map_or(0, |text| text.lines().count());
    runs.map(|run| count(run.path().join("metrics.jsonl"))).sum()
}

fn is_saved(folder: &Path) -> bool {
    let runs = fs::read_dir(folder).into_iter().flatten().flatten();
    let saved = runs.flat_map(|run| fs::read_dir(run.path().join("checkpoints")).into_iter().flatten().flatten());
    saved.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("step-"))
}

/// Kills the run at random moments after its first steps, and lets it finish at last. Without a checkpoint it would
/// start again in a new folder.
fn run_with_kills(fixture: &Fixture, sets: &[String], seed: u64) -> Run {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let folder = fixture.path("killed");
    let mut kills = 0;
    while kills < KILLS {
        let before = lines(&folder);
        let mut child = begin(fixture, sets);
        let started = Instant::now();
        // One more line than before: the lines after the checkpoint were repeated.
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
    assert!(begin(fixture, sets).wait().expect("it ends").success());
    fixture.run_in("killed")
}

fn records_without_times(run: &Run) -> Vec<Value> {
    let mut records = [run.records("step"), run.records("evaluation")].concat();
    for record in &mut records {
        for key in ["seconds", "bytes_up", "bytes_down"] {
            record.as_object_mut().expect("an object").remove(key);
        }
    }
    records
}

fn check(fixture: &Fixture, swarm: &[String], seed: u64) {
    let sets: Vec<String> = OPTIONS.iter().map(|set| (*set).to_owned()).chain(swarm.iter().cloned()).collect();
    let straight = fixture.run(&sets.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(straight.records("step").len(), STEPS);
    let killed = run_with_kills(fixture, &sets, seed);
    assert_equal(&killed, &straight);
}

fn assert_equal(killed: &Run, straight: &Run) {
    assert!(killed.adapter() == straight.adapter(), "the adapters differ");
    assert_eq!(records_without_times(killed), records_without_times(straight));
    let predictions = |run: &Run| fs::read(run.folder.join("predictions.parquet")).expect("predictions");
    assert!(predictions(killed) == predictions(straight), "the predictions differ");
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
fn resume_after_kill_is_bit_exact() {
    check(&Fixture::new("llama-gqa"), &[], 1);
}

#[test]
fn resume_after_kill_with_three_servers_is_bit_exact() {
    let fixture = Fixture::new("llama-gqa");
    let servers: Vec<Server> =
        ["0:1", "1:2", "2:3"].into_iter().map(|blocks| fixture.serve(blocks, "127.0.0.1:0")).collect();
    let swarm = static_swarm(&servers.iter().collect::<Vec<_>>());
    check(&fixture, &swarm, 2);
}

/// Runs until no file can be larger, as on a full disk, and returns the error text.
fn run_on_full_disk(fixture: &Fixture, sets: &[String], limit_kb: usize) -> String {
    // A shell's block has 512 bytes. A write beyond the limit is an error because the signal is ignored.
    let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", 2 * limit_kb);
    let mut command = fixture.sepal(&["run", "pipeline.yaml", "--resume", "--set"]);
    command.args(sets).arg("output.folder=killed");
    let mut shell = Command::new("sh");
    shell.current_dir(fixture.folder.path()).args(["-c", &script, "sh"]).arg(command.get_program());
    shell.args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    failure_messages(shell)
}

#[test]
fn resume_after_full_disk_is_bit_exact() {
    let fixture = Fixture::new("llama-gqa");
    let straight = fixture.run(&OPTIONS);
    let sets = OPTIONS.map(str::to_owned);
    // More than a checkpoint, less than the records.
    for limit_kb in [24, 31, 38, 45] {
        let text = run_on_full_disk(&fixture, &sets, limit_kb);
        assert!(text.contains("metrics.jsonl") && !text.contains("panicked"), "{text}");
    }
    assert!(begin(&fixture, &sets).wait().expect("it ends").success());
    assert_equal(&fixture.run_in("killed"), &straight);
}

/// Returns a run that is stopped in the middle.
fn stopped(fixture: &Fixture, sets: &[&str]) -> Run {
    let mut command = fixture.sepal(&["run", "pipeline.yaml", "--set", "train.max_steps=100000"]);
    let child = command.args(sets).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sepal runs");
    crate::server_processes::wait_for_metrics(&fixture.path("runs"), 5);
    signal(&child, "INT");
    assert!(child.wait_with_output().expect("it ends").status.success());
    fixture.only_run()
}

/// Returns the error text of `sepal run ARGS`.
fn refused(fixture: &Fixture, args: &[&str]) -> String {
    failure_messages(fixture.sepal(&[&["run"], args].concat()))
}

fn newest_checkpoint(run: &Run) -> PathBuf {
    let entries = fs::read_dir(run.folder.join("checkpoints")).expect("checkpoints");
    entries.map(|entry| entry.expect("an entry").path()).max().expect("one")
}

#[test]
fn resume_from_an_unusable_checkpoint_is_refused_with_a_reason() {
    let fixture = Fixture::new("llama-gqa");
    let run = stopped(&fixture, &[]);
    let (folder, checkpoint) = (run.folder.to_str().expect("a path"), newest_checkpoint(&run));
    let complete = fs::read(&checkpoint).expect("read");
    let (adapter, metrics) = (run.adapter(), fs::read(run.folder.join("metrics.jsonl")).expect("read"));

    let mut damaged = complete.clone();
    let middle = damaged.len() - 100;
    damaged[middle] ^= 1;
    for (content, expected) in [
        (&damaged[..], "its digest is not that of its content"),
        (&complete[..complete.len() / 2], "not a complete safetensors file"),
        (&adapter[..], "it was not written by this version, or is something else"),
    ] {
        fs::write(&checkpoint, content).expect("written");
        let text = refused(&fixture, &["--resume", folder]);
        assert!(text.contains(expected) && text.contains("checkpoints/step-"), "{text}");
        assert!(run.adapter() == adapter, "the run is as it was");
        assert!(fs::read(run.folder.join("metrics.jsonl")).expect("read") == metrics, "the run is as it was");
    }
    fs::write(&checkpoint, &complete).expect("written");

    let text = refused(&fixture, &["--resume", folder, "--set", "loader.batch_size=8"]);
    assert!(text.contains("`loader.batch_size` was 16, is 8"), "{text}");
    let rows = fs::read_to_string(fixture.path("train.csv")).expect("rows");
    let fewer: Vec<&str> = rows.lines().take(rows.lines().count() - 1).collect();
    fs::write(fixture.path("train.csv"), fewer.join("\n")).expect("written");
    let text = refused(&fixture, &["--resume", folder]);
    assert!(text.contains("it was begun with other training rows; its checkpoint is sound"), "{text}");
}

#[test]
fn resume_needs_only_the_folder_and_locks_it() {
    let fixture = Fixture::new("llama-gqa");
    let run = stopped(&fixture, &[]);
    let before = run.records("step").len();
    let folder = run.folder.to_str().expect("a path");
    let mut command = fixture.sepal(&["run", "--resume", folder]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sepal runs");
    let started = Instant::now();
    while run.records("step").len() < before + 3 && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let text = refused(&fixture, &["--resume", folder]);
    assert!(text.contains("another process uses this run"), "{text}");
    child.kill().expect("killed");
    child.wait().expect("it ends");

    let text = refused(&fixture, &["--resume", "model"]);
    assert!(text.contains("failed to read model/pipeline.yaml"), "{text}");
}
