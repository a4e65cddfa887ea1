use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sepal_blocks::BlockStack;
use sepal_wire::{Failure, FailureCode, Timing};
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce(&BlockStack) + Send>;

/// The compute thread and its queue: first come, first served.
#[derive(Debug)]
pub(crate) struct Engine {
    jobs: mpsc::Sender<Job>,
    queue: Arc<AtomicU32>,
    completed: Arc<AtomicU64>,
    options: EngineOptions,
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

impl Engine {
    /// Starts the thread. It ends when the engine is dropped and the queue is empty.
    pub(crate) fn start(stack: BlockStack, options: EngineOptions) -> io::Result<(Self, JoinHandle<()>)> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = thread::Builder::new().name("sepal-compute".into()).spawn(move || {
            if let Some(threads) = options.threads {
                tch::set_num_threads(threads.try_into().unwrap_or(i32::MAX));
            }
            for job in queue {
                job(&stack);
            }
        })?;
        Ok((Self { jobs, queue: Arc::default(), completed: Arc::default(), options }, thread))
    }

    /// Calls that wait or run.
    pub(crate) fn queue(&self) -> u32 {
        self.queue.load(Ordering::Relaxed)
    }

    /// The count of calls that wait or run, and that of computations finished since the start.
    pub(crate) fn counts(&self) -> (Arc<AtomicU32>, Arc<AtomicU64>) {
        (Arc::clone(&self.queue), Arc::clone(&self.completed))
    }

    /// Runs `work` of so many tokens times blocks on the compute thread, and says what it took. If the caller goes
    /// away first, it is not run at all.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        token_blocks: usize,
        work: impl FnOnce(&BlockStack) -> Result<T, Failure> + Send + 'static,
    ) -> Result<(T, Timing), Failure> {
        let EngineOptions { max_queue, pace, .. } = self.options;
        if self.queue() >= max_queue {
            return Err(Failure::new(FailureCode::Overloaded, format!("{max_queue} calls wait already")));
        }
        let waiting = Waiting::new(&self.queue);
        let completed = Arc::clone(&self.completed);
        let came = Instant::now();
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |stack| {
            if !reply.is_closed() {
                let begun = Instant::now();
                let result = catch_unwind(AssertUnwindSafe(|| work(stack))).unwrap_or_else(|panic| {
                    let text = panic.downcast_ref::<String>().map(String::as_str);
                    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
                    tracing::error!(%text, "a computation panicked");
                    Err(Failure::new(FailureCode::ComputeFailed, format!("a bug in the server: {text}")))
                });
                if let Some(pace) = pace {
                    let least = pace.saturating_mul(u32::try_from(token_blocks).unwrap_or(u32::MAX));
                    thread::sleep(least.saturating_sub(begun.elapsed()));
                }
                completed.fetch_add(1, Ordering::Relaxed);
                let timing = Timing { queued: begun - came, computed: begun.elapsed() };
                // A caller that has gone in the meantime wants no answer.
                let _ = reply.send(result.map(|value| (value, timing)));
            }
            drop(waiting);
        });
        let stopped = || Failure::new(FailureCode::ShuttingDown, "the server is stopping");
        self.jobs.send(job).map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

/// Counts one call from its coming to its end.
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
