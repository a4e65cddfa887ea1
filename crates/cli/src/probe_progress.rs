//! Progress of a probe: a spinner with the time on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::print_progress;

/// Maximum time between plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(20);

/// Shows the current measurement until it is dropped.
#[derive(Debug)]
pub(crate) enum ProbeProgress {
    Spinner(ProgressBar),
    Lines(Ticker),
}

impl ProbeProgress {
    pub(crate) fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines(Ticker(None));
        }
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
        let bar = ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self::Spinner(bar)
    }

    /// Shows that measurement `number` of `what`, counted from 0 to `last`, has begun.
    pub(crate) fn show(&mut self, what: &str, number: u64, last: u64) {
        let text = text(what, number, last);
        match self {
            Self::Spinner(bar) => {
                bar.reset_elapsed();
                bar.set_message(text);
            }
            Self::Lines(ticker) => {
                ticker.stop();
                print_progress(&text);
                *ticker = Ticker::start(text, LINE_INTERVAL, print_progress);
            }
        }
    }

    pub(crate) fn line(&self, text: &str) {
        match self {
            Self::Spinner(bar) => bar.println(text),
            Self::Lines(_) => print_progress(text),
        }
    }
}

impl Drop for ProbeProgress {
    fn drop(&mut self) {
        match self {
            Self::Spinner(bar) => bar.finish_and_clear(),
            Self::Lines(ticker) => ticker.stop(),
        }
    }
}

fn text(what: &str, number: u64, last: u64) -> String {
    match number {
        0 => format!("probe: first {what}, to warm up"),
        number => format!("probe: {what} {number} of {last}"),
    }
}

/// Thread that prints at intervals that a measurement is still running.
#[derive(Debug)]
pub(crate) struct Ticker(Option<Sender<()>>);

impl Ticker {
    fn start(text: String, interval: Duration, print: impl Fn(&str) + Send + 'static) -> Self {
        let (stop, stopped) = mpsc::channel::<()>();
        let started = Instant::now();
        let tick = move || {
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                print(&format!("{text}: still running after {} s", started.elapsed().as_secs()));
            }
        };
        // If the thread cannot be started, the lines are missing.
        let thread = thread::Builder::new().name("probe-ticker".to_owned()).spawn(tick);
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
        let (sender, lines) = mpsc::channel();
        let mut ticker = Ticker::start("probe: step 1 of 3".to_owned(), Duration::from_millis(5), move |line| {
            let _ = sender.send(line.to_owned());
        });
        for _ in 0..3 {
            let line = lines.recv_timeout(Duration::from_secs(60)).expect("a line");
            assert!(line.starts_with("probe: step 1 of 3: still running after "), "{line}");
        }
        ticker.stop();
        // The thread drops the sender when it ends.
        while lines.recv_timeout(Duration::from_secs(60)).is_ok() {}
        assert_eq!(lines.recv_timeout(Duration::from_secs(60)), Err(RecvTimeoutError::Disconnected));
    }
}
