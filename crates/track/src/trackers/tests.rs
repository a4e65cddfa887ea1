use std::sync::Mutex;

use super::*;
use crate::examples::{evaluation, manifest, run_info, step};

/// Calls of a tracker, or warnings, in order.
type Log = Arc<Mutex<Vec<String>>>;

fn lines(log: &Log) -> Vec<String> {
    log.lock().expect("not poisoned").clone()
}

fn note(log: &Log, line: impl Into<String>) {
    log.lock().expect("not poisoned").push(line.into());
}

/// Tracker that logs its calls and runs a function before each step.
struct RecordingTracker<F> {
    log: Log,
    on_step: F,
    retries_start: bool,
}

impl<F: FnMut(u64) -> Result<(), TrackError> + Send> Tracker for RecordingTracker<F> {
    fn start(&mut self, run: &RunInfo) -> Result<(), TrackError> {
        note(&self.log, format!("start {}", run.id));
        (self.on_step)(0)
    }

    fn retries_start(&self) -> bool {
        self.retries_start
    }

    fn step(&mut self, record: &StepRecord) -> Result<(), TrackError> {
        (self.on_step)(record.step)?;
        note(&self.log, format!("step {}", record.step));
        Ok(())
    }

    fn evaluation(&mut self, record: &EvaluationRecord) -> Result<(), TrackError> {
        note(&self.log, format!("evaluation {}", record.step));
        Ok(())
    }

    fn finish(&mut self, _: &Manifest) -> Result<(), TrackError> {
        note(&self.log, "finish");
        Ok(())
    }
}

fn recording(on_step: impl FnMut(u64) -> Result<(), TrackError> + Send + 'static) -> (Log, (String, Box<dyn Tracker>)) {
    let log = Log::default();
    (Arc::clone(&log), ("recording".to_owned(), Box::new(RecordingTracker { log, on_step, retries_start: false })))
}

fn track(trackers: Vec<(String, Box<dyn Tracker>)>, limits: TrackerLimits) -> (Trackers, Log) {
    let warnings = Log::default();
    let log = Arc::clone(&warnings);
    let run = run_info("/nowhere".into());
    (Trackers::start(trackers, &run, limits, Arc::new(move |line| note(&log, line))), warnings)
}

#[test]
fn events_arrive_in_order() {
    let (log, tracker) = recording(|_| Ok(()));
    let (other, second) = recording(|_| Ok(()));
    let (mut trackers, warnings) = track(vec![tracker, second], TrackerLimits::default());
    trackers.step(&step(1));
    trackers.step(&step(2));
    trackers.evaluation(&evaluation(2));
    assert_eq!(trackers.finish(&manifest()), Vec::<String>::new());
    assert_eq!(lines(&log), ["start demo-1", "step 1", "step 2", "evaluation 2", "finish"]);
    assert_eq!(lines(&other), lines(&log));
    assert!(lines(&warnings).is_empty());
}

#[test]
fn warnings_are_limited_and_counted() {
    let (log, tracker) = recording(|step| if step > 0 { Err(format!("no step {step}").into()) } else { Ok(()) });
    let limits = TrackerLimits { max_warnings: 2, ..TrackerLimits::default() };
    let (mut trackers, warnings) = track(vec![tracker], limits);
    (1..=5).for_each(|i| trackers.step(&step(i)));
    assert!(trackers.finish(&manifest()).is_empty());
    assert_eq!(lines(&log), ["start demo-1", "finish"]);
    assert_eq!(
        lines(&warnings),
        [
            "tracker `recording`: no step 1",
            "tracker `recording`: no step 2",
            "tracker `recording`: 3 more warnings were suppressed"
        ]
    );
}

#[test]
fn failed_start_or_panic_ends_tracking() {
    let (failing, first) = recording(|_| Err("no server".into()));
    let (panicking, second) = recording(|step| if step == 2 { panic!("step two") } else { Ok(()) });
    let (working, third) = recording(|_| Ok(()));
    let (mut trackers, warnings) = track(vec![first, second, third], TrackerLimits::default());
    (1..=3).for_each(|i| trackers.step(&step(i)));
    assert!(trackers.finish(&manifest()).is_empty());
    assert_eq!(lines(&failing), ["start demo-1"]);
    assert_eq!(lines(&panicking), ["start demo-1", "step 1"]);
    assert_eq!(lines(&working).len(), 5);
    let mut warnings = lines(&warnings);
    warnings.sort();
    assert_eq!(
        warnings,
        [
            "tracker `recording`: does not track the run: no server",
            "tracker `recording`: stopped tracking the run, it panicked: step two",
        ]
    );
}

#[test]
fn retried_start_receives_later_events() {
    let log = Log::default();
    let on_step = |step| if step == 0 { Err("no server yet".into()) } else { Ok(()) };
    let tracker = Box::new(RecordingTracker { log: Arc::clone(&log), on_step, retries_start: true });
    let (mut trackers, warnings) = track(vec![("retrying".to_owned(), tracker)], TrackerLimits::default());
    trackers.step(&step(1));
    assert!(trackers.finish(&manifest()).is_empty());
    assert_eq!(lines(&log), ["start demo-1", "step 1", "finish"]);
    assert_eq!(lines(&warnings), ["tracker `retrying`: no server yet"]);
}

#[test]
fn hanging_tracker_drops_steps_and_is_abandoned() {
    let (release, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let (log, tracker) = recording(move |step| {
        if step == 1 {
            let _ = gate.lock().expect("not poisoned").recv();
        }
        Ok(())
    });
    let limits =
        TrackerLimits { max_queued_steps: 3, finish_timeout: Duration::from_millis(50), ..TrackerLimits::default() };
    let (mut trackers, warnings) = track(vec![tracker], limits);
    trackers.step(&step(1));
    while !lines(&log).contains(&"start demo-1".to_owned())
        || trackers.handles[0].queued_steps.load(Ordering::Relaxed) > 0
    {
        std::thread::yield_now();
    }
    let start = Instant::now();
    for i in 2..=1000 {
        trackers.step(&step(i));
        if i % 100 == 0 {
            trackers.evaluation(&evaluation(i));
        }
    }
    assert_eq!(trackers.finish(&manifest()), ["recording"]);
    assert!(start.elapsed() < Duration::from_secs(5), "the run does not wait");
    assert_eq!(
        lines(&warnings),
        [
            "tracker `recording` is 3 steps behind: further steps are dropped until it has caught up",
            "tracker `recording` missed 996 steps",
            "tracker `recording` did not end in time and was abandoned",
        ]
    );
    drop(release);
    while lines(&log).last().is_none_or(|line| line != "finish") {
        std::thread::yield_now();
    }
    let calls = lines(&log);
    assert_eq!(calls[1..5], ["step 1", "step 2", "step 3", "step 4"]);
    assert_eq!(calls.iter().filter(|line| line.starts_with("evaluation")).count(), 10);
}
