//! Compute thread and its queue.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sepal_blocks::Cancel;
use sepal_wire::{Failure, FailureCode, Timing};
use tokio::sync::oneshot;

use crate::admission::Admitted;
use crate::client::ClientId;
use crate::compute::{self, Job, JobOutput};
use crate::ledger::{Kind, Ledger};
use crate::lock::lock;
use crate::mailbox::shutting_down;
use crate::queue::{FairQueue, Ticket};
use crate::serve::ServerOptions;
use crate::stacks::DeviceStacks;

/// Maximum positions of a batch of several clients' calls. A larger call fills its matrix products by itself, so a batch would
/// only delay the first caller.
const MAX_BATCH_POSITIONS: usize = 1024;

pub(crate) struct Engine {
    jobs: Arc<JobQueue>,
    counters: EngineCounters,
}

/// Counters that other threads read.
#[derive(Debug, Clone, Default)]
pub(crate) struct EngineCounters {
    pub(crate) queue: Arc<AtomicU32>,
    /// Number of computations since the start.
    pub(crate) completed: Arc<AtomicU64>,
    /// True if the compute thread has ended by a panic.
    pub(crate) failed: Arc<AtomicBool>,
}

struct JobQueue {
    state: Mutex<QueueState>,
    changed: Condvar,
    /// Maximum estimated memory of a batch, in bytes.
    max_peak_bytes: u64,
}

#[derive(Default)]
struct QueueState {
    queue: FairQueue<QueuedJob>,
    is_closed: bool,
}

impl JobQueue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        lock(&self.state)
    }

    /// Waits for the next batch; `None` once the queue is closed and empty.
    fn next_batch(&self) -> Option<Vec<QueuedJob>> {
        let mut state = self.lock();
        loop {
            let batch = state.queue.take(|batch, job| job.can_join(batch, self.max_peak_bytes));
            if !batch.is_empty() {
                return Some(batch);
            }
            if state.is_closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Accepts no more jobs and drops those that wait, whose callers get an error.
    fn abandon(&self) {
        let jobs = {
            let mut state = self.lock();
            state.is_closed = true;
            state.queue.clear()
        };
        // Outside the lock, since freeing inputs is slow.
        drop(jobs);
    }
}

struct QueuedJob {
    job: Job,
    /// True if the job never shares a batch with other clients.
    exclusive: bool,
    caller: JobCaller,
}

struct JobCaller {
    queued_at: Instant,
    reply: oneshot::Sender<Result<(JobOutput, Timing), Failure>>,
    admitted: Admitted,
    /// Set when the caller leaves.
    has_left: Arc<AtomicBool>,
    _guard: QueueGuard,
}

impl QueuedJob {
    fn peak_bytes(&self) -> u64 {
        self.caller.admitted.peak_bytes
    }

    fn can_join(&self, batch: &[QueuedJob], max_peak_bytes: u64) -> bool {
        let positions: usize = batch.iter().map(|queued| queued.job.positions()).sum();
        let peak_bytes = batch.iter().map(Self::peak_bytes).fold(self.peak_bytes(), u64::saturating_add);
        !self.exclusive
            && positions + self.job.positions() <= MAX_BATCH_POSITIONS
            && peak_bytes <= max_peak_bytes
            && batch.first().is_some_and(|first| !first.exclusive && first.job.can_batch_with(&self.job))
    }
}

impl Engine {
    /// Starts the thread. It ends when the engine is dropped and the queue is empty. If it ends by a panic, the jobs are
    /// dropped and `on_failure` is called.
    pub(crate) fn start(
        stacks: DeviceStacks,
        options: &ServerOptions,
        ledger: Ledger,
        on_failure: impl FnOnce() + Send + 'static,
    ) -> io::Result<(Self, JoinHandle<()>)> {
        let &ServerOptions { threads, pace, limits, .. } = options;
        let max_peak_bytes = if limits.call_bytes == 0 { u64::MAX } else { limits.call_bytes };
        let jobs = Arc::new(JobQueue { state: Mutex::default(), changed: Condvar::new(), max_peak_bytes });
        let engine = Self { jobs: Arc::clone(&jobs), counters: EngineCounters::default() };
        let counters = engine.counters.clone();
        let thread = thread::Builder::new().name("sepal-compute".into()).spawn(move || {
            if let Some(threads) = threads {
                let threads = threads.clamp(1, sepal_core::MAX_THREADS);
                tch::set_num_threads(threads.try_into().unwrap_or(i32::MAX));
            }
            let run = || {
                while let Some(batch) = jobs.next_batch() {
                    run_batch(&stacks, batch, pace, &counters.completed, &ledger);
                }
            };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
                tracing::error!(text = panic_text(&*panic), "the compute thread has ended, so the server stops");
                counters.failed.store(true, Ordering::Relaxed);
                jobs.abandon();
                on_failure();
            }
        })?;
        Ok((engine, thread))
    }

    pub(crate) fn queue(&self) -> u32 {
        self.counters.queue.load(Ordering::Relaxed)
    }

    pub(crate) fn counters(&self) -> EngineCounters {
        self.counters.clone()
    }

    /// Runs a client's job on the compute thread, possibly in a batch with other clients unless it is `exclusive`. A batch's
    /// computing time is divided by positions. If the caller is dropped, a job that waits leaves the queue at once, and one
    /// that runs without others ends before the next block.
    pub(crate) async fn run(
        &self,
        client: ClientId,
        job: Job,
        exclusive: bool,
        admitted: Admitted,
    ) -> Result<(JobOutput, Timing), Failure> {
        let (reply, answer) = oneshot::channel();
        let cost = job.cost();
        let (queued_at, has_left) = (Instant::now(), Arc::<AtomicBool>::default());
        let guard = QueueGuard::new(&self.counters.queue);
        let caller = JobCaller { queued_at, reply, admitted, has_left: Arc::clone(&has_left), _guard: guard };
        let ticket = {
            let mut state = self.jobs.lock();
            if state.is_closed {
                return Err(shutting_down());
            }
            state.queue.push(client, cost, QueuedJob { job, exclusive, caller })
        };
        self.jobs.changed.notify_one();
        let _guard = LeaveGuard { jobs: &self.jobs, ticket, has_left };
        answer.await.map_err(|_| shutting_down())?
    }
}

