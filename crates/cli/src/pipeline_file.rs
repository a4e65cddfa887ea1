//! Pipeline files with the environment and the command line applied.

use sepal_config::{Layers, Loaded, Spec};
use sepal_plugin::Registry;

use crate::args::PipelineArgs;
use crate::output::Failure;

pub(crate) fn layers(args: &PipelineArgs) -> Result<Layers, Failure> {
    // Variables of other programs need not be Unicode; ours are.
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Ok(Layers::read(&args.file)?.env(variables).sets(args.set.iter().cloned()))
}

/// Checks the pipeline and prints its notices.
pub(crate) fn load(registry: &Registry, args: &PipelineArgs) -> Result<Spec, Failure> {
    let Loaded { spec, notices } = layers(args)?.load(registry.catalog())?;
    for notice in notices {
        eprintln!("{notice}");
    }
    Ok(spec)
}
