//! Pipelines that Python programs write.

use pyo3::prelude::*;
use sepal_config::{Layers, Loaded};
use sepal_plugin::Registry;
use serde_json::Value;

use crate::failure::{Failure, describe, exception};

/// Checks a pipeline with the environment and the `sets`, as the command line does.
pub(crate) fn load(registry: &Registry, name: &str, text: &str, sets: Vec<String>) -> Result<Loaded, Failure> {
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Ok(Layers::text(name, text).env(variables).sets(sets).load(registry.catalog())?)
}

/// Returns the pipeline as JSON, with every default.
#[pyfunction]
pub(crate) fn resolve(py: Python<'_>, name: &str, text: &str, sets: Vec<String>) -> PyResult<String> {
    let resolved = || -> Result<String, Failure> {
        let spec = load(&sepal_cli::plugins()?, name, text, sets)?.spec;
        Ok(serde_json::to_string(&spec)?)
    };
    resolved().map_err(|error| exception(py, &describe(&*error)))
}

/// Returns a YAML text as JSON.
#[pyfunction]
pub(crate) fn read_yaml(py: Python<'_>, text: &str) -> PyResult<String> {
    match serde_saphyr::from_str_with_options::<Value>(text, serde_saphyr::options! { strict_booleans: true }) {
        Ok(value) => Ok(value.to_string()),
        Err(error) => Err(exception(py, &format!("failed to read the pipeline: {error}"))),
    }
}
