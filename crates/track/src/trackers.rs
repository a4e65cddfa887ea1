//! All trackers of a run, each on its own thread, so that none of them can stop or stall the run.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use sepal_core::in_one_line;

use crate::{EvaluationRecord, Manifest, RunInfo, StepRecord, TrackError, Tracker};

/// Limits of the queue, the waiting time and the warnings of trackers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackerLimits {
    /// Maximum number of queued steps of one tracker; further steps are dropped.
    pub max_queued_steps: usize,
    /// Timeout of [`Trackers::finish`] for all trackers together.
    pub finish_timeout: Duration,
    /// Maximum number of warnings of one tracker; further ones are counted.
    pub max_warnings: usize,
}

impl Default for TrackerLimits {
    fn default() -> Self {
        Self { max_queued_steps: 1024, finish_timeout: Duration::from_secs(15), max_warnings: 3 }
    }
}

/// Receiver of one-line warnings, called from the threads of the run and of the trackers.
pub type WarningHandler = Arc<dyn Fn(&str) + Send + Sync>;

/// Trackers of one run.
///
/// No method except [`finish`](Self::finish) waits for a tracker, and none fails: errors of trackers become warnings.
/// Steps are dropped for a tracker that is too far behind; evaluations and the end never are.
pub struct Trackers {
    handles: Vec<TrackerHandle>,
    exits: Receiver<usize>,
    limits: TrackerLimits,
    warn: WarningHandler,
}

impl Trackers {
    /// Starts a thread for each named tracker and sends the start of the run.
    pub fn start(
        trackers: Vec<(String, Box<dyn Tracker>)>,
        run: &RunInfo,
        limits: TrackerLimits,
        warn: WarningHandler,
    ) -> Self {
        let (end, exits) = mpsc::channel();
        let run = Arc::new(run.clone());
        let mut handles = Vec::with_capacity(trackers.len());
        for (i, (name, tracker)) in trackers.into_iter().enumerate() {
            let left = limits.max_warnings;
            let warnings = WarningLimiter { name: name.clone(), warn: Arc::clone(&warn), left, suppressed: 0 };
            match TrackerHandle::spawn(tracker, warnings, ExitNotice { i, end: end.clone() }) {
                Ok(handle) => {
                    handle.tell(TrackerEvent::Start(Arc::clone(&run)));
                    handles.push(handle);
                }
                Err(error) => {
                    warn(&format!("tracker `{name}` does not track the run, its thread did not start: {error}"));
                    handles.push(TrackerHandle::without_thread(name));
                }
            }
        }
        Self { handles, exits, limits, warn }
    }

    /// Same as [`start`](Self::start) with default limits and warnings that go to `tracing`.
    pub fn start_with_defaults(trackers: Vec<(String, Box<dyn Tracker>)>, run: &RunInfo) -> Self {
        Self::start(trackers, run, TrackerLimits::default(), Arc::new(|line| tracing::warn!("{line}")))
    }

    /// Returns true without trackers.
    pub fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }

    /// Sends a step to each tracker that is not too far behind.
    pub fn step(&mut self, record: &StepRecord) {
        if self.is_empty() {
            return;
        }
        let record = Arc::new(record.clone());
        for handle in &mut self.handles {
            if handle.queued_steps.load(Ordering::Relaxed) < self.limits.max_queued_steps {
                handle.queued_steps.fetch_add(1, Ordering::Relaxed);
                handle.tell(TrackerEvent::Step(Arc::clone(&record)));
                continue;
            }
            if handle.dropped == 0 {
                (self.warn)(&format!(
                    "tracker `{}` is {} steps behind: further steps are dropped until it has caught up",
                    handle.name, self.limits.max_queued_steps
                ));
            }
            handle.dropped += 1;
        }
    }

    /// Sends an evaluation.
    pub fn evaluation(&mut self, record: &EvaluationRecord) {
        let record = Arc::new(record.clone());
        self.handles.iter().for_each(|handle| handle.tell(TrackerEvent::Evaluation(Arc::clone(&record))));
    }

    /// Sends the end of the run and waits for the trackers up to the limit. A tracker that does not end in time is
    /// abandoned: its thread ends with the process.
    ///
    /// Returns the names of the abandoned trackers, which also cause warnings.
    pub fn finish(mut self, manifest: &Manifest) -> Vec<String> {
        let manifest = Arc::new(manifest.clone());
        for handle in &mut self.handles {
            handle.tell(TrackerEvent::Finish(Arc::clone(&manifest)));
            handle.sender = None;
        }
        self.wait_for_exits();
        for handle in &self.handles {
            if handle.dropped > 0 {
                (self.warn)(&format!("tracker `{}` missed {} steps", handle.name, handle.dropped));
            }
            if handle.is_running {
                (self.warn)(&format!("tracker `{}` did not end in time and was abandoned", handle.name));
            }
        }
        self.handles.iter().filter(|handle| handle.is_running).map(|handle| handle.name.clone()).collect()
    }

    fn wait_for_exits(&mut self) {
        let deadline = Instant::now() + self.limits.finish_timeout;
        while self.handles.iter().any(|handle| handle.is_running) {
            match self.exits.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(i) => self.handles[i].is_running = false,
                Err(_) => return,
            }
        }
    }
}

