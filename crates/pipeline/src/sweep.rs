//! Sweeps: several runs of one pipeline that share servers, resume as a whole and are compared on one page.
//!
//! The folder of a sweep holds `sweep.yaml`, from which it resumes, `sweep.json` with the state of its runs, a folder for
//! each run, and at the end `report.html` and `best.yaml`. Every file is complete or absent.

mod halving;
mod members;
mod parallel;
mod rows;
mod state;

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use sepal_assets::Assets;
use sepal_config::spec::{HalvingSpec, Spec, SwarmSpec};
use sepal_config::{Layers, Sweep};
use sepal_plugin::Registry;
use sepal_prepare::{Fetcher, fetch_model};
use sepal_track::{MemberState, RunFolder, SweepRecord, WriteError, write_atomic};
use sepal_train::Pause;

use crate::error::{ModelError, ResumeError, RowsError};
use crate::progress::{Event, Observer};
use halving::Rung;
use members::{Members, Shared};
pub(crate) use rows::KnownRows;

/// Pipeline file of a sweep in its folder.
const FILE: &str = "sweep.yaml";
const LOCK: &str = "sweep.lock";

/// Event of a sweep.
#[derive(Debug)]
#[non_exhaustive]
pub enum SweepEvent<'a> {
    /// One line of text for people.
    Notice(&'a str),
    /// Event of a run.
    Run {
        /// Index of the run.
        member: usize,
        /// Event.
        event: Event<'a>,
    },
    /// State of a run that changed.
    Changed {
        /// Index of the run.
        member: usize,
        /// New state.
        record: &'a sepal_track::MemberRecord,
    },
}

