//! All trackers of a run: each on a thread of its own, so that none of them can stop or stall what it follows.

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

/// How far trackers may fall behind, how long they are waited for and how much is said of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackerLimits {
    /// Steps that may wait for one tracker; further ones are not told to it.
    pub queue: usize,
    /// How long [`Trackers::finish`] waits for all of them together.
    pub finish: Duration,
    /// Warnings of one tracker; what goes wrong after that is counted.
    pub warnings: usize,
}

impl Default for TrackerLimits {
    fn default() -> Self {
        Self { queue: 1024, finish: Duration::from_secs(15), warnings: 3 }
    }
}

/// Takes a warning, in one line. Called from the run's thread and from those of trackers.
pub type Warn = Arc<dyn Fn(&str) + Send + Sync>;

/// The trackers of one run.
///
/// None of its methods but [`finish`](Self::finish) waits for a tracker, and none fails: what a tracker cannot do is a
/// warning. Steps are left out for a tracker that is too far behind; evaluations and the end never are.
pub struct Trackers {
    workers: Vec<Worker>,
    ended: Receiver<usize>,
    limits: TrackerLimits,
    warn: Warn,
}

impl Trackers {
    /// Gives each tracker a thread and tells it that the run begins; the names are for warnings.
    pub fn start(trackers: Vec<(String, Box<dyn Tracker>)>, run: &RunInfo, limits: TrackerLimits, warn: Warn) -> Self {
        let (end, ended) = mpsc::channel();
        let run = Arc::new(run.clone());
        let mut workers = Vec::with_capacity(trackers.len());
        for (i, (name, tracker)) in trackers.into_iter().enumerate() {
            let voice = Voice { name: name.clone(), warn: Arc::clone(&warn), left: limits.warnings, untold: 0 };
            match Worker::spawn(tracker, voice, Ended { i, end: end.clone() }) {
                Ok(worker) => {
                    worker.tell(News::Start(Arc::clone(&run)));
                    workers.push(worker);
                }
                Err(error) => {
                    warn(&format!("tracker `{name}` does not follow the run, it has no thread: {error}"));
                    workers.push(Worker::none(name));
                }
            }
        }
        Self { workers, ended, limits, warn }
    }

    /// [`start`](Self::start) with the usual limits and warnings that go to `tracing`.
    pub fn start_with_defaults(trackers: Vec<(String, Box<dyn Tracker>)>, run: &RunInfo) -> Self {
        Self::start(trackers, run, TrackerLimits::default(), Arc::new(|line| tracing::warn!("{line}")))
    }

    /// Whether nobody follows the run.
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Tells of a step, unless a tracker is too far behind.
    pub fn step(&mut self, record: &StepRecord) {
        if self.is_empty() {
            return;
        }
        let record = Arc::new(record.clone());
        for worker in &mut self.workers {
            if worker.waiting.load(Ordering::Relaxed) < self.limits.queue {
                worker.waiting.fetch_add(1, Ordering::Relaxed);
                worker.tell(News::Step(Arc::clone(&record)));
                continue;
            }
            if worker.dropped == 0 {
                (self.warn)(&format!(
                    "tracker `{}` is {} steps behind: it is not told of further ones until it has caught up",
                    worker.name, self.limits.queue
                ));
            }
            worker.dropped += 1;
        }
    }

    /// Tells of an evaluation.
    pub fn evaluation(&mut self, record: &EvaluationRecord) {
        let record = Arc::new(record.clone());
        self.workers.iter().for_each(|worker| worker.tell(News::Evaluation(Arc::clone(&record))));
    }

    /// Tells that the run ended, and waits for the trackers, as long as the limits say. A tracker that does not end in
    /// time is left behind: its thread ends with the process.
    ///
    /// Returns the names of those, which were warned of as well.
    pub fn finish(mut self, manifest: &Manifest) -> Vec<String> {
        let manifest = Arc::new(manifest.clone());
        for worker in &mut self.workers {
            worker.tell(News::Finish(Arc::clone(&manifest)));
            worker.news = None;
        }
        self.await_ends();
        for worker in &self.workers {
            if worker.dropped > 0 {
                (self.warn)(&format!("tracker `{}` was not told of {} steps", worker.name, worker.dropped));
            }
            if worker.runs {
                (self.warn)(&format!("tracker `{}` did not end in time and was left behind", worker.name));
            }
        }
        self.workers.iter().filter(|worker| worker.runs).map(|worker| worker.name.clone()).collect()
    }

