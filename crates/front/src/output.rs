//! Standard output, standard error and errors.

use std::borrow::Cow;
use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use sepal_core::{visible, visible_json, visible_lines};
use sepal_data::Remedy;

use crate::advice::advice;
use crate::table::{STYLE_END, STYLES};

/// True if standard error has log lines only, so that a collector reads every line.
static IS_LOG: AtomicBool = AtomicBool::new(false);

/// Error of a command. Its text continues "failed to ..".
pub type Failure = Box<dyn Error>;

/// Returns the error and its causes, one per line, and the setting that would settle it.
pub fn describe(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    let causes: String = causes.map(|cause| format!("\n  because: {cause}")).collect();
    let hint = Remedy::find(error).and_then(hint).map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
    // Errors quote files and servers: their control characters could change a terminal, and their lines could look like ours.
    let text = format!("{error}{causes}{hint}");
    let lines: Vec<&str> = text.split('\n').collect();
    let indented = lines.iter().enumerate().map(|(index, line)| {
        let line = shortened(line);
        match index > 0 && !line.starts_with(' ') {
            true => format!("  {}", visible_lines(&line)),
            false => visible_lines(&line).into_owned(),
        }
    });
    indented.collect::<Vec<_>>().join("\n")
}

/// Returns a line of an error, without its middle if it quotes a value of megabytes: the expected value may be at its end.
fn shortened(line: &str) -> Cow<'_, str> {
    const START: usize = 2000;
    const END: usize = 1000;
    let length = line.chars().count();
    if length <= START + END {
        return Cow::Borrowed(line);
    }
    let start: String = line.chars().take(START).collect();
    let end: String = line.chars().skip(length - END).collect();
    Cow::Owned(format!("{start} … {end}"))
}

/// Returns names of files or servers, each safe to show, with commas between them.
pub fn listed(names: &[impl AsRef<str>]) -> String {
    names.iter().map(|name| visible(name.as_ref())).collect::<Vec<_>>().join(", ")
}

/// Prints an error that ends the program, with the advice of the program for it, or with `further` advice.
pub fn report(error: &Failure, further: Option<String>) {
    let advice = advice(&**error).or(further).unwrap_or_default();
    match is_log() {
        true => tracing::error!(target: "sepal", "failed to {}{advice}", describe(&**error)),
        false => eprintln!("error: failed to {}{}", describe(&**error), visible_lines(&advice)),
    }
}

/// Names a setting of the data crate as options and keys do.
pub fn hint(remedy: Remedy) -> Option<String> {
    let (setting, value) = match remedy {
        Remedy::Delimiter(delimiter) => ("delimiter", format!("`{delimiter}`")),
        Remedy::Encoding => ("encoding", "that of the file, such as windows-1252".to_owned()),
        Remedy::Format(format) => ("format", format!("`{format}`")),
        Remedy::Columns => {
            return Some(
                "--text, --text-pair and --label name columns, or `data.text`, `data.text_pair`, `data.label`, `data.options` and \
                 `data.where` in a pipeline file"
                    .to_owned(),
            );
        }
        Remedy::SkipEmpty => {
            return Some(
                "`data.skip_empty: true` in a pipeline file leaves out rows without a text or label; `sepal predict` does so unless \
                 --strict is given"
                    .to_owned(),
            );
        }
        _ => return None,
    };
    Some(format!("set --{setting}, or `data.{setting}` in a pipeline file, to {value}"))
}

/// Writes to standard output, with characters that change a terminal escaped. A closed pipe (`sepal schema | head`) is not
/// an error.
pub fn print(text: &str) -> Result<(), Failure> {
    write_line(&without_foreign_escapes(text))
}

/// Writes JSON to standard output, with characters that change a terminal as escapes of JSON.
pub fn print_json(json: &str) -> Result<(), Failure> {
    write_line(&visible_json(json))
}

/// Writes a pipeline file to standard output: as it is, for another file, and on a terminal as [`print`] does.
pub fn print_yaml(yaml: &str) -> Result<(), Failure> {
    match io::stdout().is_terminal() {
        true => print(yaml),
        false => write_line(yaml),
    }
}

