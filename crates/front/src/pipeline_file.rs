//! Pipeline files with the environment and the command line applied.

use sepal_catalog::Catalog;
use sepal_config::{Layers, Loaded, Spec};

use crate::args::PipelineArgs;
use crate::output::{Failure, print_progress};

/// Reads the file, the variables and the settings of the command line, unchecked.
///
/// # Errors
/// The file cannot be read.
pub fn layers(args: &PipelineArgs) -> Result<Layers, Failure> {
    Ok(Layers::read(&args.file)?.env(variables()).sets(args.set.iter().cloned()))
}

/// Environment variables in Unicode. Those of other programs need not be; ours are.
pub fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Checks the pipeline of one run and prints its notices.
///
/// # Errors
/// All problems of the pipeline, or a sweep instead of one run.
pub fn load(catalog: &Catalog, args: &PipelineArgs) -> Result<Spec, Failure> {
    let Loaded { spec, notices } = read(catalog, args)?;
    for notice in notices {
        print_progress(&notice);
    }
    Ok(spec)
}

/// Checks the pipeline of one run.
pub(crate) fn read(catalog: &Catalog, args: &PipelineArgs) -> Result<Loaded, Failure> {
    let layers = layers(args)?;
    if layers.is_sweep() {
        let file = args.file.display();
        return Err(format!(
            "use {file} as one run: its key `sweep` describes several; start them by `sepal sweep {file}`, or leave them \
             out by `--set sweep=null`"
        )
        .into());
    }
    Ok(layers.load(catalog)?)
}
