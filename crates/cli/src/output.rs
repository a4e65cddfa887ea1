//! Standard output, standard error and errors.

use std::error::Error;
use std::io::{self, Write};

/// Error of a command. Its text continues "failed to ..".
pub(crate) type Failure = Box<dyn Error>;

/// Returns the error and its causes, one per line.
pub(crate) fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str("\n  because: ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Writes to standard output. A closed pipe (`sepal schema | head`) is not an error.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes to standard error. A closed standard error does not stop the program.
pub(crate) fn print_progress(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
