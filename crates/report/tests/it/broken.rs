//! Reports of incomplete and damaged run folders.

use sepal_report::{ReadError, Run, report};

use crate::fixture;
use crate::{parse, texts};

#[test]
fn missing_manifest_is_error() {
    let parent = tempfile::tempdir().expect("a folder");
    let missing = parent.path().join("nowhere");
    assert!(matches!(Run::read(&missing), Err(ReadError::NoFolder { .. })));
    let error = Run::read(parent.path()).expect_err("no manifest");
    assert!(matches!(error, ReadError::NoManifest { .. }));
    let reason = "a run writes it at its end, so this folder belongs to no run or to an unfinished one";
    assert!(error.to_string().ends_with(reason));
    std::fs::write(parent.path().join("manifest.json"), "{\"name\": 3}").expect("written");
    assert!(matches!(Run::read(parent.path()), Err(ReadError::Manifest { .. })));
}

#[test]
fn manifest_alone_makes_page() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = fixture::sentiment().write(parent.path(), "alone");
    for name in ["pipeline.yaml", "metrics.jsonl", "predictions.parquet"] {
        std::fs::remove_file(folder.join(name)).expect("removed");
    }
    let run = Run::read(&folder).expect("a run");
    assert_eq!(run.problems.len(), 2, "{:?}", run.problems);
    let html = parse(&report(&run));
    let missing = texts(&html, ".missing").join(" ");
    for part in ["No step was recorded", "There is no predictions.parquet", "There is no pipeline.yaml"] {
        assert!(missing.contains(part), "{missing}");
    }
    assert_eq!(texts(&html, ".notice.alarm").len(), 2);
}

#[test]
fn damaged_files_are_reported() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = fixture::sentiment().write(parent.path(), "damaged");
    std::fs::write(folder.join("predictions.parquet"), "PAR1").expect("written");
    std::fs::write(folder.join("pipeline.yaml"), "name: [").expect("written");
    let log = std::fs::read_to_string(folder.join("metrics.jsonl")).expect("read");
    std::fs::write(folder.join("metrics.jsonl"), &log[..log.len() - 20]).expect("written");
    let run = Run::read(&folder).expect("a run");
    let html = parse(&report(&run));
    let notices = texts(&html, ".notice.alarm").join(" ");
    let parts =
        ["predictions.parquet cannot be read", "pipeline.yaml is shown but not understood", "1 lines cannot be read"];
    for part in parts {
        assert!(notices.contains(part), "{notices}");
    }
}

#[test]
fn failed_run_shows_error() {
    let parent = tempfile::tempdir().expect("a folder");
    let run = Run::read(&fixture::failed().write(parent.path(), "failed")).expect("a run");
    let html = parse(&report(&run));
    assert!(texts(&html, ".notice.alarm")[0].contains("no server holds the blocks 10:30"));
    assert_eq!(texts(&html, ".state"), ["✕ failed"]);
    assert_eq!(texts(&html, ".main span"), ["training loss in step 3; nothing was evaluated"]);
    assert!(texts(&html, ".missing").contains(&"Nothing was evaluated.".to_owned()));
}

#[test]
fn nan_is_shown_as_missing() {
    let parent = tempfile::tempdir().expect("a folder");
    let mut made = fixture::sentiment();
    made.steps.iter_mut().for_each(|step| (step.loss, step.grad_norm) = (f64::NAN, f64::NAN));
    made.evaluations.iter_mut().for_each(|one| {
        one.loss = f64::NAN;
        one.metrics.values_mut().for_each(|value| *value = f64::NAN);
    });
    made.manifest.metrics.values_mut().for_each(|value| *value = f64::NAN);
    made.manifest.best = None;
    let rows = made.predictions.as_mut().expect("rows");
    rows.probabilities.iter_mut().flatten().for_each(|p| *p = f32::NAN);
    let run = Run::read(&made.write(parent.path(), "nan")).expect("a run");
    let html = parse(&report(&run));
    assert_eq!(texts(&html, ".main b"), ["–"]);
    assert!(texts(&html, ".missing").iter().any(|text| text.contains("calibration is not known")));
    assert!(!texts(&html, "main").concat().contains("NaN"));
}
