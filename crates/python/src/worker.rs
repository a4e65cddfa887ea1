//! Threads that own the state of Python objects.
//!
//! Models are no values that threads may share, and a thread of Python must answer Ctrl-C while a model computes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pyo3::prelude::*;
use sepal_pipeline::Observer;
use serde_json::json;

use crate::events::Events;
use crate::failure::{Failure, describe, exception};

/// Interval of checks for Ctrl-C.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(100);

/// Size of the stack, as that of a program's first thread usually is; the default for threads is a quarter of it.
const STACK_BYTES: usize = 8 << 20;

/// Message of a job to the thread that waits for it.
pub(crate) enum Message<T> {
    /// Event as JSON.
    Event(String),
    /// Result, or the text of an error.
    Done(Result<T, String>),
}

/// Reaction to a second Ctrl-C during a job. The first one asks the job to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SecondInterrupt {
    /// The caller waits for the job, because it writes files that the caller may use.
    Wait,
    /// The caller goes on at once. The job ends by itself, and its result is dropped.
    Leave,
}

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// Queue of a thread and its end; `None` after it was closed.
type Running<S> = Option<(Sender<Job<S>>, JoinHandle<()>)>;

/// Thread that owns a state and runs jobs on it, one after the other.
pub(crate) struct Worker<S> {
    running: Mutex<Running<S>>,
}

impl<S: 'static> Worker<S> {
    /// Starts the thread, which opens its state. Returns with it the second value of `open`.
    pub(crate) fn start<T: Send + 'static>(
        py: Python<'_>,
        progress: Option<&Bound<'_, PyAny>>,
        second_interrupt: SecondInterrupt,
        open: impl FnOnce(&mut dyn Observer, &AtomicBool) -> Result<(S, T), Failure> + Send + 'static,
    ) -> PyResult<(Self, T)> {
        let (jobs, queue) = mpsc::channel::<Job<S>>();
        let (reply, messages) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let thread_stop = Arc::clone(&stop);
        let run = move || {
            let opened = open(&mut Events(reply.clone()), &thread_stop);
            let (state, result) = match opened {
                Ok((state, value)) => (Some(state), Ok(value)),
                Err(error) => (None, Err(describe(&*error))),
            };
            drop(reply.send(Message::Done(result)));
            drop(reply);
            if let Some(mut state) = state {
                queue.into_iter().for_each(|job| job(&mut state));
            }
        };
        let thread = thread::Builder::new().name("sepal".to_owned()).stack_size(STACK_BYTES).spawn(run)?;
        let value = wait(py, messages, progress, &stop, second_interrupt)?;
        Ok((Self { running: Mutex::new(Some((jobs, thread))) }, value))
    }

    /// Runs a job on the state and waits for it, without the interpreter's lock.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        py: Python<'_>,
        job: impl FnOnce(&mut S) -> Result<T, Failure> + Send + 'static,
    ) -> PyResult<T> {
        let jobs = self.lock().as_ref().map(|(jobs, _)| jobs.clone());
        let (reply, messages) = mpsc::channel();
        let run: Job<S> = Box::new(move |state: &mut S| {
            let result = job(state).map_err(|error| describe(&*error));
            // The waiting thread may have left after a second Ctrl-C.
            drop(reply.send(Message::Done(result)));
        });
        match jobs.map(|jobs| jobs.send(run)) {
            Some(Ok(())) => wait(py, messages, None, &AtomicBool::new(false), SecondInterrupt::Leave),
            Some(Err(_)) => Err(exception(py, ENDED)),
            None => Err(exception(py, "failed to compute: it is closed")),
        }
    }

    /// Ends the thread and frees its state. Later calls fail.
    pub(crate) fn close(&self, py: Python<'_>) {
        let running = self.lock().take();
        if let Some((jobs, thread)) = running {
            drop(jobs);
            // A panic of the thread has failed the job that it was in.
            py.detach(move || drop(thread.join()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Running<S>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const ENDED: &str = "failed to compute: an earlier error ended the thread; open it again";

/// Notice after a second Ctrl-C.
const STILL_SAVING: &str = "the run is still ending its step and saving it; it cannot be left before that";

/// Waits for the result of a job and passes its events to `progress`. After Ctrl-C, or an error of `progress`, it sets `stop`
/// and returns the exception when the job has ended, or after a second Ctrl-C if the job can be left.
fn wait<T: Send>(
    py: Python<'_>,
    mut messages: Receiver<Message<T>>,
    mut progress: Option<&Bound<'_, PyAny>>,
    stop: &AtomicBool,
    second_interrupt: SecondInterrupt,
) -> PyResult<T> {
    let mut interruption: Option<PyErr> = None;
    loop {
        let (receiver, message) = py.detach(move || {
            let message = messages.recv_timeout(SIGNAL_INTERVAL);
            (messages, message)
        });
        messages = receiver;
        let refused = match message {
            Ok(Message::Event(text)) => progress.and_then(|progress| progress.call1((text,)).err()),
            Ok(Message::Done(result)) => {
                return match (interruption, result) {
                    (Some(error), _) => Err(error),
                    (None, result) => result.map_err(|text| exception(py, &text)),
                };
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Err(interruption.unwrap_or_else(|| exception(py, ENDED))),
        };
        if refused.is_some() {
            progress = None;
        }
        if let Some(error) = refused.or_else(|| py.check_signals().err()) {
            stop.store(true, Ordering::Relaxed);
            match second_interrupt {
                _ if interruption.is_none() => interruption = Some(error),
                SecondInterrupt::Leave => return Err(error),
                SecondInterrupt::Wait => {
                    let notice = json!({ "event": "notice", "text": STILL_SAVING }).to_string();
                    // The first exception is the one that is raised.
                    progress = progress.filter(|progress| progress.call1((notice,)).is_ok());
                }
            }
        }
    }
}
