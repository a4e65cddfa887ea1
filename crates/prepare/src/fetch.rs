use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use sepal_assets::{Assets, Attempt, FetchEvent};
use sepal_checkpoint::Part;
use sepal_config::Spec;
use sepal_config::spec::SwarmSpec;
use sepal_core::Span;

use crate::data_source::DataSource;
use crate::error::{ModelError, PrepareError};
use crate::events::{Event, Observer};
use crate::model_files::{ModelFiles, fetch_part};

/// Fetches the model and the data of a pipeline into the cache.
///
/// # Errors
/// [`PrepareError`] if a source cannot be fetched.
pub fn fetch(spec: &Spec, observer: &mut dyn Observer) -> Result<(), PrepareError> {
    let (assets, never) = (Assets::from_env(), AtomicBool::new(false));
    let mut fetcher = Fetcher { assets: &assets, observer, stop: &never };
    fetch_model(spec, &mut fetcher)?;
    DataSource::choose(spec, &mut fetcher)?;
    Ok(())
}

/// Fetches the parts of the model that a process with the pipeline's swarm needs: all shards only where the blocks run here.
///
/// # Errors
/// [`ModelError::Fetch`], [`ModelError::Open`].
pub fn fetch_model(spec: &Spec, fetcher: &mut Fetcher<'_>) -> Result<ModelFiles, ModelError> {
    let (assets, sources) = (fetcher.assets, &spec.model.source);
    let files = ModelFiles::open(assets, sources, &mut watched("model", fetcher.observer, fetcher.stop))?;
    fetch_parts(spec, &files, fetcher)?;
    Ok(files)
}

/// Fetches the parts of an open model that a process with the pipeline's swarm needs.
///
/// # Errors
/// [`ModelError::Fetch`]; [`ModelError::Open`] if a tensor is of a type that is not read.
pub fn fetch_parts(spec: &Spec, files: &ModelFiles, fetcher: &mut Fetcher<'_>) -> Result<(), ModelError> {
    let assets = fetcher.assets;
    let mut watch = watched("model", fetcher.observer, fetcher.stop);
    // Of all parts before the first is fetched.
    check_types(spec, files)?;
    let mut fetch = |part| fetch_part(assets, &files.asset, &files.checkpoint, part, &mut watch);
    needed_parts(spec, files).into_iter().try_for_each(&mut fetch).map_err(ModelError::Fetch)
}

/// Checks that the parts of a model that a process with the pipeline's swarm needs are of types that are read. Fetches nothing.
///
/// # Errors
/// [`ModelError::Open`].
pub fn check_types(spec: &Spec, files: &ModelFiles) -> Result<(), ModelError> {
    needed_parts(spec, files).into_iter().try_for_each(|part| files.check_types(part))
}

fn needed_parts(spec: &Spec, files: &ModelFiles) -> Vec<Part> {
    match &spec.swarm {
        SwarmSpec::Embedded(_) | SwarmSpec::None(_) => vec![Part::All],
        swarm if swarm.remote().checks_locally() => vec![Part::All],
        _ => {
            // No span if there are no local blocks.
            let local = Span::new(0, spec.model.local_blocks.min(files.checkpoint.config().n_blocks));
            [Part::Ends].into_iter().chain(local.ok().map(Part::Blocks)).collect()
        }
    }
}

/// One line for each source that is not available.
pub fn describe_attempts(attempts: &[Attempt]) -> Vec<String> {
    attempts.iter().map(|attempt| format!("{}: {}", attempt.source, attempt.error)).collect()
}

/// Access to the sources of a run.
#[expect(missing_debug_implementations, reason = "observers have no description")]
pub struct Fetcher<'a> {
    /// Cache and hub.
    pub assets: &'a Assets,
    /// Receives the events.
    pub observer: &'a mut dyn Observer,
    /// Ends a fetch when set.
    pub stop: &'a AtomicBool,
}

/// Returns a watch that forwards the events of fetching `noun` to the observer, and ends the fetch when `stop` is set.
pub fn watched<'a>(
    noun: &'a str,
    observer: &'a mut dyn Observer,
    stop: &'a AtomicBool,
) -> impl FnMut(FetchEvent<'_>) -> ControlFlow<()> + 'a {
    move |event| {
        match event {
            FetchEvent::Notice(line) => observer.event(Event::Notice(&format!("{noun}: {line}"))),
            event => observer.event(Event::Fetch(event)),
        }
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
