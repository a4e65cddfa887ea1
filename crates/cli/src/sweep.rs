//! `sepal sweep`: several runs of one pipeline.

mod progress;
mod table;

use std::path::PathBuf;

use sepal_config::Layers;
use sepal_front::overview;
use sepal_front::pipeline_file::{layers, variables};
use sepal_pipeline::{resume_sweep, sweep_file, unfinished_sweep};
use sepal_plugin::Registry;
use sepal_track::MemberState;

use crate::args::{PipelineArgs, SweepArgs};
use crate::interrupt::stop_on_interrupt;
use crate::output::{Failure, print, print_json, print_progress};
use progress::SweepConsole;

/// Maximum number of different errors that are named.
const NAMED: usize = 5;

pub(crate) fn sweep(registry: &Registry, args: &SweepArgs) -> Result<(), Failure> {
    let named = args.resume.clone().flatten();
    let sweep = sweep_layers(args, named.as_ref())?.load_sweep(registry.catalog())?;
    sweep.notices.iter().for_each(|notice| print_progress(notice));
    print_progress(&overview(&sweep));
    let stop = stop_on_interrupt("stopping all runs after their steps, and saving")?;
    let folder = match &args.resume {
        Some(None) => unfinished_sweep(&sweep),
        _ => named,
    };
    match (&folder, &args.resume) {
        (Some(folder), _) => print_progress(&format!("resuming {}", folder.display())),
        (None, Some(_)) => print_progress("nothing to resume: a new sweep begins"),
        (None, None) => {}
    }
    let mut console = SweepConsole::new(sweep.members.len());
    let done = match &folder {
        Some(folder) => resume_sweep(folder, &sweep, registry, args.parallel, &mut console, &stop),
        None => sepal_pipeline::sweep(&sweep, registry, args.parallel, &mut console, &stop),
    };
    drop(console);
    let summary = done?;
    match args.json {
        true => print_json(&serde_json::to_string_pretty(&table::json(&summary))?)?,
        false => print(&table::text(&summary))?,
    }
    failures(&summary)
}

/// Layers of the sweep: of the file, or of the folder to resume.
fn sweep_layers(args: &SweepArgs, folder: Option<&PathBuf>) -> Result<Layers, Failure> {
    let layers = match (&args.file, folder) {
        (Some(file), _) => layers(&PipelineArgs { file: file.clone(), set: args.set.clone() })?,
        (None, Some(folder)) => sweep_file(folder)?.env(variables()).sets(args.set.iter().cloned()),
        (None, None) => return Err("resume: name a pipeline file, or the sweep's folder after --resume".into()),
    };
    Ok(match &args.over {
        Some(over) => layers.sweep_over(over)?,
        None => layers,
    })
}

/// Error that names the failed runs, if there are any.
fn failures(summary: &sepal_pipeline::SweepSummary) -> Result<(), Failure> {
    let record = &summary.results.record;
    let runs = &record.runs;
    let failed: Vec<usize> = (0..runs.len()).filter(|&run| runs[run].state == MemberState::Failed).collect();
    if failed.is_empty() {
        return Ok(());
    }
    // Runs that a selection has left out are over.
    let retried = failed.iter().filter(|&&run| !record.is_over(run)).count();
    let again = match retried {
        0 => String::new(),
        all if all == failed.len() => " (`--resume` tries them again)".to_owned(),
        some => format!(" (`--resume` tries {some} of them again)"),
    };
    let mut text = format!("finish {} of {} runs{again}:", failed.len(), runs.len());
    let failures = record.failures();
    for failed in failures.iter().take(NAMED) {
        text.push_str(&format!("\n  {}: failed to {}", failed.names(), failed.error));
    }
    let further: usize = failures.iter().skip(NAMED).map(|failed| failed.folders.len()).sum();
    if further > 0 {
        text.push_str(&format!("\n  and {further} more with other errors"));
    }
    Err(text.into())
}
