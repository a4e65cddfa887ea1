use std::sync::Mutex;

use super::*;
use crate::examples::{evaluation, manifest, run_info, step};

/// What was done with a tracker or said of it, in order.
type Log = Arc<Mutex<Vec<String>>>;

fn lines(log: &Log) -> Vec<String> {
    log.lock().expect("nobody panics with it").clone()
}

fn note(log: &Log, line: impl Into<String>) {
    log.lock().expect("nobody panics with it").push(line.into());
}

/// Writes down what it is told, and does something with each step before that.
struct Scribe<F> {
    log: Log,
    at_step: F,
}

impl<F: FnMut(u64) -> Result<(), TrackError> + Send> Tracker for Scribe<F> {
    fn start(&mut self, run: &RunInfo) -> Result<(), TrackError> {
        note(&self.log, format!("start {}", run.id));
        (self.at_step)(0)
    }

    fn step(&mut self, record: &StepRecord) -> Result<(), TrackError> {
        (self.at_step)(record.step)?;
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

fn scribe(at_step: impl FnMut(u64) -> Result<(), TrackError> + Send + 'static) -> (Log, (String, Box<dyn Tracker>)) {
    let log = Log::default();
    (Arc::clone(&log), ("scribe".to_owned(), Box::new(Scribe { log, at_step })))
}

fn follow(trackers: Vec<(String, Box<dyn Tracker>)>, limits: TrackerLimits) -> (Trackers, Log) {
    let warnings = Log::default();
    let told = Arc::clone(&warnings);
    let run = run_info("/nowhere".into());
    (Trackers::start(trackers, &run, limits, Arc::new(move |line| note(&told, line))), warnings)
}

#[test]
fn everything_is_told_in_order() {
    let (log, tracker) = scribe(|_| Ok(()));
    let (other, second) = scribe(|_| Ok(()));
    let (mut trackers, warnings) = follow(vec![tracker, second], TrackerLimits::default());
    trackers.step(&step(1));
    trackers.step(&step(2));
    trackers.evaluation(&evaluation(2));
    assert_eq!(trackers.finish(&manifest()), Vec::<String>::new());
    assert_eq!(lines(&log), ["start demo-1", "step 1", "step 2", "evaluation 2", "finish"]);
    assert_eq!(lines(&other), lines(&log));
    assert!(lines(&warnings).is_empty());
}

#[test]
fn a_few_errors_are_told_and_the_rest_counted() {
    let (log, tracker) = scribe(|step| if step > 0 { Err(format!("no step {step}").into()) } else { Ok(()) });
    let limits = TrackerLimits { warnings: 2, ..TrackerLimits::default() };
    let (mut trackers, warnings) = follow(vec![tracker], limits);
    (1..=5).for_each(|i| trackers.step(&step(i)));
    assert!(trackers.finish(&manifest()).is_empty());
    assert_eq!(lines(&log), ["start demo-1", "finish"]);
    assert_eq!(
        lines(&warnings),
        [
            "tracker `scribe`: no step 1",
            "tracker `scribe`: no step 2",
            "tracker `scribe`: 3 more warnings were left out"
        ]
    );
}

#[test]
fn who_fails_at_the_start_or_panics_hears_nothing_more() {
    let (refuses, first) = scribe(|_| Err("no server".into()));
    let (panics, second) = scribe(|step| if step == 2 { panic!("step two") } else { Ok(()) });
    let (follows, third) = scribe(|_| Ok(()));
    let (mut trackers, warnings) = follow(vec![first, second, third], TrackerLimits::default());
    (1..=3).for_each(|i| trackers.step(&step(i)));
    assert!(trackers.finish(&manifest()).is_empty());
    assert_eq!(lines(&refuses), ["start demo-1"]);
    assert_eq!(lines(&panics), ["start demo-1", "step 1"]);
    assert_eq!(lines(&follows).len(), 5);
    let mut warnings = lines(&warnings);
    warnings.sort();
    assert_eq!(
        warnings,
        [
            "tracker `scribe`: does not follow the run any more, it panicked: step two",
            "tracker `scribe`: does not follow the run: no server",
        ]
    );
}

/// Fails at the start, and makes up for it.
struct Late(Log);

impl Tracker for Late {
    fn start(&mut self, _: &RunInfo) -> Result<(), TrackError> {
        Err("no server yet".into())
    }

    fn goes_on(&self) -> bool {
        true
    }

    fn step(&mut self, record: &StepRecord) -> Result<(), TrackError> {
        note(&self.0, format!("step {}", record.step));
        Ok(())
    }

    fn evaluation(&mut self, _: &EvaluationRecord) -> Result<(), TrackError> {
        Ok(())
    }

    fn finish(&mut self, _: &Manifest) -> Result<(), TrackError> {
        note(&self.0, "finish");
        Ok(())
    }
}

#[test]
fn who_makes_up_for_a_failed_start_is_told_the_rest() {
    let log = Log::default();
    let late: Box<dyn Tracker> = Box::new(Late(Arc::clone(&log)));
    let (mut trackers, warnings) = follow(vec![("late".to_owned(), late)], TrackerLimits::default());
    trackers.step(&step(1));
    assert!(trackers.finish(&manifest()).is_empty());
    assert_eq!(lines(&log), ["step 1", "finish"]);
    assert_eq!(lines(&warnings), ["tracker `late`: no server yet"]);
}

#[test]
fn who_hangs_loses_steps_and_nothing_else_and_is_left_behind() {
    let (release, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let (log, tracker) = scribe(move |step| {
        if step == 1 {
            let _ = gate.lock().expect("nobody panics with it").recv();
        }
        Ok(())
    });
    let limits = TrackerLimits { queue: 3, finish: Duration::from_millis(50), ..TrackerLimits::default() };
    let (mut trackers, warnings) = follow(vec![tracker], limits);
    trackers.step(&step(1));
    while !lines(&log).contains(&"start demo-1".to_owned()) || trackers.workers[0].waiting.load(Ordering::Relaxed) > 0 {
        std::thread::yield_now();
    }
    let begun = Instant::now();
    for i in 2..=1000 {
        trackers.step(&step(i));
        if i % 100 == 0 {
            trackers.evaluation(&evaluation(i));
        }
    }
    assert_eq!(trackers.finish(&manifest()), ["scribe"]);
    assert!(begun.elapsed() < Duration::from_secs(5), "nobody waits for it");
    assert_eq!(
        lines(&warnings),
        [
            "tracker `scribe` is 3 steps behind: it is not told of further ones until it has caught up",
            "tracker `scribe` was not told of 996 steps",
            "tracker `scribe` did not end in time and was left behind",
        ]
    );
    drop(release);
    while lines(&log).last().is_none_or(|line| line != "finish") {
        std::thread::yield_now();
    }
    let told = lines(&log);
    assert_eq!(told[1..5], ["step 1", "step 2", "step 3", "step 4"]);
    assert_eq!(told.iter().filter(|line| line.starts_with("evaluation")).count(), 10);
}
