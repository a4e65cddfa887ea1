//! `sepal run`.

use sepal_plugin::Registry;

use crate::args::{PipelineArgs, RunArgs};
use crate::console::Console;
use crate::interrupt::stop_on_interrupt;
use crate::output::{Failure, print};
use crate::pipeline_file::load;
use crate::summary::summary;

pub(crate) fn run(registry: &Registry, args: &RunArgs) -> Result<(), Failure> {
    let folder = args.resume.clone().flatten();
    let file = match (&args.file, &folder) {
        (Some(file), _) => file.clone(),
        (None, Some(folder)) => folder.join("pipeline.yaml"),
        (None, None) => return Err("resume: name a pipeline file, or the run's folder after --resume".into()),
    };
    let spec = load(registry, &PipelineArgs { file, set: args.set.clone() })?;
    let stop = stop_on_interrupt("stopping after this step, and saving")?;
    let mut console = Console::default();
    let folder = match &args.resume {
        Some(None) => sepal_pipeline::unfinished_run(&spec, registry),
        _ => folder,
    };
    match (&folder, &args.resume) {
        (Some(folder), _) => console.line(&format!("resuming {}", folder.display())),
        (None, Some(_)) => console.line("nothing to resume: a new run begins"),
        (None, None) => {}
    }
    let done = match folder {
        Some(folder) => sepal_pipeline::resume(&spec, &folder, registry, &mut console, &stop),
        None => sepal_pipeline::run(&spec, registry, &mut console, &stop),
    };
    // The bar is cleared before the summary is printed.
    drop(console);
    print(&summary(&done?))
}