/// Cancels a job when its caller is dropped. After the job's end this has no effect.
struct LeaveGuard<'a> {
    jobs: &'a JobQueue,
    ticket: Ticket,
    has_left: Arc<AtomicBool>,
}

impl Drop for LeaveGuard<'_> {
    fn drop(&mut self) {
        self.has_left.store(true, Ordering::Relaxed);
        let job = self.jobs.lock().queue.remove(self.ticket);
        // Outside the lock, since freeing inputs is slow.
        drop(job);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.jobs.lock().is_closed = true;
        self.jobs.changed.notify_one();
    }
}

fn run_batch(
    stacks: &DeviceStacks,
    batch: Vec<QueuedJob>,
    pace: Option<Duration>,
    completed: &AtomicU64,
    ledger: &Ledger,
) {
    let started_at = Instant::now();
    let peak_bytes = batch.iter().map(QueuedJob::peak_bytes).fold(0, u64::saturating_add);
    let (mut jobs, mut callers, mut left) = (Vec::new(), Vec::new(), Vec::new());
    for QueuedJob { job, caller, .. } in batch.into_iter().filter(|queued| !queued.caller.reply.is_closed()) {
        left.push(Arc::clone(&caller.has_left));
        callers.push((job.positions(), caller));
        jobs.push(job);
    }
    if jobs.is_empty() {
        return;
    }
    let _computation = ledger.record(Kind::Computation, peak_bytes);
    let total_positions: usize = callers.iter().map(|(positions, _)| positions).sum();
    let token_blocks: usize = jobs.iter().map(Job::token_blocks).sum();
    let results = catch_panics(|| compute::run(stacks, jobs, Cancel::new(&left)), callers.len());
    if let Some(pace) = pace {
        let minimum = pace.saturating_mul(u32::try_from(token_blocks).unwrap_or(u32::MAX));
        thread::sleep(minimum.saturating_sub(started_at.elapsed()));
    }
    let elapsed = started_at.elapsed();
    for ((positions, JobCaller { queued_at, reply, admitted, .. }), result) in callers.into_iter().zip(results) {
        // The input is freed, which makes room for the answer.
        drop(admitted);
        completed.fetch_add(1, Ordering::Relaxed);
        let computed = elapsed.mul_f64(positions as f64 / total_positions.max(1) as f64);
        let timing = Timing { queued: queued_at.elapsed().saturating_sub(computed), computed };
        // Fails if the caller was dropped in the meantime.
        let _ = reply.send(result.map(|output| (output, timing)));
    }
}

/// Runs a batch; a panic is a failure of each of its jobs.
fn catch_panics<T>(run: impl FnOnce() -> Vec<Result<T, Failure>>, n_jobs: usize) -> Vec<Result<T, Failure>> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic_text(&*panic);
        tracing::error!(%text, "a computation panicked");
        let bug = || Err(Failure::new(FailureCode::ComputeFailed, format!("a bug in the server: {text}")));
        (0..n_jobs).map(|_| bug()).collect()
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// Counts a call as long as it waits or runs.
struct QueueGuard(Arc<AtomicU32>);

impl QueueGuard {
    fn new(queue: &Arc<AtomicU32>) -> Self {
        queue.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(queue))
    }
}

impl Drop for QueueGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_fails_each_job_of_its_batch() {
        let block = 7;
        let results: Vec<Result<(), Failure>> = catch_panics(|| panic!("block {block}"), 2);
        assert_eq!(results.len(), 2);
        for failure in results.into_iter().filter_map(Result::err) {
            assert_eq!(failure.code, FailureCode::ComputeFailed);
            assert_eq!(failure.message, "a bug in the server: block 7");
        }
        let results = catch_panics(|| vec![Ok(1)], 1);
        assert_eq!(results, [Ok(1)]);
    }
}
