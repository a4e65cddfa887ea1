//! Standard output, standard error and errors.

use std::error::Error;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use sepal_data::Remedy;

use crate::advice::advice;
use crate::units::printable;

/// True if standard error has log lines only, so that a collector reads every line.
static IS_LOG: AtomicBool = AtomicBool::new(false);

/// Error of a command. Its text continues "failed to ..".
pub type Failure = Box<dyn Error>;

/// Returns the error and its causes, one per line, and the setting that would settle it.
pub fn describe(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    let causes: String = causes.map(|cause| format!("\n  because: {cause}")).collect();
    let hint = Remedy::find(error).and_then(hint).map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
    // Errors quote files, whose control characters could change a terminal.
    let text = format!("{error}{causes}{hint}");
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// Prints an error that ends the program, with the advice of the program for it, or with `further` advice.
pub fn report(error: &Failure, further: Option<String>) {
    let advice = advice(&**error).or(further).unwrap_or_default();
    match is_log() {
        true => tracing::error!(target: "sepal", "failed to {}{advice}", describe(&**error)),
        false => eprintln!("error: failed to {}{advice}", describe(&**error)),
    }
}

/// Names a setting of the data crate as options and keys do.
pub fn hint(remedy: Remedy) -> Option<String> {
    let (setting, value) = match remedy {
        Remedy::Delimiter(delimiter) => ("delimiter", format!("`{delimiter}`")),
        Remedy::Encoding => ("encoding", "that of the file, such as windows-1252".to_owned()),
        Remedy::Format(format) => ("format", format!("`{format}`")),
        Remedy::SmallerBatches => {
            return Some("use a smaller `loader.batch_size`, or `loader.drop_last: false`".to_owned());
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

/// Writes to standard output. A closed pipe (`sepal schema | head`) is not an error.
pub fn print(text: &str) -> Result<(), Failure> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
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
    let _ = writeln!(io::stderr(), "{text}");
}
