//! Progress of downloads and uploads: a bar on a terminal, lines elsewhere.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use sepal_assets::FetchEvent;

use crate::output::print_progress;
use crate::units::{clock, size};

/// Size from which the begin of a file is printed if there is no bar.
const LARGE: u64 = 100_000_000;

#[derive(Debug)]
pub(crate) struct Downloads {
    bar: Option<ProgressBar>,
    plain: bool,
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
    pub(crate) fn uploads() -> Self {
        Self::with(["sending", "sent"])
    }

    fn with(verbs: [&'static str; 2]) -> Self {
        let plain = !std::io::stderr().is_terminal();
        Self { bar: None, plain, verbs, file: String::new(), size: 0, began: (Instant::now(), 0) }
    }

    pub(crate) fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => print_progress(text),
        }
    }

    pub(crate) fn watch(&mut self) -> impl FnMut(FetchEvent<'_>) -> ControlFlow<()> {
        |event| {
            self.event(event);
            ControlFlow::Continue(())
        }
    }

    pub(crate) fn event(&mut self, event: FetchEvent<'_>) {
        match event {
            FetchEvent::Notice(line) => self.line(line),
            FetchEvent::Begin { file, size, bytes_done } => self.begin(file, size, bytes_done),
            FetchEvent::Progress { bytes_done } => {
                if let Some(bar) = &self.bar {
                    bar.set_position(bytes_done);
                    bar.set_message(self.status(bytes_done));
                }
            }
            FetchEvent::End { file, size, received, seconds } => {
                self.clear();
                self.line(&finished_line(self.verbs[1], file, size, received, seconds));
            }
            _ => {}
        }
    }

    fn begin(&mut self, file: &str, bytes: u64, here: u64) {
        self.clear();
        (self.file, self.size, self.began) = (file.to_owned(), bytes, (Instant::now(), here));
        if !self.plain {
            let style = ProgressStyle::with_template("{bar:24} {decimal_bytes}/{decimal_total_bytes} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(bytes).with_style(style).with_position(here);
            bar.set_message(file.to_owned());
            self.bar = Some(bar);
        } else if bytes >= LARGE {
            let present = if here > 0 { format!(", {} of it are present", size(here)) } else { String::new() };
            self.line(&format!("{} {file}, {}{present}", self.verbs[0], size(bytes)));
        }
    }

    /// Returns speed and time left of the transfer, and the file.
    fn status(&self, here: u64) -> String {
        let (time, before) = (self.began.0.elapsed().as_secs_f64(), self.began.1);
        let rate = here.saturating_sub(before) as f64 / time.max(0.001);
        let left = match rate {
            0.0 => String::new(),
            rate => format!(", {} left", clock(self.size.saturating_sub(here) as f64 / rate)),
        };
        format!("{}/s{left} {}", size(rate as u64), self.file)
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Downloads {
    fn drop(&mut self) {
        self.clear();
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
