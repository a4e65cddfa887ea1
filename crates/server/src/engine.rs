use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use sepal_blocks::BlockStack;
use sepal_wire::{Failure, FailureCode};
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce(&BlockStack) + Send>;

/// The compute thread and its queue: first come, first served.
#[derive(Debug)]
pub(crate) struct Engine {
    jobs: mpsc::Sender<Job>,
    queue: Arc<AtomicU32>,
    max_queue: u32,
}

impl Engine {
    /// Starts the thread. It ends when the engine is dropped and the queue is empty.
    pub(crate) fn start(stack: BlockStack, threads: Option<u32>, max_queue: u32) -> io::Result<(Self, JoinHandle<()>)> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = thread::Builder::new().name("sepal-compute".into()).spawn(move || {
            if let Some(threads) = threads {
                tch::set_num_threads(threads.try_into().unwrap_or(i32::MAX));
            }
            for job in queue {
                job(&stack);
            }
        })?;
        Ok((Self { jobs, queue: Arc::default(), max_queue }, thread))
    }

    /// Calls that wait or run.
    pub(crate) fn queue(&self) -> u32 {
        self.queue.load(Ordering::Relaxed)
    }

    /// Runs `work` on the compute thread. If the caller goes away first, it is not run at all.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&BlockStack) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        if self.queue() >= self.max_queue {
            return Err(Failure::new(FailureCode::Overloaded, format!("{} calls wait already", self.max_queue)));
        }
        let waiting = Waiting::new(&self.queue);
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |stack| {
            if !reply.is_closed() {
                let result = catch_unwind(AssertUnwindSafe(|| work(stack))).unwrap_or_else(|panic| {
                    let text = panic.downcast_ref::<String>().map(String::as_str);
                    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
                    tracing::error!(%text, "a computation panicked");
                    Err(Failure::new(FailureCode::ComputeFailed, format!("a bug in the server: {text}")))
                });
                // A caller that has gone in the meantime wants no answer.
                let _ = reply.send(result);
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
