//! Runs of a sweep at work: threads that take one run after another.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use sepal_config::{Spec, Sweep};
use sepal_core::in_one_line;
use sepal_plugin::Registry;
use sepal_track::{MemberRecord, MemberState, SweepRecord};
use sepal_train::Pause;

use super::{KnownRows, SweepError, SweepEvent, SweepObserver};
use crate::embedded::EmbeddedServers;
use crate::error::RunError;
use crate::progress::{Event, Observer, Summary};
use crate::run::{Membership, run_member};

/// Stack of the thread of a run: as large as that of a program's first thread.
const STACK_BYTES: usize = 8 << 20;

/// The runs of a sweep with everything that they share.
pub(super) struct Members<'a> {
    pub(super) sweep: &'a Sweep,
    pub(super) folder: &'a Path,
    pub(super) registry: &'a Registry,
    pub(super) stop: &'a AtomicBool,
    pub(super) parallel: usize,
    servers: EmbeddedServers,
    preparing: Mutex<()>,
    rows: KnownRows,
    /// Set when the state cannot be written or rows have changed, so that no further run starts.
    is_broken: AtomicBool,
    shared: Mutex<Shared<'a>>,
}

/// State and observer, which the threads use one after another.
pub(super) struct Shared<'a> {
    pub(super) record: SweepRecord,
    pub(super) observer: &'a mut dyn SweepObserver,
    /// Time of earlier processes, in seconds.
    pub(super) seconds_before: f64,
    pub(super) started: Instant,
}

impl<'a> Members<'a> {
    pub(super) fn new(
        sweep: &'a Sweep,
        folder: &'a Path,
        registry: &'a Registry,
        stop: &'a AtomicBool,
        parallel: usize,
        rows: KnownRows,
        shared: Shared<'a>,
    ) -> Self {
        let servers = EmbeddedServers::for_clients(parallel);
        let (preparing, is_broken, shared) = (Mutex::new(()), AtomicBool::new(false), Mutex::new(shared));
        Self { sweep, folder, registry, stop, parallel, servers, preparing, rows, is_broken, shared }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Shared<'a>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs these members, up to `pause` or to their end. A failed run does not end the others.
    pub(super) fn run(&self, members: &[usize], pause: Option<&Pause>) -> Result<(), SweepError> {
        let next = AtomicUsize::new(0);
        let work = || {
            let result = self.work(members, &next, pause);
            if result.is_err() {
                self.is_broken.store(true, Ordering::Relaxed);
            }
            result
        };
        thread::scope(|scope| {
            let spawn = |_: usize| {
                let thread = thread::Builder::new().name("sepal-run".to_owned()).stack_size(STACK_BYTES);
                thread.spawn_scoped(scope, work)
            };
            let workers = (0..self.parallel.min(members.len())).map(spawn).collect::<io::Result<Vec<_>>>();
            let workers = workers.map_err(SweepError::Threads)?;
            let results: Vec<_> =
                workers.into_iter().map(|worker| worker.join().unwrap_or(Err(SweepError::Panic))).collect();
            results.into_iter().collect()
        })
    }

    /// Changes the state of a member and writes it.
    pub(super) fn change(&self, member: usize, change: impl FnOnce(&mut MemberRecord)) -> Result<(), SweepError> {
        let mut shared = self.lock();
        let Shared { record, observer, .. } = &mut *shared;
        change(&mut record.runs[member]);
        observer.event(SweepEvent::Changed { member, record: &record.runs[member] });
        shared.save(self.folder)
    }

    fn work(&self, members: &[usize], next: &AtomicUsize, pause: Option<&Pause>) -> Result<(), SweepError> {
        while let Some((member, before)) = self.next_member(members, next) {
            self.change(member, |record| (record.state, record.error) = (MemberState::Running, None))?;
            let result = self.run_one(member, pause);
            if let Err(RunError::Rows(error)) = result {
                // Its results so far stay, and it goes on when the rows are what they were.
                self.change(member, |record| *record = before)?;
                return Err(error.into());
            }
            self.change(member, |record| settle(record, result))?;
        }
        Ok(())
    }

    /// Takes the next of these members, with its record so far; `None` if none is left or the sweep is over. Releases the
    /// embedded servers that no remaining run needs: one that is in the queue, at work or paused.
    fn next_member(&self, members: &[usize], next: &AtomicUsize) -> Option<(usize, MemberRecord)> {
        let is_over = self.stop.load(Ordering::Relaxed) || self.is_broken.load(Ordering::Relaxed);
        let mut shared = self.lock();
        let queued = members.get(next.fetch_add(1, Ordering::Relaxed)..).unwrap_or_default();
        let member = queued.first().copied().filter(|_| !is_over);
        // Under the same lock, so that no other thread releases the server of the member.
        let next_member = member.map(|member| {
            let record = &mut shared.record.runs[member];
            let before = record.clone();
            record.state = MemberState::Running;
            (member, before)
        });
        let is_remaining = |&member: &usize| {
            let state = shared.record.runs[member].state;
            queued.contains(&member) || matches!(state, MemberState::Running | MemberState::Paused)
        };
        let all = 0..self.sweep.members.len();
        let remaining: Vec<&Spec> = all.filter(is_remaining).map(|member| &self.sweep.members[member].spec).collect();
        drop(shared);
        self.servers.retain(&remaining);
        next_member
    }

    fn run_one(&self, member: usize, pause: Option<&Pause>) -> Result<Summary, RunError> {
        let folder = self.folder.join(&self.lock().record.runs[member].folder);
        let sweep_name = self.folder.file_name().unwrap_or_default().to_string_lossy();
        let membership = Membership {
            folder: &folder,
            id: format!("{sweep_name}-{:03}", member + 1),
            servers: &self.servers,
            preparing: &self.preparing,
            pause: pause.cloned(),
            rows: &self.rows,
        };
        let mut observer = MemberObserver { members: self, member };
        run_member(&self.sweep.members[member].spec, self.registry, &membership, &mut observer, self.stop)
    }
}

/// Records the end of a run's work.
fn settle(record: &mut MemberRecord, result: Result<Summary, RunError>) {
    match result {
        Err(error) => (record.state, record.error) = (MemberState::Failed, Some(in_one_line(&error))),
        Ok(Summary { paused: Some(measured), .. }) => {
            record.state = MemberState::Paused;
            record.measured.push(measured);
        }
        Ok(Summary { interrupted: true, .. }) => record.state = MemberState::Interrupted,
        Ok(_) => record.state = MemberState::Finished,
    }
}

impl Shared<'_> {
    /// Writes the state of the sweep.
    pub(super) fn save(&mut self, folder: &Path) -> Result<(), SweepError> {
        self.record.seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
        self.record.save(folder).map_err(SweepError::Record)
    }
}

/// Passes the events of one run to the observer of the sweep.
struct MemberObserver<'a, 'b> {
    members: &'a Members<'b>,
    member: usize,
}

impl Observer for MemberObserver<'_, '_> {
    fn event(&mut self, event: Event<'_>) {
        self.members.lock().observer.event(SweepEvent::Run { member: self.member, event });
    }
}
