//! Progress in the last line of a terminal.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sepal_core::{visible, visible_lines};

use crate::output::is_log;

/// Minimum time between two texts; those between them are not shown.
const PAUSE: Duration = Duration::from_millis(50);
/// Columns of a terminal that does not state its width.
const COLUMNS: usize = 80;
/// Columns of a bar.
const BAR: usize = 24;

/// Line of standard error that each text replaces. Other lines are printed above it. It is cleared with its last clone.
#[derive(Debug, Clone)]
pub struct StatusLine(Arc<Mutex<Shown>>);

#[derive(Debug)]
struct Shown {
    text: String,
    since: Option<Instant>,
}

impl StatusLine {
    /// Returns a line without text if standard error is a terminal, and `None` otherwise.
    pub fn on_terminal() -> Option<Self> {
        let shown = Shown { text: String::new(), since: None };
        (io::stderr().is_terminal() && !is_log()).then(|| Self(Arc::new(Mutex::new(shown))))
    }

    /// Replaces the text, unless the one before has only just been shown.
    pub fn show(&self, text: &str) {
        let mut shown = self.shown();
        if shown.since.is_none_or(|since| since.elapsed() >= PAUSE) {
            text.clone_into(&mut shown.text);
            shown.since = Some(Instant::now());
            write(&replaced(None, &shown.text, columns()));
        }
    }

    /// Prints a line above the text.
    pub fn line(&self, text: &str) {
        write(&replaced(Some(text), &self.shown().text, columns()));
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if self.since.is_some() {
            write(&replaced(None, "", columns()));
        }
    }
}

/// Bar of which the share `done` of `total` is filled.
pub fn bar(done: u64, total: u64) -> String {
    let share = if total == 0 { 1.0 } else { done.min(total) as f64 / total as f64 };
    let filled = (share * BAR as f64) as usize;
    "█".repeat(filled) + &"░".repeat(BAR - filled)
}

/// Characters that replace the last line by a finished line above it and a text of at most one line.
fn replaced(above: Option<&str>, text: &str, columns: usize) -> String {
    let above = above.map(|line| format!("{}\n", visible_lines(line))).unwrap_or_default();
    // In the last column, some terminals begin another line.
    let text = cut(text, columns.saturating_sub(1));
    // The escape sequence clears the line.
    format!("\r\x1b[K{above}{text}")
}

/// Beginning of a text that fits, with control characters escaped: names of files may have any.
fn cut(text: &str, columns: usize) -> String {
    let (mut shown, mut left) = (String::new(), columns);
    for c in visible(text).chars() {
        let Some(rest) = left.checked_sub(if is_wide(c) { 2 } else { 1 }) else { break };
        left = rest;
        shown.push(c);
    }
    shown
}

/// True for the blocks of characters that take two columns: those of East Asia, and pictures.
fn is_wide(c: char) -> bool {
    matches!(
        c,
        '\u{1100}'..='\u{115f}'
            | '\u{2e80}'..='\u{a4cf}'
            | '\u{ac00}'..='\u{d7a3}'
            | '\u{f900}'..='\u{faff}'
            | '\u{fe30}'..='\u{fe6f}'
            | '\u{ff00}'..='\u{ff60}'
            | '\u{ffe0}'..='\u{ffe6}'
            | '\u{1f300}'..='\u{1faff}'
            | '\u{20000}'..='\u{3fffd}'
    )
}

fn columns() -> usize {
    let stated = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| usize::from(size.ws_col));
    if stated == 0 { COLUMNS } else { stated }
}

/// Writes to standard error. A closed standard error does not stop the program.
fn write(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_is_filled_by_the_share_that_is_done() {
        let filled = |done, total| bar(done, total).matches('█').count();
        assert_eq!([filled(0, 8), filled(4, 8), filled(8, 8), filled(9, 8), filled(0, 0)], [0, 12, 24, 24, 24]);
        assert_eq!([bar(1, 3), bar(0, 0)].map(|bar| bar.chars().count()), [24, 24]);
    }

    #[test]
    fn text_is_cut_to_the_terminal_and_lines_are_not() {
        assert_eq!(replaced(None, "12345", 80), "\r\x1b[K12345");
        assert_eq!(replaced(Some("a finished line"), "éü345", 5), "\r\x1b[Ka finished line\néü34");
        assert_eq!(replaced(None, "日本語\n123", 6), "\r\x1b[K日本");
        assert_eq!(replaced(None, "日\x1b123", 6), "\r\x1b[K日\\u{");
        assert_eq!(replaced(None, "█░", 3), "\r\x1b[K█░");
        assert_eq!(replaced(Some("\x1b]0;x\x07"), "", 9), "\r\x1b[K\\u{1b}]0;x\\u{7}\n");
    }
}