    fn await_ends(&mut self) {
        let deadline = Instant::now() + self.limits.finish;
        while self.workers.iter().any(|worker| worker.runs) {
            match self.ended.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(i) => self.workers[i].runs = false,
                Err(_) => return,
            }
        }
    }
}

impl fmt::Debug for Trackers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.workers.iter().map(|worker| &*worker.name).collect();
        f.debug_struct("Trackers").field("names", &names).field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// What a tracker is told.
enum News {
    Start(Arc<RunInfo>),
    Step(Arc<StepRecord>),
    Evaluation(Arc<EvaluationRecord>),
    Finish(Arc<Manifest>),
}

/// One tracker's thread, from outside.
struct Worker {
    name: String,
    /// Without a bound: what may not be dropped does not block either. Steps are counted in `waiting`.
    news: Option<Sender<News>>,
    waiting: Arc<AtomicUsize>,
    dropped: u64,
    runs: bool,
}

impl Worker {
    fn spawn(tracker: Box<dyn Tracker>, voice: Voice, ended: Ended) -> std::io::Result<Self> {
        let (news, inbox) = mpsc::channel();
        let (name, waiting) = (voice.name.clone(), Arc::new(AtomicUsize::new(0)));
        let follower = Follower { tracker, inbox, waiting: Arc::clone(&waiting), voice };
        std::thread::Builder::new().name(format!("track-{name}")).spawn(move || {
            // Whatever happens, the end is told last.
            let _ended = ended;
            follower.run();
        })?;
        Ok(Self { name, news: Some(news), waiting, dropped: 0, runs: true })
    }

    fn none(name: String) -> Self {
        Self { name, news: None, waiting: Arc::default(), dropped: 0, runs: false }
    }

    /// Who has stopped following hears nothing.
    fn tell(&self, news: News) {
        if let Some(sender) = &self.news {
            let _ = sender.send(news);
        }
    }
}

/// Tells that a thread ends.
struct Ended {
    i: usize,
    end: Sender<usize>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.end.send(self.i);
    }
}

/// One tracker's thread, from inside.
struct Follower {
    tracker: Box<dyn Tracker>,
    inbox: Receiver<News>,
    waiting: Arc<AtomicUsize>,
    voice: Voice,
}

impl Follower {
    fn run(self) {
        let Self { mut tracker, inbox, waiting, mut voice } = self;
        for news in inbox {
            if matches!(news, News::Step(_)) {
                waiting.fetch_sub(1, Ordering::Relaxed);
            }
            let is_start = matches!(news, News::Start(_));
            match catch_unwind(AssertUnwindSafe(|| tell(&mut *tracker, &news))) {
                Ok(Ok(())) => {}
                Ok(Err(error)) if is_start && !tracker.goes_on() => {
                    voice.say(&format!("does not follow the run: {}", in_full(&*error)));
                    break;
                }
                Ok(Err(error)) => voice.say(&in_full(&*error)),
                Err(panic) => {
                    voice.say(&format!("does not follow the run any more, it panicked: {}", words(&*panic)));
                    break;
                }
            }
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(move || drop(tracker))) {
            voice.say(&format!("panicked at its end: {}", words(&*panic)));
        }
        voice.say_untold();
    }
}

fn tell(tracker: &mut dyn Tracker, news: &News) -> Result<(), TrackError> {
    match news {
        News::Start(run) => tracker.start(run),
        News::Step(record) => tracker.step(record),
        News::Evaluation(record) => tracker.evaluation(record),
        News::Finish(manifest) => tracker.finish(manifest),
    }
}

/// Warns in a tracker's name, a few times.
struct Voice {
    name: String,
    warn: Warn,
    left: usize,
    untold: u64,
}

impl Voice {
    fn say(&mut self, what: &str) {
        if self.left == 0 {
            self.untold += 1;
            return;
        }
        self.left -= 1;
        (self.warn)(&format!("tracker `{}`: {what}", self.name));
    }

    fn say_untold(&self) {
        if self.untold > 0 {
            (self.warn)(&format!("tracker `{}`: {} more warnings were left out", self.name, self.untold));
        }
    }
}

/// An error with its causes, whatever lines it has, in one.
fn in_full(error: &dyn Error) -> String {
    in_one_line(error).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it did not say why")
}

#[cfg(test)]
mod tests;
