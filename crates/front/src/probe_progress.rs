//! Progress of a probe: a line with the time on a terminal, plain lines elsewhere.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::output::print_progress;
use crate::status_line::StatusLine;

/// Maximum time between plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(20);
/// Time between texts on a terminal.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// Shows the current measurement until it is dropped.
#[derive(Debug)]
pub(crate) struct ProbeProgress {
    status: Option<StatusLine>,
    ticker: Ticker,
}

impl ProbeProgress {
    pub(crate) fn new() -> Self {
        Self { status: StatusLine::on_terminal(), ticker: Ticker(None) }
    }

    /// Shows that measurement `number` of `what`, counted from 0 to `last`, has begun.
    pub(crate) fn show(&mut self, what: &str, number: u64, last: u64) {
        let text = text(what, number, last);
        self.ticker.stop();
        self.ticker = match self.status.clone() {
            Some(status) => {
                status.show(&text);
                Ticker::start(text, STATUS_INTERVAL, move |text| status.show(text))
            }
            None => {
                print_progress(&text);
                Ticker::start(text, LINE_INTERVAL, print_progress)
            }
        };
    }

    pub(crate) fn line(&self, text: &str) {
        match &self.status {
            Some(status) => status.line(text),
            None => print_progress(text),
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
pub(crate) struct Ticker(Option<(Sender<()>, JoinHandle<()>)>);

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
        Self(thread.ok().map(|thread| (stop, thread)))
    }

    /// Stops the thread, which prints nothing more.
    fn stop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            // A panic of the thread has been printed.
            let _ = thread.join();
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop();
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
        while lines.try_recv().is_ok() {}
        assert_eq!(lines.try_recv(), Err(mpsc::TryRecvError::Disconnected), "the thread has dropped the sender");
    }
}