impl fmt::Debug for Trackers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.handles.iter().map(|handle| &*handle.name).collect();
        f.debug_struct("Trackers").field("names", &names).field("limits", &self.limits).finish_non_exhaustive()
    }
}

enum TrackerEvent {
    Start(Arc<RunInfo>),
    Step(Arc<StepRecord>),
    Evaluation(Arc<EvaluationRecord>),
    Finish(Arc<Manifest>),
}

struct TrackerHandle {
    name: String,
    /// Unbounded: events that must not be dropped must not block either. Steps are counted in `queued_steps`.
    sender: Option<Sender<TrackerEvent>>,
    queued_steps: Arc<AtomicUsize>,
    dropped: u64,
    is_running: bool,
}

impl TrackerHandle {
    fn spawn(tracker: Box<dyn Tracker>, warnings: WarningLimiter, exits: ExitNotice) -> std::io::Result<Self> {
        let (sender, inbox) = mpsc::channel();
        let (name, queued_steps) = (warnings.name.clone(), Arc::new(AtomicUsize::new(0)));
        let thread = TrackerThread { tracker, inbox, queued_steps: Arc::clone(&queued_steps), warnings };
        std::thread::Builder::new().name(format!("track-{name}")).spawn(move || {
            // Dropped last, also after a panic.
            let _exit_notice = exits;
            thread.run();
        })?;
        Ok(Self { name, sender: Some(sender), queued_steps, dropped: 0, is_running: true })
    }

    fn without_thread(name: String) -> Self {
        Self { name, sender: None, queued_steps: Arc::default(), dropped: 0, is_running: false }
    }

    /// A tracker that has ended receives nothing.
    fn tell(&self, event: TrackerEvent) {
        if let Some(sender) = &self.sender {
            let _ = sender.send(event);
        }
    }
}

/// Reports the end of a thread on drop.
struct ExitNotice {
    i: usize,
    end: Sender<usize>,
}

impl Drop for ExitNotice {
    fn drop(&mut self) {
        let _ = self.end.send(self.i);
    }
}

struct TrackerThread {
    tracker: Box<dyn Tracker>,
    inbox: Receiver<TrackerEvent>,
    queued_steps: Arc<AtomicUsize>,
    warnings: WarningLimiter,
}

impl TrackerThread {
    fn run(self) {
        let Self { mut tracker, inbox, queued_steps, mut warnings } = self;
        for event in inbox {
            if matches!(event, TrackerEvent::Step(_)) {
                queued_steps.fetch_sub(1, Ordering::Relaxed);
            }
            let is_start = matches!(event, TrackerEvent::Start(_));
            match catch_unwind(AssertUnwindSafe(|| tell(&mut *tracker, &event))) {
                Ok(Ok(())) => {}
                Ok(Err(error)) if is_start && !tracker.retries_start() => {
                    warnings.warn(&format!("does not track the run: {}", single_line(&*error)));
                    break;
                }
                Ok(Err(error)) => warnings.warn(&single_line(&*error)),
                Err(panic) => {
                    warnings.warn(&format!("stopped tracking the run, it panicked: {}", panic_message(&*panic)));
                    break;
                }
            }
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(move || drop(tracker))) {
            warnings.warn(&format!("panicked at its end: {}", panic_message(&*panic)));
        }
        warnings.report_suppressed();
    }
}

fn tell(tracker: &mut dyn Tracker, event: &TrackerEvent) -> Result<(), TrackError> {
    match event {
        TrackerEvent::Start(run) => tracker.start(run),
        TrackerEvent::Step(record) => tracker.step(record),
        TrackerEvent::Evaluation(record) => tracker.evaluation(record),
        TrackerEvent::Finish(manifest) => tracker.finish(manifest),
    }
}

/// Sends a limited number of warnings in a tracker's name.
struct WarningLimiter {
    name: String,
    warn: WarningHandler,
    left: usize,
    suppressed: u64,
}

impl WarningLimiter {
    fn warn(&mut self, text: &str) {
        if self.left == 0 {
            self.suppressed += 1;
            return;
        }
        self.left -= 1;
        (self.warn)(&format!("tracker `{}`: {text}", self.name));
    }

    fn report_suppressed(&self) {
        if self.suppressed > 0 {
            (self.warn)(&format!("tracker `{}`: {} more warnings were suppressed", self.name, self.suppressed));
        }
    }
}

/// Error with its causes in one line.
fn single_line(error: &dyn Error) -> String {
    in_one_line(error).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown reason")
}

#[cfg(test)]
mod tests;
