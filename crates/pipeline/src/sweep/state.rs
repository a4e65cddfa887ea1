//! State of a sweep: from its runs to records, and from the folders of runs after a kill.

use std::path::Path;

use sepal_config::spec::Goal;
use sepal_config::{Member, Setting, Sweep};
use sepal_track::{
    History, Manifest, MemberRecord, MemberState, REDACTED, SettingRecord, Status, SweepRecord, is_secret,
};
use sepal_train::goal_of;

use super::members::Members;
use crate::error::ResumeError;
use crate::resume;

/// Maximum number of characters of the settings in a folder's name.
const SLUG: usize = 60;
/// Name of the loss among metrics.
const LOSS: &str = "loss";

/// State before the first run.
pub(super) fn new_record(sweep: &Sweep, name: &str) -> SweepRecord {
    let run = |(index, member): (usize, &Member)| MemberRecord {
        folder: folder_name(index, &member.settings),
        settings: member.settings.iter().map(setting).collect(),
        digest: resume::digest(&member.spec),
        state: MemberState::Waiting,
        error: None,
        measured: Vec::new(),
    };
    SweepRecord {
        name: name.to_owned(),
        started: sepal_track::timestamp(),
        seconds: 0.0,
        runs: sweep.members.iter().enumerate().map(run).collect(),
        selections: Vec::new(),
    }
}

fn setting(setting: &Setting) -> SettingRecord {
    let value = if is_secret(&setting.key) { REDACTED.into() } else { setting.value.clone() };
    SettingRecord { key: setting.key.clone(), value, text: text(setting), is_seed: setting.is_seed() }
}

/// Value as text, unless it is secret.
fn text(setting: &Setting) -> String {
    if is_secret(&setting.key) { REDACTED.to_owned() } else { setting.text() }
}

/// Name such as `001-lr=0.001-seed=0`: number, last part of each key and value.
fn folder_name(index: usize, settings: &[Setting]) -> String {
    let part = |setting: &Setting| {
        let key = setting.key.rsplit('.').next().unwrap_or_default();
        format!("-{key}={}", text(setting))
    };
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "._=+-".contains(c);
    let parts: String = settings.iter().map(part).collect();
    let safe: String = parts.chars().map(|c| if is_safe(c) { c } else { '-' }).take(SLUG).collect();
    format!("{:03}{}", index + 1, safe.trim_end_matches(['-', '.']))
}

/// Reads the state of the sweep in `folder`.
pub(super) fn read(folder: &Path) -> Result<SweepRecord, ResumeError> {
    SweepRecord::read(folder).map_err(|error| {
        let problem = format!("it is no folder of a sweep, or damaged: {}", sepal_core::in_one_line(&error));
        ResumeError { path: folder.into(), problem }
    })
}

/// Returns an error if the state is that of other runs.
pub(super) fn check_same(folder: &Path, record: &SweepRecord, sweep: &Sweep) -> Result<(), ResumeError> {
    let refused = |problem: String| Err(ResumeError { path: folder.into(), problem });
    if record.runs.len() != sweep.members.len() {
        return refused(format!("it has {} runs, and the pipeline {}", record.runs.len(), sweep.members.len()));
    }
    let mut pairs = record.runs.iter().zip(&sweep.members);
    match pairs.find(|(run, member)| run.digest != resume::digest(&member.spec) || !has_settings(run, member)) {
        Some((run, _)) => refused(format!("its run {} was begun with other options", run.folder)),
        None => Ok(()),
    }
}

/// True if the run was begun with the settings of the member. A sweep may also vary keys that the digest leaves out.
fn has_settings(run: &MemberRecord, member: &Member) -> bool {
    let recorded = run.settings.iter().map(|setting| (setting.key.clone(), setting.text.clone()));
    recorded.eq(member.settings.iter().map(|setting| (setting.key.clone(), text(setting))))
}

/// Takes the state of runs from their folders, as far as a killed process did not record it. A finished run whose folder is
/// not there any more begins again.
pub(super) fn catch_up(folder: &Path, record: &mut SweepRecord) {
    for run in &mut record.runs {
        if run.state == MemberState::Finished && !folder.join(&run.folder).exists() {
            tracing::warn!("the folder of the finished run {} is not there any more: it is trained again", run.folder);
            run.state = MemberState::Waiting;
        }
        let is_complete = || {
            let manifest = Manifest::read(&folder.join(&run.folder));
            manifest.is_ok_and(|manifest| manifest.status == Status::Finished)
        };
        if run.state == MemberState::Running && is_complete() {
            run.state = MemberState::Finished;
        }
    }
}

/// True if no run is left to do.
pub(super) fn is_complete(record: &SweepRecord) -> bool {
    (0..record.runs.len()).all(|run| record.is_over(run))
}

