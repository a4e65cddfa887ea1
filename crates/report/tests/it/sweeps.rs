//! Pages of sweeps.

use std::fs;
use std::path::Path;

use sepal_report::{Statistics, Sweep, sweep_page};
use sepal_track::{BestEvaluation, Manifest, MemberRecord, MemberState, SettingRecord, Status, SweepRecord};
use serde_json::{Value, json};

use crate::fixture::{HOSTILE, RunFixture, manifest};
use crate::{parse, row, save_page, texts};

fn setting(key: &str, value: Value) -> SettingRecord {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    SettingRecord { key: key.to_owned(), value, text, is_seed: key.ends_with("seed") }
}

/// Writes a run with this accuracy and returns its record.
fn member(folder: &Path, name: &str, lr: &str, seed: u64, accuracy: Option<f64>) -> MemberRecord {
    let mut record = MemberRecord {
        folder: name.to_owned(),
        settings: vec![setting("optimizer.with.lr", json!(lr)), setting("train.seed", json!(seed))],
        digest: String::new(),
        state: MemberState::Finished,
        error: None,
        measured: Vec::new(),
    };
    match accuracy {
        Some(value) => {
            let mut manifest = manifest(name);
            let metric = "accuracy".to_owned();
            manifest.metrics = [(metric.clone(), value)].into();
            manifest.best = Some(BestEvaluation { step: 10, metric, value });
            manifest.status = Status::Finished;
            let (pipeline, steps) = (format!("name: demo\ntrain:\n  seed: {seed}\n"), Vec::new());
            let made = RunFixture { manifest, pipeline, steps, evaluations: Vec::new(), predictions: None };
            made.write(folder, name);
        }
        None => (record.state, record.error) = (MemberState::Failed, Some(HOSTILE.to_owned())),
    }
    record
}

fn sweep(folder: &Path) -> Sweep {
    let runs = vec![
        member(folder, "001", "0.1", 0, Some(0.5)),
        member(folder, "002", "0.1", 1, Some(0.75)),
        member(folder, "003", "0.3", 0, Some(0.875)),
        member(folder, "004", "0.3", 1, Some(0.75)),
        member(folder, "005", HOSTILE, 0, None),
    ];
    let record = SweepRecord {
        name: "demo".to_owned(),
        started: "2026-11-30T10:00:00+00:00".to_owned(),
        seconds: 3.0,
        runs,
        selections: Vec::new(),
    };
    record.save(folder).expect("written");
    Sweep::read(folder).expect("a sweep")
}

#[test]
fn groups_hold_the_statistics_over_seeds_with_the_best_mean_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let sweep = sweep(folder.path());
    assert_eq!(sweep.metric(), Some("accuracy"));
    let groups = sweep.groups();
    let runs: Vec<&[usize]> = groups.iter().map(|group| group.runs.as_slice()).collect();
    assert_eq!(runs, [&[2, 3][..], &[0, 1], &[4]]);
    assert_eq!(groups[0].settings, "optimizer.with.lr 0.3");
    let deviation = Some((2.0_f64 * 0.0625_f64.powi(2)).sqrt());
    assert_eq!(groups[0].statistics, Some(Statistics { n: 2, mean: 0.8125, deviation, best: 0.875 }));
    assert_eq!(groups[2].statistics, None);
    assert_eq!((sweep.best(), sweep.value(2), sweep.value(4)), (Some(2), Some(0.875), None));
}

#[test]
fn settings_with_the_same_best_mean_are_all_marked() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut record = sweep(folder.path()).record;
    record.runs.push(member(folder.path(), "006", "0.5", 0, Some(0.8125)));
    record.save(folder.path()).expect("written");
    let sweep = Sweep::read(folder.path()).expect("a sweep");
    assert_eq!((sweep.n_best_settings(), sweep.best()), (2, Some(2)));
    let html = parse(&sweep_page(&sweep));
    for (settings, mean) in [("0.3", "★ 81.25 %"), ("0.5", "★ 81.25 %"), ("0.1", "62.50 %")] {
        let cells = row(&html, "Accuracy of the finished runs", &format!("optimizer.with.lr {settings}"));
        assert_eq!(cells[2], mean, "{settings}");
    }
}

#[test]
fn page_of_a_sweep_shows_groups_runs_and_failures() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = sweep_page(&sweep(folder.path()));
    save_page("sweep.html", &page);
    let html = parse(&page);
    let best = row(&html, "Accuracy of the finished runs", "optimizer.with.lr 0.3");
    assert_eq!(best[1..5], ["2", "★ 81.25 %", "8.84 %", "87.50 %"]);
    assert_eq!(row(&html, "All runs", "002")[1..4], ["optimizer.with.lr 0.1, train.seed 1", "finished", "75.00 %"]);
    assert_eq!(row(&html, "All runs", "005")[2], "failed");
    assert!(texts(&html, "p.missing").iter().any(|text| text.starts_with("005 failed to ")));
    assert!(texts(&html, "script").iter().all(|script| !script.contains("alert(1)")), "external text is escaped");
}

#[test]
fn run_that_a_selection_stopped_has_one_outcome() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut record = sweep(folder.path()).record;
    for (name, state) in
        [("007", MemberState::Stopped), ("008", MemberState::Paused), ("009", MemberState::Interrupted)]
    {
        let made = member(folder.path(), name, "0.1", 7, Some(0.25));
        let path = folder.path().join(name).join("manifest.json");
        let mut manifest: Manifest = serde_json::from_slice(&fs::read(&path).expect("a manifest")).expect("a manifest");
        manifest.status = Status::Interrupted;
        fs::write(&path, serde_json::to_vec(&manifest).expect("JSON")).expect("written");
        record.runs.push(MemberRecord { state, ..made });
    }
    record.save(folder.path()).expect("written");
    let html = parse(&sweep_page(&Sweep::read(folder.path()).expect("a sweep")));
    for (name, word) in [("007", "stopped early"), ("008", "paused"), ("009", "interrupted")] {
        assert_eq!(row(&html, "All runs", name)[2], word);
        assert_eq!(row(&html, "Metrics of the kept evaluation", name)[1], format!("‖ {word}"));
    }
    assert_eq!(row(&html, "Metrics of the kept evaluation", "001")[1], "✓ finished");
}

#[test]
fn page_of_a_sweep_without_finished_runs_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let runs = vec![member(folder.path(), "006", "0.1", 0, None)];
    let record = SweepRecord { runs, ..sweep(folder.path()).record };
    record.save(folder.path()).expect("written");
    let sweep = Sweep::read(folder.path()).expect("a sweep");
    assert_eq!((sweep.metric(), sweep.best(), sweep.groups().len()), (None, None, 1));
    let html = parse(&sweep_page(&sweep));
    for expected in ["No run has finished with an evaluation.", "There are no runs.", "No run has recorded a step."] {
        assert!(texts(&html, "p.missing").iter().any(|text| text.contains(expected)), "{expected}");
    }
}