fn write_line(text: &str) -> Result<(), Failure> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Returns a text whose only escape sequences are the styles of tables.
pub(crate) fn without_foreign_escapes(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut left = text;
    while let Some(start) = left.find('\x1b') {
        let (before, sequence) = left.split_at(start);
        shown.push_str(&visible_lines(before));
        let style = STYLES.iter().chain([&STYLE_END]).find(|style| sequence.starts_with(**style));
        let taken = style.map_or(1, |style| style.len());
        match style {
            Some(style) => shown.push_str(style),
            None => shown.push_str(&visible_lines(&sequence[..taken])),
        }
        left = &sequence[taken..];
    }
    shown.push_str(&visible_lines(left));
    shown
}

/// Writer that escapes the characters of whole lines that change a terminal.
#[derive(Debug)]
pub struct VisibleLines<W: Write> {
    out: W,
    /// Bytes behind the last line break.
    pending: Vec<u8>,
}

impl<W: Write> VisibleLines<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out, pending: Vec::new() }
    }
}

impl<W: Write> Write for VisibleLines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if let Some(end) = self.pending.iter().rposition(|byte| *byte == b'\n') {
            let rest = self.pending.split_off(end + 1);
            let lines = std::mem::replace(&mut self.pending, rest);
            self.out.write_all(visible_lines(&String::from_utf8_lossy(&lines)).as_bytes())?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let line = std::mem::take(&mut self.pending);
        self.out.write_all(visible_lines(&String::from_utf8_lossy(&line)).as_bytes())?;
        self.out.flush()
    }
}

/// Turns all lines of standard error into records of the log.
pub(crate) fn write_log_only() {
    IS_LOG.store(true, Ordering::Relaxed);
}

/// True if standard error has log lines only.
pub(crate) fn is_log() -> bool {
    IS_LOG.load(Ordering::Relaxed)
}

/// Writes to standard error, or to the log if there are only log lines. A closed standard error does not stop the program.
pub fn print_progress(text: &str) {
    if is_log() {
        return tracing::info!(target: "sepal", "{text}");
    }
    let _ = writeln!(io::stderr(), "{}", visible_lines(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn styles_stay_and_other_escapes_are_visible() {
        let check = |text: &str, expected: &str| assert_eq!(without_foreign_escapes(text), expected);
        check("\x1b[1mmodel\x1b[0m\n  ok", "\x1b[1mmodel\x1b[0m\n  ok");
        check("a\x1b]0;owned\x07b", "a\\u{1b}]0;owned\\u{7}b");
        check("\x1b\x1b[2J\u{202e}é", "\\u{1b}\\u{1b}[2J\\u{202e}é");
        check("", "");
    }

    #[test]
    fn errors_with_foreign_texts_are_visible() {
        let error: Failure = "read the label \x1b[2J\rof row 3".into();
        assert_eq!(describe(&*error), "read the label \\u{1b}[2J\\u{d}of row 3");
        assert_eq!(listed(&["good", "\u{7}"]), "good, \\u{7}");
        let error: Failure = "call the server: gone\nerror: failed to find a disk".into();
        assert_eq!(describe(&*error), "call the server: gone\n  error: failed to find a disk");
    }

    #[test]
    fn errors_that_quote_megabytes_are_shortened() {
        let error: Failure = format!("use `{}`, expected a name", "é".repeat(1 << 20)).into();
        let described = describe(&*error);
        assert_eq!(described.chars().count(), 3003);
        assert!(described.starts_with("use `é") && described.ends_with("`, expected a name"), "{described}");
    }

    #[test]
    fn rows_on_a_terminal_are_visible() {
        let mut written = Vec::new();
        let mut out = VisibleLines::new(&mut written);
        // Characters may be divided between writes.
        for bytes in ["a,\u{202e}", "\x1b[2J\nb", ",é"].concat().as_bytes().chunks(3) {
            out.write_all(bytes).expect("written");
        }
        out.flush().expect("written");
        assert_eq!(String::from_utf8(written).expect("UTF-8"), "a,\\u{202e}\\u{1b}[2J\nb,é");
    }
}