/// Values of the runs at a selection, and the direction of improvement. Runs that ended before it have their final value.
pub(super) fn values(members: &Members<'_>, index: usize, alive: &[usize]) -> (Vec<(usize, Option<f64>)>, bool) {
    let shared = members.lock();
    let runs = &shared.record.runs;
    let measured = alive.iter().find_map(|&member| runs[member].measured.get(index));
    let named = members.sweep.halving.as_ref().and_then(|halving| halving.metric.as_ref());
    let metric = measured.map(|measured| &measured.metric).or(named).cloned();
    let value = |member: usize| {
        let run = &runs[member];
        match run.measured.get(index) {
            Some(measured) => Some(measured.value),
            None if run.state == MemberState::Finished => {
                final_value(&members.folder.join(&run.folder), metric.as_deref())
            }
            None => None,
        }
    };
    let values = alive.iter().map(|&member| (member, value(member))).collect();
    let evaluate = members.sweep.members.first().map(|member| &member.spec.evaluate);
    // The stated goal is that of `evaluate.metric`.
    let goal = evaluate.filter(|evaluate| named.is_none() || evaluate.metric.as_ref() == named);
    let goal = goal.and_then(|evaluate| evaluate.goal);
    let goal = goal.unwrap_or_else(|| goal_of(metric.as_deref().unwrap_or_default()));
    (values, goal == Goal::Max)
}

/// Value of the complete run in `folder`; of the metric that selected its evaluation if no other is named.
fn final_value(folder: &Path, metric: Option<&str>) -> Option<f64> {
    let manifest = Manifest::read(folder).ok()?;
    let best = manifest.best.as_ref()?;
    match metric {
        // The manifest has the loss only if it is the metric that selected the evaluation.
        Some(LOSS) if best.metric != LOSS => {
            let history = History::read(&folder.join("metrics.jsonl")).ok()?;
            history.evaluations.iter().find(|record| record.step == best.step).map(|record| record.loss)
        }
        Some(metric) if metric != best.metric => manifest.metrics.get(metric).copied(),
        _ => Some(best.value),
    }
}

#[cfg(test)]
mod tests {
    use sepal_config::Layers;
    use sepal_plugin::{Head, Registry, Tuning, standard};

    use super::*;

    const PIPELINE: &str = "\
name: demo
model: { source: tiny }
task: { use: sequence-classification, with: { labels: [negative, positive] } }
tuning: { use: ptune }
data: { train: train.csv, validation: validation.csv, text: text, label: label }
optimizer: { use: adamw }
schedule: { use: constant }
sweep:
  tuning: [{ use: ptune, with: { pre_seq_len: 4 } }, { use: ptune, with: { pre_seq_len: 8 } }]
  train.seed: [0..2]
";

    fn sweep(sets: &[&str]) -> Sweep {
        let mut registry = Registry::new();
        standard::register(&mut registry).expect("the standard plugins");
        registry.register::<Head, sepal_sequence_classification::SequenceClassification>().expect("a head");
        registry.register::<Tuning, sepal_ptune::Ptune>().expect("a tuning mode");
        let layers = Layers::text("demo.yaml", PIPELINE).sets(sets.iter().map(|&set| set.to_owned()));
        layers.load_sweep(registry.catalog()).unwrap_or_else(|problems| panic!("{problems}"))
    }

    #[test]
    fn record_names_folders_by_settings_and_groups_by_all_but_seeds() {
        let record = new_record(&sweep(&[]), "demo");
        let folders: Vec<&str> = record.runs.iter().map(|run| run.folder.as_str()).collect();
        assert_eq!(
            folders,
            [
                "001-tuning=ptune-pre_seq_len=4-seed=0",
                "002-tuning=ptune-pre_seq_len=4-seed=1",
                "003-tuning=ptune-pre_seq_len=8-seed=0",
                "004-tuning=ptune-pre_seq_len=8-seed=1",
            ]
        );
        assert_eq!(record.runs[1].group(), "tuning ptune pre_seq_len=4");
        assert_eq!(record.runs[1].label(), "tuning ptune pre_seq_len=4, train.seed 1");
    }

    #[test]
    fn resume_of_other_runs_is_refused() {
        let (folder, record) = (Path::new("sweep"), new_record(&sweep(&[]), "demo"));
        assert!(check_same(folder, &record, &sweep(&["train.threads=3", "checkpoint.keep=5"])).is_ok());
        let text = |sets: &[&str]| check_same(folder, &record, &sweep(sets)).expect_err("another sweep").to_string();
        assert_eq!(text(&["sweep.train.seed=[0..3]"]), "resume sweep: it has 4 runs, and the pipeline 6");
        let free = ["sweep.tuning=[{ use: ptune, with: { pre_seq_len: 4 } }]", "sweep.model.local_blocks=[0, 1]"];
        let record = new_record(&sweep(&free), "demo");
        assert!(check_same(folder, &record, &sweep(&free)).is_ok());
        let others = sweep(&[free[0], "sweep.model.local_blocks=[0, 2]"]);
        let refused = check_same(folder, &record, &others).expect_err("other blocks").to_string();
        assert!(refused.contains("was begun with other options"), "{refused}");
        let other = text(&["train.epochs=3"]);
        assert!(
            other.contains("its run 001-tuning=ptune-pre_seq_len=4-seed=0 was begun with other options"),
            "{other}"
        );
    }

    #[test]
    fn sweep_is_complete_when_every_run_is_finished_or_stopped() {
        let mut record = new_record(&sweep(&[]), "demo");
        record.runs.iter_mut().for_each(|run| run.state = MemberState::Finished);
        record.runs[2].state = MemberState::Stopped;
        assert!(is_complete(&record));
        record.runs[3].state = MemberState::Failed;
        assert!(!is_complete(&record));
        record.selections.push(vec![0, 3]);
        assert!(!is_complete(&record), "a selected run is tried again");
        record.selections.push(vec![0]);
        assert!(is_complete(&record), "a run that a selection left out is not");
    }
}
