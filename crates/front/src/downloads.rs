//! Progress of downloads and uploads: a bar on a terminal, lines elsewhere.

use std::ops::ControlFlow;
use std::time::Instant;

use sepal_assets::FetchEvent;

use crate::output::print_progress;
use crate::status_line::{StatusLine, bar};
use crate::units::{clock, size};

/// Size from which the begin of a file is printed if there is no bar.
const LARGE: u64 = 100_000_000;

/// Shows transfers of files.
#[derive(Debug)]
pub struct Downloads {
    /// Line on a terminal, during a transfer.
    status: Option<StatusLine>,
    /// Verbs for a transfer that runs, and for one that is finished.
    verbs: [&'static str; 2],
    file: String,
    size: u64,
    /// Start of the transfer, and the bytes that were present then.
    began: (Instant, u64),
}

impl Default for Downloads {
    fn default() -> Self {
        Self::with(["fetching", "fetched"])
    }
}

impl Downloads {
    /// Transfers to the hub.
    pub fn uploads() -> Self {
        Self::with(["sending", "sent"])
    }

    fn with(verbs: [&'static str; 2]) -> Self {
        Self { status: None, verbs, file: String::new(), size: 0, began: (Instant::now(), 0) }
    }

    /// Prints a line above the bar.
    pub fn line(&self, text: &str) {
        match &self.status {
            Some(status) => status.line(text),
            None => print_progress(text),
        }
    }

    /// Returns a handler that shows events and continues.
    pub fn watch(&mut self) -> impl FnMut(FetchEvent<'_>) -> ControlFlow<()> {
        |event| {
            self.event(event);
            ControlFlow::Continue(())
        }
    }

    /// Shows an event.
    pub fn event(&mut self, event: FetchEvent<'_>) {
        match event {
            FetchEvent::Notice(line) => self.line(line),
            FetchEvent::Begin { file, size, bytes_done } => self.begin(file, size, bytes_done),
            FetchEvent::Progress { bytes_done } => {
                if let Some(status) = &self.status {
                    status.show(&self.progress(bytes_done));
                }
            }
            FetchEvent::End { file, size, received, seconds } => {
                self.status = None;
                self.line(&finished_line(self.verbs[1], file, size, received, seconds));
            }
            _ => {}
        }
    }

    fn begin(&mut self, file: &str, bytes: u64, here: u64) {
        self.status = None;
        (self.file, self.size, self.began) = (file.to_owned(), bytes, (Instant::now(), here));
        self.status = StatusLine::on_terminal();
        if let Some(status) = &self.status {
            status.show(&format!("{} {file}", self.position(here)));
        } else if bytes >= LARGE {
            let present = if here > 0 { format!(", {} of it are present", size(here)) } else { String::new() };
            self.line(&format!("{} {file}, {}{present}", self.verbs[0], size(bytes)));
        }
    }

    fn position(&self, here: u64) -> String {
        format!("{} {}/{}", bar(here, self.size), size(here), size(self.size))
    }

    /// Returns a bar, speed and time left of the transfer, and the file.
    fn progress(&self, here: u64) -> String {
        let (time, before) = (self.began.0.elapsed().as_secs_f64(), self.began.1);
        let rate = here.saturating_sub(before) as f64 / time.max(0.001);
        let left = match rate {
            0.0 => String::new(),
            rate => format!(", {} left", clock(self.size.saturating_sub(here) as f64 / rate)),
        };
        format!("{} {}/s{left} {}", self.position(here), size(rate as u64), self.file)
    }
}

fn finished_line(verb: &str, file: &str, bytes: u64, received: u64, seconds: f64) -> String {
    let part = if received < bytes { format!(", {} of it now", size(received)) } else { String::new() };
    let time = if seconds < 1.0 { String::new() } else { format!(" in {}", clock(seconds)) };
    format!("{verb} {file}, {}{part}{time}", size(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finished_download_line_names_file_size_and_time() {
        assert_eq!(finished_line("fetched", "a/b/config.json", 700, 700, 0.1), "fetched a/b/config.json, 700 B");
        assert_eq!(
            finished_line("fetched", "a/b/x", 5_000_000_000, 1_000_000, 83.0),
            "fetched a/b/x, 5.0 GB, 1.0 MB of it now in 1:23"
        );
    }
}
