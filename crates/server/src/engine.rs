use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sepal_blocks::BlockStack;
use sepal_wire::{Failure, FailureCode, Timing};
use tokio::sync::oneshot;

use crate::compute::{self, Done, Job};
use crate::queue::{ClientId, FairQueue};

/// Positions up to which calls of several clients are run together. A larger one has enough rows for its products alone;
/// together, the first caller would only wait for the last.
const TOGETHER: usize = 1024;

/// The compute thread and its queue.
#[derive(Debug)]
pub(crate) struct Engine {
    orders: Arc<Orders>,
    queue: Arc<AtomicU32>,
    completed: Arc<AtomicU64>,
    max_queue: u32,
}

/// How an engine runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EngineOptions {
    /// Threads of one computation; libtorch's choice if not set.
    pub(crate) threads: Option<u32>,
    /// Calls that may wait before others are refused.
    pub(crate) max_queue: u32,
    /// What a computation takes at least for each token and block.
    pub(crate) pace: Option<Duration>,
}

/// What waits for the compute thread.
#[derive(Debug, Default)]
struct Orders {
    state: Mutex<State>,
    came: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: FairQueue<Order>,
    is_closed: bool,
}

impl Orders {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call.
#[derive(Debug)]
struct Order {
    job: Job,
    alone: bool,
    came: Instant,
    reply: oneshot::Sender<Result<(Done, Timing), Failure>>,
    waiting: Waiting,
}

impl Order {
    /// Whether it may be run with those that were taken already.
    fn joins(&self, taken: &[Order]) -> bool {
        let positions: usize = taken.iter().map(|order| order.job.positions()).sum();
        !self.alone
            && positions + self.job.positions() <= TOGETHER
            && taken.first().is_some_and(|first| !first.alone && first.job.goes_with(&self.job))
    }
}

impl Engine {
    /// Starts the thread. It ends when the engine is dropped and the queue is empty.
    pub(crate) fn start(stack: BlockStack, options: EngineOptions) -> io::Result<(Self, JoinHandle<()>)> {
        let engine = Self {
            orders: Arc::default(),
            queue: Arc::default(),
            completed: Arc::default(),
            max_queue: options.max_queue,
        };
        let (orders, completed) = (Arc::clone(&engine.orders), Arc::clone(&engine.completed));
        let thread = thread::Builder::new().name("sepal-compute".into()).spawn(move || {
            if let Some(threads) = options.threads {
                tch::set_num_threads(threads.try_into().unwrap_or(i32::MAX));
            }
            while let Some(taken) = next(&orders) {
                run(&stack, taken, options.pace, &completed);
            }
        })?;
        Ok((engine, thread))
    }

    /// Calls that wait or run.
    pub(crate) fn queue(&self) -> u32 {
        self.queue.load(Ordering::Relaxed)
    }

    /// The count of calls that wait or run, and that of computations finished since the start.
    pub(crate) fn counts(&self) -> (Arc<AtomicU32>, Arc<AtomicU64>) {
        (Arc::clone(&self.queue), Arc::clone(&self.completed))
    }

    /// Runs a client's job on the compute thread, possibly with those of other clients unless it is to be `alone`, and
    /// says what it took: computing that was shared counts by positions. If the caller goes away first, it is not run.
    pub(crate) async fn run(&self, client: ClientId, job: Job, alone: bool) -> Result<(Done, Timing), Failure> {
        if self.queue() >= self.max_queue {
            return Err(Failure::new(FailureCode::Overloaded, format!("{} calls wait already", self.max_queue)));
        }
        let (reply, answer) = oneshot::channel();
        let cost = job.token_blocks();
        let order = Order { job, alone, came: Instant::now(), reply, waiting: Waiting::new(&self.queue) };
        self.orders.lock().queue.push(client, cost, order);
        self.orders.came.notify_one();
        answer.await.map_err(|_| Failure::new(FailureCode::ShuttingDown, "the server is stopping"))?
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.orders.lock().is_closed = true;
        self.orders.came.notify_one();
    }
}

/// The orders that are run next, or nothing when there will be none.
fn next(orders: &Orders) -> Option<Vec<Order>> {
    let mut state = orders.lock();
    loop {
        let taken = state.queue.take(|taken, order| order.joins(taken));
        if !taken.is_empty() {
            return Some(taken);
        }
        if state.is_closed {
            return None;
        }
        state = orders.came.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

fn run(stack: &BlockStack, taken: Vec<Order>, pace: Option<Duration>, completed: &AtomicU64) {
    let begun = Instant::now();
    let (mut jobs, mut callers) = (Vec::new(), Vec::new());
    for Order { job, came, reply, waiting, .. } in taken.into_iter().filter(|order| !order.reply.is_closed()) {
        callers.push((job.positions(), came, reply, waiting));
        jobs.push(job);
    }
    let Some(all) = callers.iter().map(|(positions, ..)| *positions).reduce(|a, b| a + b) else { return };
    let token_blocks: usize = jobs.iter().map(Job::token_blocks).sum();
    let results = catch_unwind(AssertUnwindSafe(|| compute::run(stack, jobs))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        tracing::error!(%text, "a computation panicked");
        let bug = || Err(Failure::new(FailureCode::ComputeFailed, format!("a bug in the server: {text}")));
        callers.iter().map(|_| bug()).collect()
    });
    if let Some(pace) = pace {
        let least = pace.saturating_mul(u32::try_from(token_blocks).unwrap_or(u32::MAX));
        thread::sleep(least.saturating_sub(begun.elapsed()));
    }
    let took = begun.elapsed();
    for ((positions, came, reply, waiting), result) in callers.into_iter().zip(results) {
        completed.fetch_add(1, Ordering::Relaxed);
        let computed = took.mul_f64(positions as f64 / all.max(1) as f64);
        let timing = Timing { queued: came.elapsed().saturating_sub(computed), computed };
        // A caller that has gone in the meantime wants no answer.
        let _ = reply.send(result.map(|done| (done, timing)));
        drop(waiting);
    }
}

/// Counts one call from its coming to its end.
#[derive(Debug)]
struct Waiting(Arc<AtomicU32>);

impl Waiting {
    fn new(queue: &Arc<AtomicU32>) -> Self {
        queue.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(queue))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
