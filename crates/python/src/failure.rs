//! Errors of the crates below as Python exceptions.

use std::error::Error;

use pyo3::prelude::*;

/// Error of a job.
pub(crate) type Failure = Box<dyn Error>;

/// Returns the error and its causes, one per line.
pub(crate) fn describe(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    let causes: String = causes.map(|cause| format!("\n  because: {cause}")).collect();
    format!("failed to {error}{causes}")
}

/// Returns a `sepal.SepalError`, which Python defines.
pub(crate) fn exception(py: Python<'_>, text: &str) -> PyErr {
    let made = || -> PyResult<Bound<'_, PyAny>> { py.import("sepal._errors")?.getattr("SepalError")?.call1((text,)) };
    match made() {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}
