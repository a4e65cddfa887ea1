//! Native part of the Python module `sepal`: runs, predictions and frozen blocks for Python programs.
//!
//! The Python files of the module, in `python/sepal`, hold its interface and documentation; they alone call these functions.
//! Structures cross the boundary as JSON, tensors as DLPack capsules over the same memory. The module uses the libtorch that
//! the Python package `torch` has loaded.
//!
//! Invariants: Python objects are touched by the calling thread only; the interpreter's lock is not held while a run, a
//! prediction or a server is waited for; Ctrl-C reaches a run within a tenth of a second.
//!
//! Place in the crate graph: beside the program, above `pipeline` and `cli`, whose list of plugins it uses.

mod blocks;
mod classifier;
mod events;
mod failure;
mod pipeline_text;
mod tensors;
mod training;
mod worker;

use pyo3::prelude::*;

/// Functions and classes that `sepal` wraps.
#[pymodule]
fn _sepal(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<blocks::Blocks>()?;
    module.add_class::<blocks::Graph>()?;
    module.add_class::<classifier::Classifier>()?;
    module.add_function(wrap_pyfunction!(pipeline_text::read_yaml, module)?)?;
    module.add_function(wrap_pyfunction!(pipeline_text::resolve, module)?)?;
    module.add_function(wrap_pyfunction!(training::train, module)?)?;
    Ok(())
}
