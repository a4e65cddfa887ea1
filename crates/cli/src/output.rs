//! Standard output, standard error and errors.

use std::error::Error;
use std::io::{self, Write};

use sepal_data::Remedy;

/// Error of a command. Its text continues "failed to ..".
pub(crate) type Failure = Box<dyn Error>;

/// Returns the error and its causes, one per line, and the setting that would settle it.
pub(crate) fn describe(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    let causes: String = causes.map(|cause| format!("\n  because: {cause}")).collect();
    let hint = Remedy::find(error).and_then(hint).map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
    format!("{error}{causes}{hint}")
}

/// Names a setting of the data crate as options and keys do.
pub(crate) fn hint(remedy: Remedy) -> Option<String> {
    let (setting, value) = match remedy {
        Remedy::Delimiter(delimiter) => ("delimiter", format!("`{delimiter}`")),
        Remedy::Encoding => ("encoding", "that of the file, such as windows-1252".to_owned()),
        Remedy::Format(format) => ("format", format!("`{format}`")),
        Remedy::SmallerBatches => {
            return Some("use a smaller `loader.batch_size`, or `loader.drop_last: false`".to_owned());
        }
        _ => return None,
    };
    Some(format!("set --{setting}, or `data.{setting}` in a pipeline file, to {value}"))
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
