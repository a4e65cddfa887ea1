//! Files of a model: found or fetched, as far as they are needed.

use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, Ordering};

use sepal_assets::{Asset, Assets, Attempt, EventHandler, FetchEvent, Kind, ModelPreview, Source};
use sepal_checkpoint::{Checkpoint, OpenError, Part, missing_shards, screen, write_outline};

use crate::error::ModelError;
use crate::progress::{Event, Observer};

/// Files of a model. The description is complete, also where only some shards have been fetched.
#[derive(Debug)]
pub struct ModelFiles {
    /// Source and local path.
    pub asset: Asset,
    /// Configuration and tensors.
    pub checkpoint: Checkpoint,
}

impl ModelFiles {
    /// Opens the model of the first available source. Shards on the hub are not fetched yet, and no weights at all are
    /// fetched for a model with an unsupported configuration.
    ///
    /// # Errors
    /// [`ModelError::Fetch`], [`ModelError::Open`].
    pub fn open(assets: &Assets, sources: &[Source], watch: &mut EventHandler<'_>) -> Result<Self, ModelError> {
        let mut screen = |model: &ModelPreview<'_>| {
            Ok(screen(model.folder, &mut |parts: &[(String, Range<u64>)]| Ok((model.read_ranges)(parts)?))?)
        };
        let asset = assets.fetch_first_checked(sources, Kind::Model, &mut screen, watch).map_err(ModelError::Fetch)?;
        match open(assets, &asset) {
            Ok(checkpoint) => Ok(Self { asset, checkpoint }),
            Err(source) => Err(ModelError::Open { path: asset.path, source: source.into() }),
        }
    }

    /// Fetches the missing shards of this part.
    ///
    /// # Errors
    /// [`ModelError::Fetch`]. Fetched data is kept, and the next call continues from there.
    pub fn fetch(&self, assets: &Assets, part: Part, watch: &mut EventHandler<'_>) -> Result<(), ModelError> {
        assets.fetch_files(&self.asset, &self.checkpoint.missing_files(part), watch).map_err(ModelError::Fetch)
    }
}

fn open(assets: &Assets, asset: &Asset) -> Result<Checkpoint, OpenError> {
    if asset.commit.is_some() && !missing_shards(&asset.path)?.is_empty() {
        write_outline(&asset.path, &mut |parts| Ok(assets.read_ranges(asset, parts)?))?;
    }
    Checkpoint::open(&asset.path)
}

pub(crate) fn describe_attempts(attempts: &[Attempt]) -> Vec<String> {
    attempts.iter().map(|attempt| format!("{}: {}", attempt.source, attempt.error)).collect()
}

/// Access to the sources of a run.
pub(crate) struct Fetcher<'a> {
    pub(crate) assets: &'a Assets,
    pub(crate) observer: &'a mut dyn Observer,
    /// Ends a fetch when set.
    pub(crate) stop: &'a AtomicBool,
}

/// Returns a watch that forwards the events of fetching `noun` to the observer, and ends the fetch when `stop` is set.
pub(crate) fn watched<'a>(
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
