//! A probe as people see it: a spinner with the time on a terminal, plain lines elsewhere.

use std::io::Write;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between plain lines at the most.
const SILENCE: Duration = Duration::from_secs(20);

/// Shows what is being measured for as long as it lasts.
#[derive(Debug)]
pub(crate) enum ProbeProgress {
    Spinner(ProgressBar),
    Lines(Reminder),
}

impl ProbeProgress {
    pub(crate) fn new(is_plain: bool) -> Self {
        if is_plain {
            return Self::Lines(Reminder(None));
        }
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
        let bar = ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self::Spinner(bar)
    }

    /// Shows that the `number`-th measurement of `what` has begun, from 0, up to `last`.
    pub(crate) fn show(&mut self, what: &str, number: u64, last: u64) {
        let text = text(what, number, last);
        match self {
            Self::Spinner(bar) => {
                bar.reset_elapsed();
                bar.set_message(text);
            }
            Self::Lines(reminder) => {
                reminder.stop();
                say(&text);
                *reminder = Reminder::start(text, SILENCE, say);
            }
        }
    }

    /// A line that stays.
    pub(crate) fn line(&self, text: &str) {
        match self {
            Self::Spinner(bar) => bar.println(text),
            Self::Lines(_) => say(text),
        }
    }
}

impl Drop for ProbeProgress {
    fn drop(&mut self) {
        match self {
            Self::Spinner(bar) => bar.finish_and_clear(),
            Self::Lines(reminder) => reminder.stop(),
        }
    }
}

fn text(what: &str, number: u64, last: u64) -> String {
    match number {
        0 => format!("probe: first {what}, to warm up"),
        number => format!("probe: {what} {number} of {last}"),
    }
}

fn say(text: &str) {
    // A closed standard error is no reason to stop.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A thread that says now and then that something still goes on, until it is stopped.
#[derive(Debug)]
pub(crate) struct Reminder(Option<Sender<()>>);

impl Reminder {
    fn start(text: String, pause: Duration, say: impl Fn(&str) + Send + 'static) -> Self {
        let (stop, stopped) = mpsc::channel::<()>();
        let started = Instant::now();
        let remind = move || {
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                say(&format!("{text}: still going after {} s", started.elapsed().as_secs()));
            }
        };
        // Without a thread there are no reminders.
        let thread = thread::Builder::new().name("probe-reminder".to_owned()).spawn(remind);
        Self(thread.is_ok().then_some(stop))
    }

    fn stop(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_lines_count_measurements_after_the_first() {
        assert_eq!(text("step", 0, 3), "probe: first step, to warm up");
        assert_eq!(text("step", 2, 3), "probe: step 2 of 3");
    }

    #[test]
    fn long_measurement_prints_progress_until_it_ends() {
        let (said, lines) = mpsc::channel();
        let mut reminder = Reminder::start("probe: step 1 of 3".to_owned(), Duration::from_millis(5), move |line| {
            let _ = said.send(line.to_owned());
        });
        for _ in 0..3 {
            let line = lines.recv_timeout(Duration::from_secs(60)).expect("a reminder");
            assert!(line.starts_with("probe: step 1 of 3: still going after "), "{line}");
        }
        reminder.stop();
        // The thread ends, and the sender with it.
        while lines.recv_timeout(Duration::from_secs(60)).is_ok() {}
        assert_eq!(lines.recv_timeout(Duration::from_secs(60)), Err(RecvTimeoutError::Disconnected));
    }
}
