use super::*;
use crate::examples::{evaluation, manifest, run_info, step};
use crate::python::{Script, python_with};

fn config() -> WandbConfig {
    WandbConfig { tags: vec!["first".to_owned()], ..WandbConfig::default() }
}

/// Writes three steps and an evaluation, and then resumes from step 2 to step 4. Returns the folder of the offline run.
fn interrupted_run(folder: &Path) -> PathBuf {
    let mut run = run_info(folder.to_owned());
    let mut first = Wandb::new(config());
    first.start(&run).expect("begun");
    (1..=3).for_each(|i| first.step(&step(i)).expect("written"));
    first.evaluation(&evaluation(3)).expect("written");
    first.finish(&Manifest { status: Status::Interrupted, ..manifest() }).expect("written");
    run.resumed_at = 2;
    let mut second = Wandb::new(config());
    second.start(&run).expect("gone on");
    (3..=4).for_each(|i| second.step(&StepRecord { loss: 10.0 * i as f64, ..step(i) }).expect("written"));
    second.evaluation(&evaluation(4)).expect("written");
    second.finish(&manifest()).expect("written");
    offline_folder(folder)
}

fn offline_folder(folder: &Path) -> PathBuf {
    read_json::<RunReference>(&folder.join("wandb.json")).expect("a reference").folder
}

fn records(folder: &Path) -> Vec<Record> {
    let entries = std::fs::read_dir(folder).expect("listed").map(|entry| entry.expect("an entry").path());
    let files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|end| end == "wandb")).collect();
    assert_eq!(files.len(), 1);
    let content = std::fs::read(&files[0]).expect("read");
    log::records(&content).iter().map(|record| Record::decode(&**record).expect("a record")).collect()
}

fn history(records: &[Record], key: &str) -> Vec<(i64, String)> {
    let row = |record: &Record| match &record.kind {
        Some(Kind::History(history)) => {
            let item = history.item.iter().find(|item| item.key == key)?;
            Some((history.step.as_ref()?.num, item.value_json.clone()))
        }
        _ => None,
    };
    records.iter().filter_map(row).collect()
}

#[test]
fn resumed_run_continues_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = interrupted_run(folder.path());
    let records = records(&run);
    let name = run.file_name().and_then(|name| name.to_str()).expect("a name");
    assert!(name.starts_with("offline-run-2") && run.join("files").is_dir(), "{name}");
    assert_eq!(records.iter().map(|record| record.num).collect::<Vec<_>>(), (1..=9).collect::<Vec<_>>());
    assert!(matches!(&records[0].kind, Some(Kind::Header(_))));
    match &records[1].kind {
        Some(Kind::Run(run)) => {
            assert_eq!((&*run.project, &*run.display_name, &*run.tags), ("demo", "demo-1", &["first".to_owned()][..]));
            let config = run.config.as_ref().expect("options");
            assert!(config.update.contains(&Item::new("optimizer.with.lr", &json!(0.01))));
            assert!(config.update.contains(&Item::new("loader.drop_last", &json!(true))));
        }
        other => panic!("expected a run, found {other:?}"),
    }
    let losses = [(1, "1.0"), (2, "0.5"), (3, "30.0"), (4, "40.0")].map(|(step, loss)| (step, loss.to_owned()));
    assert_eq!(history(&records, "train/loss"), losses);
    assert_eq!(history(&records, "eval/accuracy"), [(4, "0.75".to_owned())]);
    assert!(matches!(&records[8].kind, Some(Kind::Exit(Exit { exit_code: 0, .. }))));
}

#[test]
fn run_without_file_is_new() {
    let folder = tempfile::tempdir().expect("a folder");
    let lost = interrupted_run(folder.path());
    std::fs::remove_dir_all(&lost).expect("removed");
    let other = interrupted_run(folder.path());
    assert_ne!(other, lost);
    assert_eq!(history(&records(&other), "train/loss").len(), 4);
}

#[test]
fn evaluation_writes_row_and_summary() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut tracker = Wandb::new(WandbConfig { folder: Some(folder.path().join("all")), ..WandbConfig::default() });
    tracker.start(&run_info(folder.path().to_owned())).expect("begun");
    tracker.step(&step(1)).expect("written");
    tracker.evaluation(&evaluation(1)).expect("written");
    tracker.step(&step(2)).expect("kept");
    let run = offline_folder(folder.path());
    assert!(run.starts_with(folder.path().join("all/wandb")));
    let records = records(&run);
    assert_eq!(history(&records, "eval/accuracy").len(), 1);
    assert!(matches!(&records[3].kind, Some(Kind::Summary(_))));
}

