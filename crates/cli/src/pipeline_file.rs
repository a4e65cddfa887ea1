//! Pipeline files for the plugins of a registry.

use sepal_config::Spec;
use sepal_plugin::Registry;

use crate::args::PipelineArgs;
use crate::output::Failure;

/// Checks the pipeline of one run and prints its notices.
pub(crate) fn load(registry: &Registry, args: &PipelineArgs) -> Result<Spec, Failure> {
    sepal_front::pipeline_file::load(registry.catalog(), args)
}
