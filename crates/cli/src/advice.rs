//! Advice that names commands of the program, for errors of crates that need libtorch.

use std::error::Error;

use sepal_blocks::LoadError;

/// Advice for an error or one of its causes, as further lines of its text.
pub(crate) fn advice(error: &(dyn Error + 'static)) -> Option<String> {
    let mut errors = std::iter::successors(Some(error), |&error| error.source());
    let is_device = |error: &(dyn Error + 'static)| matches!(error.downcast_ref(), Some(LoadError::Device { .. }));
    errors.any(is_device).then(|| {
        "\n  On a machine with a GPU, `just setup --cuda` installs a libtorch that uses it; `sepal doctor` says what is missing."
            .to_owned()
    })
}