#[test]
fn wandb_sync_uploads_run() {
    let Some(python) = python_with("wandb") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let run = interrupted_run(folder.path());
    let sent = Script { python: &python, code: include_str!("sync.py") }.json(&[&run]);
    assert_eq!((&sent["code"], &sent["complete"], &sent["exitcode"]), (&json!(0), &json!(true), &json!(0)), "{sent}");
    let about = |key: &str| sent["run"][key].as_str().unwrap_or_default();
    assert_eq!((about("project"), about("displayName"), &sent["run"]["tags"]), ("demo", "demo-1", &json!(["first"])));
    assert_eq!(sent["config"]["optimizer.with.lr"], json!({ "value": 0.01 }), "{sent}");
    let column = |key: &str| {
        let rows = sent["history"].as_array().into_iter().flatten();
        rows.filter_map(|row| Some((row["_step"].as_u64()?, row[key].as_f64()?))).collect::<Vec<_>>()
    };
    assert_eq!(column("train/loss"), [(1, 1.0), (2, 0.5), (3, 30.0), (4, 40.0)]);
    assert_eq!(column("eval/accuracy"), [(4, 0.75)]);
    assert_eq!(sent["summary"]["train/loss"].as_f64(), Some(40.0));
}

/// Evaluation with an `f1` for each of these labels: 0, 1, 2 and so on.
fn of_labels(labels: &[&str]) -> EvaluationRecord {
    let metrics = labels.iter().enumerate().map(|(i, label)| (format!("f1/{label}"), i as f64)).collect();
    EvaluationRecord { metrics, ..evaluation(1) }
}

#[test]
fn names_differing_in_case_stay_different() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut tracker = Wandb::new(WandbConfig {
        project: Some("a/b: 50%".to_owned()),
        tags: vec![String::new(), "long ".repeat(20), "long ".repeat(21), "short".to_owned()],
        ..WandbConfig::default()
    });
    tracker.start(&run_info(folder.path().to_owned())).expect("begun");
    tracker.evaluation(&of_labels(&["Spam", "spam", "Ham", "a.b", "/r/news"])).expect("written");
    tracker.finish(&manifest()).expect("written");
    let records = records(&offline_folder(folder.path()));
    for (key, value) in [("_x53_pam", "0.0"), ("spam", "1.0"), ("Ham", "2.0"), ("a.b", "3.0"), ("/r/news", "4.0")] {
        assert_eq!(history(&records, &format!("eval/f1/{key}")), [(1, value.to_owned())], "{key}");
    }
    let Some(Kind::Run(run)) = &records[1].kind else { panic!("expected a run, found {:?}", records[1]) };
    assert_eq!(run.project, "a_x2F_b_x3A_ 50_x25_");
    assert!(run.tags.iter().all(|tag| (1..=64).contains(&tag.chars().count())), "{:?}", run.tags);
    assert_eq!((run.tags.len(), &*run.tags[2]), (3, "short"));
    assert_ne!(run.tags[0], run.tags[1]);
}

#[test]
fn wandb_sync_uploads_odd_names() {
    let Some(python) = python_with("wandb") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let labels =
        ["Spam", "spam", "/r/news", "..", ".", "", "a.b", "a/b", "差评", "好评", "a\\b", "\"", "\n", "C++", "😀"];
    let mut tracker = Wandb::new(WandbConfig { project: Some("a/b#?".to_owned()), ..WandbConfig::default() });
    tracker.start(&run_info(folder.path().to_owned())).expect("begun");
    tracker.step(&step(1)).expect("written");
    tracker.evaluation(&of_labels(&labels)).expect("written");
    tracker.finish(&manifest()).expect("written");
    let run = offline_folder(folder.path());
    let sent = Script { python: &python, code: include_str!("sync.py") }.json(&[&run]);
    let row = sent["history"].as_array().and_then(|rows| rows.last()).and_then(Value::as_object).expect("a row");
    let mut found: Vec<f64> =
        row.iter().filter(|(key, _)| key.starts_with("eval/f1")).filter_map(|(_, value)| value.as_f64()).collect();
    found.sort_by(f64::total_cmp);
    assert_eq!(found, (0..labels.len()).map(|i| i as f64).collect::<Vec<_>>(), "{sent}");
}
