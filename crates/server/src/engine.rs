//! Compute thread and its queue.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sepal_wire::{Failure, FailureCode, Timing};
use tokio::sync::oneshot;

use crate::compute::{self, Job, JobOutput};
use crate::lock::lock;
use crate::mailbox::shutting_down;
use crate::queue::{ClientId, FairQueue};
use crate::serve::ServerOptions;
use crate::stacks::DeviceStacks;

/// Maximum positions of a batch of several clients' calls. A larger call fills its matrix products by itself, so a batch would
/// only delay the first caller.
const MAX_BATCH_POSITIONS: usize = 1024;

pub(crate) struct Engine {
    jobs: Arc<JobQueue>,
    counters: EngineCounters,
    max_queue: u32,
}

/// Counters that other threads read.
#[derive(Debug, Clone, Default)]
pub(crate) struct EngineCounters {
    pub(crate) queue: Arc<AtomicU32>,
    /// Number of computations since the start.
    pub(crate) completed: Arc<AtomicU64>,
}

#[derive(Default)]
struct JobQueue {
    state: Mutex<QueueState>,
    changed: Condvar,
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
            let batch = state.queue.take(|batch, job| job.can_join(batch));
            if !batch.is_empty() {
                return Some(batch);
            }
            if state.is_closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
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
    _guard: QueueGuard,
}

impl QueuedJob {
    fn can_join(&self, batch: &[QueuedJob]) -> bool {
        let positions: usize = batch.iter().map(|queued| queued.job.positions()).sum();
        !self.exclusive
            && positions + self.job.positions() <= MAX_BATCH_POSITIONS
            && batch.first().is_some_and(|first| !first.exclusive && first.job.can_batch_with(&self.job))
    }
}

impl Engine {
    /// Starts the thread. It ends when the engine is dropped and the queue is empty.
    pub(crate) fn start(stacks: DeviceStacks, options: &ServerOptions) -> io::Result<(Self, JoinHandle<()>)> {
        let &ServerOptions { threads, max_queue, pace, .. } = options;
        let engine = Self { jobs: Arc::default(), counters: EngineCounters::default(), max_queue };
        let (jobs, counters) = (Arc::clone(&engine.jobs), engine.counters.clone());
        let thread = thread::Builder::new().name("sepal-compute".into()).spawn(move || {
            if let Some(threads) = threads {
                tch::set_num_threads(threads.try_into().unwrap_or(i32::MAX));
            }
            while let Some(batch) = jobs.next_batch() {
                run_batch(&stacks, batch, pace, &counters.completed);
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
    /// computing time is divided by positions. A job whose caller is dropped before it starts does not run.
    pub(crate) async fn run(
        &self,
        client: ClientId,
        job: Job,
        exclusive: bool,
    ) -> Result<(JobOutput, Timing), Failure> {
        if self.queue() >= self.max_queue {
            return Err(Failure::new(FailureCode::Overloaded, format!("{} calls wait already", self.max_queue)));
        }
        let (reply, answer) = oneshot::channel();
        let cost = job.token_blocks();
        let caller = JobCaller { queued_at: Instant::now(), reply, _guard: QueueGuard::new(&self.counters.queue) };
        self.jobs.lock().queue.push(client, cost, QueuedJob { job, exclusive, caller });
        self.jobs.changed.notify_one();
        answer.await.map_err(|_| shutting_down())?
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.jobs.lock().is_closed = true;
        self.jobs.changed.notify_one();
    }
}

fn run_batch(stacks: &DeviceStacks, batch: Vec<QueuedJob>, pace: Option<Duration>, completed: &AtomicU64) {
    let started_at = Instant::now();
    let (mut jobs, mut callers) = (Vec::new(), Vec::new());
    for QueuedJob { job, caller, .. } in batch.into_iter().filter(|queued| !queued.caller.reply.is_closed()) {
        callers.push((job.positions(), caller));
        jobs.push(job);
    }
    if jobs.is_empty() {
        return;
    }
    let total_positions: usize = callers.iter().map(|(positions, _)| positions).sum();
    let token_blocks: usize = jobs.iter().map(Job::token_blocks).sum();
    let results = catch_unwind(AssertUnwindSafe(|| compute::run(stacks, jobs))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        tracing::error!(%text, "a computation panicked");
        let bug = || Err(Failure::new(FailureCode::ComputeFailed, format!("a bug in the server: {text}")));
        callers.iter().map(|_| bug()).collect()
    });
    if let Some(pace) = pace {
        let minimum = pace.saturating_mul(u32::try_from(token_blocks).unwrap_or(u32::MAX));
        thread::sleep(minimum.saturating_sub(started_at.elapsed()));
    }
    let elapsed = started_at.elapsed();
    for ((positions, JobCaller { queued_at, reply, _guard }), result) in callers.into_iter().zip(results) {
        completed.fetch_add(1, Ordering::Relaxed);
        let computed = elapsed.mul_f64(positions as f64 / total_positions.max(1) as f64);
        let timing = Timing { queued: queued_at.elapsed().saturating_sub(computed), computed };
        // Fails if the caller was dropped in the meantime.
        let _ = reply.send(result.map(|output| (output, timing)));
    }
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
