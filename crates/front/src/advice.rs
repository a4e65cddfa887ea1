//! Advice that names commands of the program, for errors of crates that do not know them.

use std::error::Error;

use sepal_checkpoint::{OpenError, ReadError};
use sepal_core::NotBuilt;

/// Advice for an error or one of its causes, as further lines of its text.
pub(crate) fn advice(error: &(dyn Error + 'static)) -> Option<String> {
    std::iter::successors(Some(error), |&error| error.source()).find_map(|error| {
        if let Some(OpenError::NoOutline { outline, .. }) = error.downcast_ref() {
            return Some(format!(
                "\n  Copy the file, or the file {outline}, which `sepal outline FOLDER` writes in the folder of the complete \
                 model; or name the model as hub:OWNER/NAME, of which only the needed files are fetched."
            ));
        }
        if let Some(NotBuilt { feature, .. }) = error.downcast_ref() {
            return Some(format!(
                "\n  `just build --full` builds every part and is remembered by `just run`; with cargo alone, add \
                 `--features {feature}`."
            ));
        }
        let Some(ReadError::MissingShard { path, .. }) = error.downcast_ref() else { return None };
        Some(format!(
            "\n  Copy it there, for example with `hf download OWNER/NAME {}`; for a model that is named as hub:OWNER/NAME, \
             `sepal serve --blocks` and `sepal fetch` fetch the shards that they need.",
            path.file_name().unwrap_or_default().display()
        ))
    })
}
