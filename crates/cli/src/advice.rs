//! Advice that names commands of the program, for errors of crates that do not know them.

use std::error::Error;

use sepal_blocks::LoadError;
use sepal_checkpoint::{OpenError, ReadError};

/// Advice for an error or one of its causes, as further lines of its text.
pub(crate) fn advice(error: &(dyn Error + 'static)) -> Option<String> {
    std::iter::successors(Some(error), |&error| error.source()).find_map(|error| {
        if let Some(OpenError::NoOutline { outline, .. }) = error.downcast_ref() {
            return Some(format!(
                "\n  Copy the file, or the file {outline}, which `sepal outline FOLDER` writes in the folder of the complete \
                 model; or name the model as hub:OWNER/NAME, of which only the needed files are fetched."
            ));
        }
        if let Some(LoadError::Device { .. }) = error.downcast_ref() {
            return Some(
                "\n  On a machine with a GPU, `just setup --cuda` installs a libtorch that uses it; `sepal doctor` says what is missing."
                    .to_owned(),
            );
        }
        let Some(ReadError::MissingShard { path, .. }) = error.downcast_ref() else { return None };
        Some(format!(
            "\n  Copy it there, for example with `hf download OWNER/NAME {}`; for a model that is named as hub:OWNER/NAME, \
             `sepal serve --blocks` and `sepal fetch` fetch the shards that they need.",
            path.file_name().unwrap_or_default().display()
        ))
    })
}
