//! `sepal plan`: an estimate of a run, with measurements.

use std::sync::atomic::Ordering;
use std::time::Duration;

use sepal_front::plan::{count, print_plan};
use sepal_pipeline::plan::ProbeSpec;
use sepal_plugin::Registry;

use crate::args::{PipelineArgs, PlanArgs};
use crate::console::Console;
use crate::interrupt::stop_on_interrupt;
use crate::output::Failure;
use crate::pipeline_file::load;

mod servers;

pub(crate) fn plan(registry: &Registry, args: &PlanArgs) -> Result<(), Failure> {
    let Some(file) = args.file.clone() else { return servers::plan(args) };
    if let Some(counted) = count(registry.catalog(), args) {
        return counted;
    }
    let spec = load(registry, &PipelineArgs { file, set: args.set.clone() })?;
    let stop = stop_on_interrupt("stopping after this batch, with a plan of what was measured")?;
    let mut console = Console::default();
    let probe = ProbeSpec { steps: args.probe_steps, limit: Duration::from_secs(args.probe_seconds) };
    let plan = sepal_pipeline::plan::plan(&spec, registry, probe, &mut console, &stop)?;
    drop(console);
    print_plan(&plan, args, stop.load(Ordering::Relaxed))
}