/// Receives the events of a sweep, from the threads of its runs one after another.
pub trait SweepObserver: Send {
    /// Handles an event. The run waits for it.
    fn event(&mut self, event: SweepEvent<'_>);
}

/// Result of a sweep.
#[derive(Debug, Clone)]
pub struct SweepSummary {
    /// Folder of the sweep.
    pub folder: PathBuf,
    /// True if it was stopped before its end.
    pub interrupted: bool,
    /// Runs and their results.
    pub results: sepal_report::Sweep,
    /// Pipeline of the best run, if one has finished with an evaluation.
    pub best: Option<PathBuf>,
}

/// A sweep that could not start or continue. Errors of single runs are in their records.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SweepError {
    /// State that cannot be written.
    #[error("record the sweep")]
    Record(#[source] WriteError),
    /// State that cannot be read.
    #[error(transparent)]
    Read(#[from] sepal_report::ReadError),
    /// Sweep that cannot be resumed.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// Rows that changed, so that the results of runs would be of different data.
    #[error(transparent)]
    Rows(#[from] Box<RowsError>),
    /// Model that cannot be opened, which all runs need.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Threads of runs that cannot be started.
    #[error("start the threads of the runs")]
    Threads(#[source] io::Error),
    /// Bug in the program.
    #[error("run the sweep: a thread panicked, which is a bug; the sweep can be resumed")]
    Panic,
}

/// Runs all members of the sweep in a new folder, at most `parallel` at the same time; by default as many as cores and
/// memory allow.
///
/// # Errors
/// [`SweepError`]. A run that fails is recorded, and the others go on; but none begins after one whose rows are not those of
/// the others.
pub fn sweep(
    sweep: &Sweep,
    registry: &Registry,
    parallel: Option<usize>,
    observer: &mut dyn SweepObserver,
    stop: &AtomicBool,
) -> Result<SweepSummary, SweepError> {
    let first = first_spec(sweep)?;
    let folder =
        RunFolder::create(&first.output.folder, &format!("{}-sweep", first.name)).map_err(SweepError::Record)?;
    let lock = lock(folder.path())?;
    folder.write(FILE, sweep.yaml.as_bytes()).map_err(SweepError::Record)?;
    let record = state::new_record(sweep, &first.name);
    record.save(folder.path()).map_err(SweepError::Record)?;
    let summary = execute(sweep, folder.path(), record, registry, parallel, observer, stop);
    drop(lock);
    summary
}

/// Resumes the sweep in `folder`: finished runs are kept, the others go on from their newest checkpoints or begin.
///
/// # Errors
/// [`SweepError`] as for [`sweep`](sweep()); [`SweepError::Resume`] if the folder is that of another sweep, or another
/// process works on it.
pub fn resume_sweep(
    folder: &Path,
    sweep: &Sweep,
    registry: &Registry,
    parallel: Option<usize>,
    observer: &mut dyn SweepObserver,
    stop: &AtomicBool,
) -> Result<SweepSummary, SweepError> {
    let lock = lock(folder)?;
    let mut record = state::read(folder)?;
    state::check_same(folder, &record, sweep)?;
    state::catch_up(folder, &mut record);
    let summary = execute(sweep, folder, record, registry, parallel, observer, stop);
    drop(lock);
    summary
}

/// Newest unfinished sweep with the same runs, in the output folder of the pipeline.
pub fn unfinished_sweep(sweep: &Sweep) -> Option<PathBuf> {
    let first = &sweep.members.first()?.spec;
    let prefix = format!("{}-sweep-", first.name);
    let entries = std::fs::read_dir(&first.output.folder).into_iter().flatten().flatten();
    let is_of_name = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
    let is_unfinished = |path: &PathBuf| {
        let record = SweepRecord::read(path);
        record.is_ok_and(|record| state::check_same(path, &record, sweep).is_ok() && !state::is_complete(&record))
    };
    entries.map(|entry| entry.path()).filter(is_of_name).filter(is_unfinished).max()
}

/// Pipeline file from which the sweep in `folder` resumes.
///
/// # Errors
/// [`ResumeError`] if it is no folder of a sweep.
pub fn sweep_file(folder: &Path) -> Result<Layers, ResumeError> {
    let problem = || format!("it is no folder of a sweep: it has no {FILE}");
    Layers::read(&folder.join(FILE)).map_err(|_| ResumeError { path: folder.into(), problem: problem() })
}

fn first_spec(sweep: &Sweep) -> Result<&Spec, SweepError> {
    let problem = "it has no runs".to_owned();
    Ok(sweep.members.first().map(|member| &member.spec).ok_or(ResumeError { path: PathBuf::from(FILE), problem })?)
}

/// Locks the folder for this process until the file is dropped.
fn lock(folder: &Path) -> Result<File, SweepError> {
    let path = folder.join(LOCK);
    if !folder.is_dir() {
        return Err(ResumeError { path: folder.into(), problem: "there is no such folder".to_owned() }.into());
    }
    let failed = |source: io::Error| SweepError::Record(WriteError { path: path.clone(), source });
    let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(ResumeError { path: folder.into(), problem: "another process works on this sweep".to_owned() }.into())
        }
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn execute(
    sweep: &Sweep,
    folder: &Path,
    record: SweepRecord,
    registry: &Registry,
    parallel: Option<usize>,
    observer: &mut dyn SweepObserver,
    stop: &AtomicBool,
) -> Result<SweepSummary, SweepError> {
    let parallel = match parallel {
        Some(parallel) => parallel.max(1),
        // The model is not needed.
        None if state::is_complete(&record) => 1,
        None => choose_parallel(sweep, observer, stop)?,
    };
    let (seconds_before, started) = (record.seconds, Instant::now());
    let shared = Shared { record, observer, seconds_before, started };
    let rows = KnownRows::new(sweep, folder, &shared.record);
    let members = Members::new(sweep, folder, registry, stop, parallel, rows, shared);
    climb(&members)?;
    let interrupted = stop.load(Ordering::Relaxed) && !state::is_complete(&members.lock().record);
    members.lock().save(folder)?;
    drop(members);
    let results = sepal_report::Sweep::read(folder)?;
    write_atomic(&folder.join("report.html"), sepal_report::sweep_page(&results).as_bytes())
        .map_err(SweepError::Record)?;
    let best = write_best(&results)?;
    Ok(SweepSummary { folder: folder.to_owned(), interrupted, results, best })
}

/// Opens the model of the first run and chooses the number of runs at the same time.
fn choose_parallel(sweep: &Sweep, observer: &mut dyn SweepObserver, stop: &AtomicBool) -> Result<usize, SweepError> {
    if sweep.members.iter().any(|member| matches!(member.spec.swarm, SwarmSpec::None(_))) {
        let line = "one run at a time, because each holds its own blocks (`swarm.use: none`)";
        observer.event(SweepEvent::Notice(line));
        return Ok(1);
    }
    let assets = Assets::from_env();
    let mut first = FirstRun(observer);
    let files = fetch_model(first_spec(sweep)?, &mut Fetcher { assets: &assets, observer: &mut first, stop })?;
    let run_bytes = parallel::run_bytes(&files.checkpoint);
    let chosen = parallel::default_parallel(sweep.members.len(), parallel::cores(), parallel::free_memory(), run_bytes);
    let (runs, reason) = (chosen.runs, chosen.reason);
    let at_once = if runs == 1 { "one run at a time".to_owned() } else { format!("{runs} runs at once") };
    first.0.event(SweepEvent::Notice(&format!("{at_once} ({reason})")));
    Ok(runs)
}

/// Passes events before the first run as events of it.
struct FirstRun<'a>(&'a mut dyn SweepObserver);

impl Observer for FirstRun<'_> {
    fn event(&mut self, event: Event<'_>) {
        self.0.event(SweepEvent::Run { member: 0, event });
    }
}

/// Runs all rungs, from the first one without a selection on.
fn climb(members: &Members<'_>) -> Result<(), SweepError> {
    let (halving, count) = (members.sweep.halving.as_ref(), members.sweep.members.len());
    let rungs = match halving {
        Some(HalvingSpec { factor, min_steps, .. }) => halving::rungs(count, *factor, *min_steps),
        None => vec![Rung { runs: count, steps: None }],
    };
    let mut alive: Vec<usize> = (0..count).collect();
    for (index, rung) in rungs.iter().enumerate() {
        let decided = members.lock().record.selections.get(index).cloned();
        if let Some(selected) = decided {
            alive = selected;
            continue;
        }
        let metric = halving.and_then(|halving| halving.metric.clone());
        let pause = rung.steps.map(|after| Pause { after, metric });
        let open = {
            let shared = members.lock();
            let is_open = |&&member: &&usize| {
                let run = &shared.record.runs[member];
                let is_measured = rung.steps.is_some() && run.measured.len() > index;
                run.state != MemberState::Finished && !is_measured
            };
            alive.iter().filter(is_open).copied().collect::<Vec<_>>()
        };
        members.run(&open, pause.as_ref())?;
        if members.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        if let Some(next) = rungs.get(index + 1) {
            let Some(selected) = select(members, index, &alive, next.runs)? else { return Ok(()) };
            alive = selected;
        }
    }
    Ok(())
}

/// Selects the runs that continue, and stops the others. `None` if no run has a value: all have failed, and a resume tries
/// them again.
fn select(members: &Members<'_>, index: usize, alive: &[usize], keep: usize) -> Result<Option<Vec<usize>>, SweepError> {
    let (values, larger_is_better) = state::values(members, index, alive);
    let selected = halving::survivors(&values, keep, larger_is_better);
    if selected.is_empty() {
        let line = format!("no run has a value for selection {}, so none continues", index + 1);
        members.lock().observer.event(SweepEvent::Notice(&line));
        return Ok(None);
    }
    let stopped = alive.iter().filter(|member| !selected.contains(member));
    for &member in stopped {
        let is_paused = members.lock().record.runs[member].state == MemberState::Paused;
        if is_paused {
            members.change(member, |record| record.state = MemberState::Stopped)?;
        }
    }
    let mut shared = members.lock();
    shared.record.selections.push(selected.clone());
    shared.save(members.folder)?;
    let line = format!("{} of {} runs continue after selection {}", selected.len(), alive.len(), index + 1);
    shared.observer.event(SweepEvent::Notice(&line));
    Ok(Some(selected))
}

/// Writes the pipeline of the best run, with every value, as `best.yaml`.
fn write_best(results: &sepal_report::Sweep) -> Result<Option<PathBuf>, SweepError> {
    let Some(best) = results.best() else { return Ok(None) };
    let run = &results.record.runs[best];
    let (source, path) = (results.folder.join(&run.folder).join("pipeline.yaml"), results.folder.join("best.yaml"));
    let read = std::fs::read_to_string(&source);
    let text = read.map_err(|error| SweepError::Record(WriteError { path: source, source: error }))?;
    let text = format!("# Best run of the sweep: {}\n{text}", run.label().replace(['\n', '\r'], " "));
    write_atomic(&path, text.as_bytes()).map_err(SweepError::Record)?;
    Ok(Some(path))
}
